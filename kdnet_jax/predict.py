"""Segments scans: python -m kdnet_jax.predict --checkpoint=RUN --input=SCAN --output=MASK."""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np
from absl import flags

from kdnet_jax import cli, conventions
from kdnet_jax.errors import UnknownLayoutError, UserError, check_choice

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of a run", required=True)
_INPUT = flags.DEFINE_multi_string(
    "input",
    None,
    "A scan (.nii or .nii.gz), or a folder of scans or cases; may be given several times",
    required=True,
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "The mask's file for one scan, a folder for several", required=True
)
_LABELS = flags.DEFINE_string(
    "labels", "brats2021", "Label values of the mask: brats2021, brats2023 or decathlon"
)
_OVERLAY = flags.DEFINE_string(
    "overlay", None, "Also draw the mask: a .png file for one scan, a folder for several"
)
_ORIENTATION = flags.DEFINE_string(
    "orientation", "header", "header, or three letters such as LPS that overrule a wrong header"
)
_ALLOW_SKULL = flags.DEFINE_bool("allow_skull", False, "Go on with a scan that is not stripped")


@dataclasses.dataclass(frozen=True)
class Job:
    """One mask to make.

    Attributes:
        name: what its files are called.
        images: sequence -> file, or (file, channel).
        output: where the mask goes.
        overlay: where the picture goes, or `None`.
    """

    name: str
    images: dict[str, Any]
    output: pathlib.Path
    overlay: pathlib.Path | None


def main(argv: list[str]) -> None:
    """Predicts every scan that the flags name."""
    # Imported here: a mistake in the flags is told before the seconds that this takes.
    from kdnet_jax import runs
    from kdnet_jax.data import labels

    check_choice("--labels", _LABELS.value, labels.LABEL_CONVENTIONS)
    run = runs.load_run(pathlib.Path(_CHECKPOINT.value))
    modalities = run.settings.modalities
    print(
        f"{run.folder} ({run.config.role}, step {run.step}) was trained on "
        f"{', '.join(modalities)}: every input is taken as that."
    )
    inputs = [pathlib.Path(path) for path in [*_INPUT.value, *argv[1:]]]
    overlay = pathlib.Path(_OVERLAY.value) if _OVERLAY.value else None
    jobs = plan(find_scans(inputs, modalities), pathlib.Path(_OUTPUT.value), overlay)
    cli.enable_compilation_cache()
    for job in jobs:
        predict(run, job)


def find_scans(
    inputs: list[pathlib.Path], modalities: tuple[str, ...]
) -> list[tuple[str, dict[str, Any]]]:
    """Returns (name, sequence -> file) of every scan or case that the inputs name.

    A file is a scan of the network's one sequence. In a folder, cases in a known layout are taken
    by their sequence; where there is none and the network has one sequence, each NIfTI file is a
    scan.

    Raises:
        UserError: for a missing path, an empty folder, or one file where several are needed.
    """
    found = []
    for path in inputs:
        if path.is_dir():
            found += _scans_of_folder(path, modalities)
        elif len(modalities) > 1:
            raise UserError(
                f"{path}: this network needs {', '.join(modalities)} of each case. Give the folder "
                "of the case, or of the cases."
            )
        elif not path.exists():
            raise UserError(f"--input={path}: there is no such file or folder.")
        else:
            _warn_of_name(path, modalities[0])
            found.append((_stem(path), {modalities[0]: path}))
    names = [name for name, _ in found]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise UserError(
            f"Several inputs are called {doubled[0]!r}, so their masks would overwrite each other. "
            "Rename them, or predict them one by one."
        )
    return found


def _scans_of_folder(
    folder: pathlib.Path, modalities: tuple[str, ...]
) -> list[tuple[str, dict[str, Any]]]:
    from kdnet_jax.data import cases

    try:
        cohort = cases.find_cases(folder, "auto", modalities, labelled=False)
    except UnknownLayoutError as error:
        files = sorted(
            path
            for path in folder.iterdir()
            if path.name.lower().endswith((".nii", ".nii.gz")) and not path.name.startswith(".")
        )
        if len(modalities) > 1 or not files:
            raise UserError(f"--input={folder}: {error}") from error
        print(f"{folder}: no known layout; each of its {len(files)} files is taken as a scan")
        for path in files:
            _warn_of_name(path, modalities[0])
        return [(_stem(path), {modalities[0]: path}) for path in files]
    for note in cohort.notes:
        print(f"note: {note}")
    return [
        (case.case_id, {name: case.images[name] for name in modalities}) for case in cohort.cases
    ]


