"""Segmentation from Python: `kdnet_jax.load(path).segment(scan)`.

import kdnet_jax

model = kdnet_jax.load("exports/student")  # or the folder of a run
found = model.segment("scan.nii.gz")
print(found.volumes_ml)
found.save("mask.nii.gz")
"""

import dataclasses
import functools
import numbers
import os
import pathlib
from collections.abc import Mapping, Sequence

import nibabel as nib
import numpy as np
from jaxtyping import Float, Num, UInt8
from nibabel import spatialimages

from kdnet_jax import task as task_lib
from kdnet_jax.core import typed
from kdnet_jax.data.scans import dicom, dicom_stack, geometry, nifti, prepare, spaces
from kdnet_jax.data.sources import labels as label_values
from kdnet_jax.errors import UserError, check_choice
from kdnet_jax.models import heads
from kdnet_jax.prediction import confidence as confidence_lib
from kdnet_jax.prediction import (
    ensembles,
    finding_scans,
    prediction_outputs,
    segmenting,
    stripping,
)

_OR_LESS = (
    "; or, of a model that was trained with modality dropout, name those that there are to load "
    "(sequences)"
)
Path = str | os.PathLike[str]
# A file, an image of nibabel, or intensities alone.
Scan = Path | spatialimages.SpatialImage | Num[np.ndarray, "x y z"]


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation:
    """What a model finds in a scan, on the scan's own grid.

    Attributes:
        mask: label values of `labels`.
        affine: voxel index to mm, RAS+.
        labels: their convention.
        names: label value -> class, without the background.
        volumes_ml: region -> volume in ml.
        confidence: region -> expected Dice and range of the volume (`confidence.Confidence`).
        notes: what was repaired or assumed.
        warnings: how the scan is unlike those of the training; the mask may then be wrong.
        prediction: the same before the decision, on the working grid.
        geometry: the way from there to the scan's own grid.
        head: what the probabilities' channels are.
    """

    mask: UInt8[np.ndarray, "x y z"]
    affine: Float[np.ndarray, "4 4"]
    labels: str
    names: dict[int, str]
    volumes_ml: dict[str, float]
    confidence: dict[str, confidence_lib.Confidence]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    prediction: ensembles.Prediction
    geometry: geometry.Geometry
    head: heads.Head

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the probabilities' channels."""
        return self.head.outputs

    @functools.cached_property
    def image(self) -> nib.Nifti1Image:
        """The mask as an image of nibabel, as `save` writes it."""
        return nifti.mask_image(
            self.mask, self.affine, self.geometry.stored, "kdnet_jax", self.names
        )

    def save(self, path: Path) -> None:
        """Writes the mask as .nii or .nii.gz.

        Raises:
            UserError: it cannot be written.
        """
        nifti.save(path, self.image)

    def probability(self, output: str) -> Float[np.ndarray, "x y z"]:
        """Returns the probability of one of `outputs`.

        Outside of the box that was segmented it is 0, of the background 1.

        Raises:
            UserError: there is no such output.
        """
        check_choice("output", output, self.outputs)
        index = self.outputs.index(output)
        channel = self.prediction.probabilities[..., index]
        return geometry.map_to_scan(channel, self.geometry, outside=self.head.outside[index])


@dataclasses.dataclass(frozen=True)
class Model:
    """One or several networks that segment scans.

    Attributes:
        ensemble: the networks.
        usual: what their training data look like, where it is known.
    """

    ensemble: ensembles.Ensemble
    usual: typed.JsonView | None

    @property
    def modalities(self) -> tuple[str, ...]:
        """The sequences that it needs."""
        return self.ensemble.modalities

    def segment(
        self,
        scan: Scan | Mapping[str, Scan],
        *,
        spacing: Sequence[float] | None = None,
        axes: str | None = None,
        orientation: str | None = None,
        labels: str | None = None,
        series: str = "",
        strip: str = "",
    ) -> Segmentation:
        """Segments a scan.

        Args:
            scan: a .nii or .nii.gz file, a folder or zip of DICOM with one series that can be
                meant, an image of nibabel, or an array "x y z" of intensities whose background is
                0; for a model of several sequences, one of these for each.
            spacing: of an array, mm along its axes.
            axes: of an array, the letters to which its axes grow, such as "LPS" (BraTS) or "RAS".
            orientation: "header", or three letters that overrule a wrong header; `None` as in
                training.
            labels: label values of the mask; of a glioma brats2018 to brats2024, or decathlon.
                `None`: brats2021, of other tasks the values of their own dataset.json.
            series: of DICOM, number or UID of the series; "": it is found by its tags.
            strip: hd-bet or synthstrip takes off the skull first; auto: what is installed; "": it
                is off.

        Raises:
            UserError: the scan cannot be used, or is not what the model needs.
        """
        task = self.ensemble.head.task
        labels = label_values.of_masks(labels, task, "labels")
        stripper = stripping.find(strip, task, self.modalities) if strip else None
        if orientation is not None:
            geometry.check_orientation(orientation)
        volumes = {
            name: _read(each, name, spacing, axes, task, series)
            for name, each in self._by_name(scan).items()
        }
        name = next(iter(volumes.values())).path.name
        orientation = orientation or self.ensemble.orientation
        visit, files = prepare.in_memory(volumes, name, task=task)
        stripped: list[str] = []
        if stripper:
            files, stripped = stripping.without_skull(stripper, files, orientation)
        case, notes, warnings = segmenting.prepare_scan(
            visit,
            files,
            task=task,
            spacing=self.ensemble.spacing,
            orientation=orientation,
            usual=self.usual,
        )
        prediction = self.ensemble.segment(case)
        confidence = self.ensemble.confidence(case, prediction)
        affine = case.geometry.affine
        return Segmentation(
            mask=label_values.from_classes(prediction.classes, labels, task=task),
            affine=affine,
            labels=labels,
            names=label_values.value_names(labels, task),
            volumes_ml=prediction_outputs.volumes_ml(prediction.classes, affine, task=task),
            confidence=confidence,
            notes=(*stripped, *notes),
            warnings=warnings,
            prediction=prediction,
            geometry=case.geometry,
            head=self.ensemble.head,
        )

    def _by_name(self, scan: Scan | Mapping[str, Scan]) -> Mapping[str, Scan]:
        needed = self.modalities
        if not isinstance(scan, Mapping):
            first, *others = needed
            if others:
                raise UserError(
                    f"the model needs {', '.join(needed)}: give a dictionary with a scan for each"
                    f"{_OR_LESS}."
                )
            return {first: scan}
        if set(scan) != set(needed):
            raise UserError(
                f"scans are given for {', '.join(map(str, scan)) or 'nothing'}, but the model "
                f"needs {', '.join(needed)}: give just these{_OR_LESS if needed[1:] else ''}."
            )
        return scan


