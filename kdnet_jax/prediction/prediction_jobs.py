"""Jobs of `predict`: its scans and the place of each output, settled before the first."""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from kdnet_jax import task as task_lib
from kdnet_jax.data.scans import dicom, dicom_stack, nifti, nifti_header, prepare
from kdnet_jax.data.sources import cases, decathlon
from kdnet_jax.errors import UserError
from kdnet_jax.prediction import finding_scans

_NIFTI = (".nii", ".nii.gz")
_SEGMENTATION = ".dcm"
_TABLES = (".csv", ".json")
# Of files that someone may expect here; a folder may have a dot in its name, as run.v2.
_OTHER_FILES = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".mha", ".mhd", ".nrrd", ".nhdr", ".img", ".hdr"),
    *(".mgz", ".gz", ".zip", ".npy", ".npz", ".h5"),
)


@dataclasses.dataclass(frozen=True)
class Job:
    """One scan to segment.

    Attributes:
        name: what the scan is called.
        images: sequence -> file, (file, channel), or series of DICOM.
        output: where the mask goes: a NIfTI file, or of a series a DICOM SEG.
        overlay: where the picture goes, or `None`.
        probabilities: where the probabilities go, or `None`; beside them, `.json`, what they are.
        entropy: where the entropy goes, or `None`.
        mutual_information: likewise.
        reference: the series of DICOM that the scan, a file, was made from, or `None`.
    """

    name: str
    images: Mapping[str, finding_scans.Source]
    output: pathlib.Path
    overlay: pathlib.Path | None = None
    probabilities: pathlib.Path | None = None
    entropy: pathlib.Path | None = None
    mutual_information: pathlib.Path | None = None
    reference: dicom.Series | None = None

    @property
    def scanned(self) -> dicom.Series | None:
        """The series of DICOM that is the scan, if it is one."""
        first = next(iter(self.images.values()))
        return first if isinstance(first, dicom.Series) else None

    @property
    def series(self) -> dicom.Series | None:
        """The series of DICOM that a SEG refers to, if there is one."""
        return self.scanned or self.reference

    @property
    def is_dicom(self) -> bool:
        """Whether the mask is a DICOM SEG."""
        return self.output.suffix.lower() == _SEGMENTATION

    @property
    def outputs(self) -> list[pathlib.Path]:
        """All files that are written."""
        paths = [self.output, self.overlay, self.probabilities]
        paths += [description(self.probabilities)] if self.probabilities else []
        return [path for path in [*paths, self.entropy, self.mutual_information] if path]


def description(probabilities: pathlib.Path) -> pathlib.Path:
    """Returns the file beside a file of probabilities that says what its channels are."""
    return probabilities.with_name(f"{nifti_header.stem(probabilities)}.json")


def plan(
    scans: Sequence[tuple[str, Mapping[str, finding_scans.Source]]],
    output: pathlib.Path,
    *,
    overlay: pathlib.Path | None = None,
    probabilities: bool = False,
    uncertainty: bool = False,
    volumes: pathlib.Path | None = None,
    record: pathlib.Path | None = None,
    reference: dicom.Series | None = None,
) -> list[Job]:
    """Says where every file goes, before the first is made.

    Args:
        scans: name, and sequence -> file.
        output: the mask of one scan, or a folder.
        overlay: the picture of one scan, or a folder.
        probabilities: also `<mask>_prob.nii.gz`.
        uncertainty: also `<mask>_entropy.nii.gz` and `<mask>_mutual_information.nii.gz`.
        volumes: the table of all scans.
        record: of the command.
        reference: the series of DICOM that the one scan, a file, was made from.

    Raises:
        UserError: a file name does not fit, or a file would overwrite an input or another output.
    """
    file = output.name.lower().endswith((*_NIFTI, _SEGMENTATION))
    single = len(scans) == 1 and file
    if len(scans) > 1 and file:
        raise UserError(
            f"--output={output} is one file, but there are {len(scans)} inputs. Give a folder."
        )
    if output.suffix.lower() in _OTHER_FILES and not (file or output.is_dir()):
        raise UserError(
            f"--output={output} ends in {output.suffix}, which no mask is written as. Give a name "
            "that ends in .nii.gz or .nii (of DICOM also .dcm), or a folder."
        )
    picture = overlay is not None and overlay.suffix.lower() == ".png"
    one_picture = overlay is not None and (single or picture)
    if one_picture and (len(scans) > 1 or not picture):
        raise UserError(
            f"--overlay={overlay}: give a name that ends in .png for one scan, or a folder for "
            "several."
        )
    if volumes is not None and volumes.suffix.lower() not in _TABLES:
        raise UserError(f"--volumes={volumes}: give a name that ends in .csv or .json.")
    if record is not None and record.suffix.lower() != ".json":
        raise UserError(f"--manifest={record}: give a name that ends in .json.")
    jobs = []
    for name, images in scans:
        mask = output if single else output / f"{name}.nii.gz"
        beside = {
            kind: mask.with_name(f"{nifti_header.stem(mask)}_{suffix}.nii.gz") if wanted else None
            for kind, suffix, wanted in (
                ("probabilities", "prob", probabilities),
                ("entropy", "entropy", uncertainty),
                ("mutual_information", "mutual_information", uncertainty),
            )
        }
        picture = overlay if one_picture or overlay is None else overlay / f"{name}.png"
        jobs.append(Job(name, images, mask, picture, **beside, reference=reference))
    for job in jobs:
        if job.is_dicom and not job.series:
            raise UserError(
                f"--output={output}: a DICOM SEG refers to a series of DICOM, and the input is "
                "another file. Give the series that it was made from (--dicom=FOLDER), or an "
                "output that ends in .nii.gz."
            )
        if reference and (job.scanned or not job.is_dicom):
            raise UserError(
                "--dicom: names the series that a .nii.gz was made from, for an output that ends "
                "in .dcm. Leave it out."
            )
    _check_collisions(jobs, [path for path in (volumes, record) if path])
    return jobs