def _warn_of_name(path: pathlib.Path, modality: str) -> None:
    from kdnet_jax.data import layouts

    ending = _stem(path).lower().replace("-", "_").rsplit("_", 1)[-1]
    sequence = layouts.SEQUENCES.get(ending, modality)
    if sequence != modality:
        print(
            f"warning: {path} is named as {sequence}, but the network was trained on {modality}. "
            "Its mask means nothing if it is."
        )


def _stem(path: pathlib.Path) -> str:
    return path.name[: path.name.lower().rfind(".nii")] or path.name


def plan(
    scans: list[tuple[str, dict[str, Any]]], output: pathlib.Path, overlay: pathlib.Path | None
) -> list[Job]:
    """Says where every mask and picture goes, before the first is made.

    Raises:
        UserError: if a file name does not fit, or an output would overwrite an input.
    """
    single = len(scans) == 1 and output.name.lower().endswith((".nii", ".nii.gz"))
    if len(scans) > 1 and output.name.lower().endswith((".nii", ".nii.gz")):
        raise UserError(
            f"--output={output} is one file, but there are {len(scans)} inputs. Give a folder."
        )
    one_picture = overlay is not None and (single or overlay.suffix.lower() == ".png")
    if one_picture and (len(scans) > 1 or overlay.suffix.lower() != ".png"):
        raise UserError(
            f"--overlay={overlay}: give a name that ends in .png for one scan, or a folder for "
            "several."
        )
    jobs = [
        Job(
            name,
            images,
            output if single else output / f"{name}.nii.gz",
            overlay if one_picture or overlay is None else overlay / f"{name}.png",
        )
        for name, images in scans
    ]
    for job in jobs:
        for source in job.images.values():
            path = source[0] if isinstance(source, tuple) else source
            if job.output.exists() and os.path.samefile(job.output, path):
                raise UserError(f"--output={job.output} is the input itself. Give another name.")
    return jobs


def predict(run: Any, job: Job) -> None:
    """Reads, predicts and writes one scan, and says what it found."""
    from kdnet_jax import runs
    from kdnet_jax.data import geometry, labels, nifti, prepare

    case, notes = prepare.prepare_scan(
        job.images,
        spacing=run.settings.spacing,
        orientation=_ORIENTATION.value,
        allow_skull=_ALLOW_SKULL.value,
    )
    for note in notes:
        print(f"note: {note}")
    probs = run.probabilities(case.image)
    classes = runs.segmentation_on_scan(probs, run.settings.network.head, case.geometry)
    nifti.write_mask(job.output, labels.from_classes(classes, _LABELS.value), case.geometry.affine)
    if job.overlay:
        _draw(case, classes, job)
    voxel_ml = float(np.prod(geometry.spacing_spl(case.geometry.affine))) / 1000
    volumes = {
        region: float(conventions.region_mask(classes, region).sum()) * voxel_ml
        for region in conventions.REGIONS
    }
    found = ", ".join(f"{region} {volume:.1f} ml" for region, volume in volumes.items())
    print(f"{job.name}: {found if volumes['WT'] else 'no tumour found'} -> {job.output}")


def _draw(case: Any, classes: np.ndarray, job: Job) -> None:
    from kdnet_jax.data import geometry
    from kdnet_jax.reporting import figures

    shown = figures.shown_sequence(case.modalities)
    figure = figures.overlay(
        case.image[..., case.modalities.index(shown)].astype(np.float32),
        None,
        geometry.to_working(classes, case.geometry, 0),
        spacing=case.geometry.spacing,
        title=f"{job.name}, {shown}: prediction",
    )
    figures.save_png(figure, job.overlay)


if __name__ == "__main__":
    cli.run(main)
