r"""Builds the dataset that training reads, from scans or from synthetic cases.

    python -m kdnet_jax.build_data --data_dir=DIR [--task=DATASET.json] [--release=auto] \
        [--modalities=t1ce,flair] [--spacing=1.0] [--output=datasets] [--workers=2]
    python -m kdnet_jax.build_data --phantom [--cases=60] [--seed=0] [--spacing=3.0]
    python -m kdnet_jax.build_data --phantom --scans=DIR    # NIfTI scans instead of a dataset

Training builds what it needs; building first shows early which scan is bad.
"""

import pathlib

from absl import flags

from kdnet_jax import cli, dataset_json
from kdnet_jax import task as task_lib
from kdnet_jax.data.phantom import phantom
from kdnet_jax.data.records import building, store
from kdnet_jax.data.scans import geometry, prepare
from kdnet_jax.errors import UserError, counted

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the scans.")
_RELEASE = flags.DEFINE_string("release", "auto", "Layout of the scans; auto recognises it.")
_TASK = flags.DEFINE_string(
    "task", task_lib.DEFAULT.name, "What is segmented: glioma, or a dataset.json of nnU-Net."
)
_MODALITIES = flags.DEFINE_string(
    "modalities", None, "Sequences to keep; by default all of the task."
)
_SPACING = flags.DEFINE_string(
    "spacing", None, "Working voxel size in mm, or native (1.0; 3.0 for the phantom)."
)
_ORIENTATION = flags.DEFINE_string(
    "orientation", geometry.HEADER, "header, or letters such as LPS where the headers are wrong."
)
_ALLOW_SKULL = flags.DEFINE_bool("allow_skull", False, "Take scans that are not skull-stripped.")
_LABEL_CONVENTION = flags.DEFINE_string(
    "label_convention",
    None,
    "What the label values mean, e.g. brats2023; by default the release's.",
)
_INCOMPLETE = flags.DEFINE_bool("incomplete", False, "Keep cases that lack some sequences.")
_SKIP_BAD_CASES = flags.DEFINE_bool("skip_bad_cases", False, "Leave out cases that fail.")
_OUTPUT = flags.DEFINE_string("output", str(building.DEFAULT_ROOT), "Root of built datasets.")
_WORKERS = flags.DEFINE_integer(
    "workers", building.DEFAULT_WORKERS, "Cases prepared at once.", lower_bound=1, upper_bound=1024
)
_PHANTOM = flags.DEFINE_bool("phantom", False, "Make synthetic cases instead of reading scans.")
_CASES = flags.DEFINE_integer("cases", 60, "Number of synthetic cases.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the synthetic cases.")
_SCANS = flags.DEFINE_string("scans", None, "With --phantom: write NIfTI scans into this folder.")


def main(argv: list[str]) -> None:
    """Builds what the flags ask for."""
    cli.refuse_arguments(argv)
    if _PHANTOM.value == bool(_DATA_DIR.value):
        raise UserError("give either --data_dir=DIR (scans) or --phantom (synthetic cases)")
    if _PHANTOM.value and _TASK.value != task_lib.DEFAULT.name:
        raise UserError(f"--task={_TASK.value}: the phantom is of {task_lib.DEFAULT.name} alone")
    if _SCANS.value:
        _write_scans(pathlib.Path(_SCANS.value))
    elif _DATA_DIR.value:
        _report(_build_scans(pathlib.Path(_DATA_DIR.value)))
    else:
        _report(_build_phantom())


def _write_scans(folder: pathlib.Path) -> None:
    if not _PHANTOM.value:
        raise UserError("--scans: needs --phantom; it writes synthetic scans")
    phantom.write_scans(folder, cases=_CASES.value, seed=_SEED.value, spacing=_phantom_spacing())
    print(f"{_CASES.value} synthetic cases are in {folder}")


def _build_phantom() -> store.CaseStore:
    return building.build_phantom(
        pathlib.Path(_OUTPUT.value),
        cases=_CASES.value,
        seed=_SEED.value,
        spacing=_phantom_spacing(),
        workers=_WORKERS.value,
    )


def _phantom_spacing() -> float:
    spacing = parse_spacing(_SPACING.value or "3.0")
    if not isinstance(spacing, float):
        raise UserError(f"--spacing={_SPACING.value}: the phantom needs one number in mm")
    return spacing


def _build_scans(scans: pathlib.Path) -> store.CaseStore:
    task = dataset_json.read(_TASK.value)
    wanted = None
    if _MODALITIES.value is not None:
        wanted = task.read_modalities(_MODALITIES.value, "--modalities")
    return building.build_scans(
        pathlib.Path(_OUTPUT.value),
        scans,
        release=_RELEASE.value,
        task=task,
        modalities=wanted,
        spacing=parse_spacing(_SPACING.value or "1.0"),
        orientation=_ORIENTATION.value,
        allow_skull=_ALLOW_SKULL.value,
        label_convention=_LABEL_CONVENTION.value,
        workers=_WORKERS.value,
        skip_bad_cases=_SKIP_BAD_CASES.value,
        incomplete=_INCOMPLETE.value,
    )


def parse_spacing(text: str) -> prepare.Spacing:
    """Returns the working spacing: one number, three separated by commas, or None for native.

    Raises:
        UserError: anything else.
    """
    if text == "native":
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, 3) or min(values) <= 0:
        raise UserError(
            f"--spacing={text}: expected a size in mm such as 1.0, three for the axes superior, "
            "posterior, left such as 2.0,1.0,1.0, or native"
        )
    return values[0] if len(values) == 1 else values


def _report(cases: store.CaseStore) -> None:
    for note in cases.notes:
        print(f"note: {note}")
    print(f"{counted(len(cases), 'case')} {'is' if len(cases) == 1 else 'are'} in {cases.folder}")


if __name__ == "__main__":
    cli.run(main)