def check_headers(
    scans: Iterable[Mapping[str, finding_scans.Source]],
    task: task_lib.Task,
    orientation: str | None = None,
) -> None:
    """Refuses scans that cannot be used as far as their headers tell, before the first is made.

    Args:
        scans: the files of each, sequence -> file, (file, channel), or series.
        task: what is segmented in them.
        orientation: see `prepare.prepare_case`; `None` leaves the grids to another check.

    Raises:
        UserError: with every file that is wrong, and every scan whose sequences share no grid.
    """
    wrong = [error for images in scans for error in _scan_errors(images, task, orientation)]
    if len(wrong) == 1:
        raise UserError(wrong[0])
    if wrong:
        listed = "".join(f"\n  {error}" for error in wrong)
        raise UserError(f"{len(wrong)} problems with the files; no scan was segmented:{listed}")


def _scan_errors(
    images: Mapping[str, finding_scans.Source], task: task_lib.Task, orientation: str | None
) -> list[str]:
    errors: list[str] = []
    files: dict[str, cases.Source] = {}
    for name, source in images.items():
        if not isinstance(source, dicom.Series):
            files[name] = source
            continue
        try:
            dicom_stack.check(source)
        except UserError as error:
            errors.append(str(error))
    sources = (each if isinstance(each, tuple) else (each, None) for each in files.values())
    several_in = {path: channel is not None for path, channel in sources}
    for path, several in several_in.items():
        try:
            header = nifti.read_header(path, channels=several)
            if several:
                decathlon.check_channels(path, header.shape, task)
        except UserError as error:
            errors.append(str(error))
    # The channels of one file are on one grid; and of a header that is wrong, that alone is said.
    if orientation is not None and len(several_in) > 1 and not errors:
        try:
            prepare.read_grid(files, task=task, orientation=orientation)
        except UserError as error:
            errors.append(str(error))
    return errors


def check_references(jobs: Iterable[Job]) -> None:
    """Refuses scans that do not lie on the grid of their series of DICOM, by their headers.

    Raises:
        UserError: such a scan, or a series that is no regular stack.
    """
    for job in jobs:
        if job.reference:
            dicom_stack.check(job.reference)
            (path, *_) = _paths(next(iter(job.images.values())))
            header = nifti.read_header(path, channels=True)
            dicom_stack.check_grid(job.reference, header.space.affine, header.shape, str(path))


def _paths(source: finding_scans.Source) -> list[pathlib.Path]:
    if isinstance(source, dicom.Series):
        return [source.place, *(file.path for file in source.files)]
    return [source[0] if isinstance(source, tuple) else source]


def _check_collisions(jobs: Sequence[Job], beside: Sequence[pathlib.Path]) -> None:
    outputs = [*itertools.chain.from_iterable(job.outputs for job in jobs), *beside]
    sources = {
        os.path.realpath(path)
        for job in jobs
        for source in job.images.values()
        for path in _paths(source)
    }
    taken: set[str] = set()
    for path in outputs:
        real = os.path.realpath(path)
        if real in sources:
            raise UserError(f"{path} would be written, but it is the input itself: choose another.")
        if real in taken:
            raise UserError(
                f"{path} would be written twice. Rename the inputs, or predict them one by one."
            )
        taken.add(real)