def load(
    *paths: Path,
    sequences: str = "",
    bfloat16: bool | None = None,
    mirror: bool | None = None,
    whole: bool | None = None,
) -> Model:
    """Loads a model.

    Args:
        paths: the folder of a run, or what `python -m kdnet_jax.export` wrote; several are
            averaged.
        sequences: of the model's those that the scans have, with commas, where it was trained with
            modality dropout; "": all.
        bfloat16: compute in bfloat16, see `docs/prediction.md`; `None` as the model says.
        mirror: average over mirror images; `None` as the model says.
        whole: segment a scan in one pass, without windows; `None` as the model says.

    Raises:
        UserError: a folder is neither, they cannot be averaged, they need all their sequences, or
            this CPU has no bfloat16.
    """
    ensemble = ensembles.load_ensemble(
        [pathlib.Path(path) for path in paths],
        sequences=sequences,
        bfloat16=bfloat16,
        mirror=mirror,
        whole=whole,
    )
    return Model(ensemble, ensemble.training_data())


def _read(
    scan: Scan,
    name: str,
    spacing: Sequence[float] | None,
    axes: str | None,
    task: task_lib.Task,
    series: str,
) -> nifti.Volume:
    path = pathlib.Path(scan) if isinstance(scan, str | os.PathLike) else None
    found = path if path and dicom.is_dicom(path) else None
    if series and not found:
        raise UserError(f"series is {series!r}, but {name} is no DICOM: leave it out.")
    in_words = "spacing=(mm, mm, mm) and axes, the letters to which they grow, such as 'LPS'"
    if isinstance(scan, np.ndarray):
        if spacing is None or axes is None:
            raise UserError(f"an array does not say where its voxels lie: give {in_words}.")
        space = spaces.Space(_affine(spacing, axes))
        return nifti.from_memory(scan, space, f"the array of {name}")
    if spacing is not None or axes is not None:
        raise UserError(f"spacing and axes are for arrays; {name} itself says where it lies.")
    if isinstance(scan, spatialimages.SpatialImage):
        source = scan.get_filename() or f"the image of {name}"
        return nifti.from_memory(np.asanyarray(scan.dataobj), spaces.of_image(scan), source)
    if found:
        return dicom_stack.read(finding_scans.series_of(found, name, task, series))
    if path:
        return nifti.read_volume(path)
    raise UserError(
        f"{name} is a {type(scan).__name__}: give a .nii or .nii.gz file, an image of nibabel, or "
        f"a NumPy array with {in_words}."
    )


def _affine(spacing: Sequence[float], axes: str) -> Float[np.ndarray, "4 4"]:
    """Returns the affine of voxels that lie so, the first at the origin."""
    if not isinstance(axes, str) or axes == geometry.HEADER:
        raise UserError(f"axes is {axes!r}, but an array has no header: give letters as 'LPS'.")
    geometry.check_orientation(axes)
    edges = list(spacing) if np.ndim(spacing) == 1 else []
    if len(edges) != 3 or not all(isinstance(mm, numbers.Real) and 0 < mm < 100 for mm in edges):
        raise UserError(f"spacing is {spacing!r}: give three numbers above 0, in mm.")
    ornt = nib.orientations.axcodes2ornt(axes)
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, direction) in enumerate(ornt):
        affine[int(world), axis] = direction * edges[axis]
    return affine
