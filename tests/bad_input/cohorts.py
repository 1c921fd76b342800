"""Malformed folders of cases: each entry damages a sound cohort in the layout of BraTS 2021."""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any, Final

from tests.bad_input import scans

CASE: Final = "BraTS2021_00001"


@dataclasses.dataclass(frozen=True)
class Cohort:
    """A malformed folder of cases.

    Attributes:
        name: what is wrong with it.
        damage: does it to a folder that holds a sound cohort.
        says: what the message must name.
        surveyed: whether check_data finds cases all the same, and lists what is wrong (exit 1).
        predicted: whether `predict` takes it: what is wrong concerns the references alone.
    """

    name: str
    damage: Callable[[pathlib.Path], None]
    says: str
    surveyed: bool = False
    predicted: bool = False


def _emptied(folder: pathlib.Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path)


def _replaced_by_file(folder: pathlib.Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"PK\3\4 a release, still packed")


def _circle_of_folders(folder: pathlib.Path) -> None:
    _emptied(folder)
    (folder / "inner").mkdir()
    os.symlink(folder, folder / "inner" / "up")
    os.symlink("first", folder / "second")
    os.symlink("second", folder / "first")


def _only_text(folder: pathlib.Path) -> None:
    _emptied(folder)
    (folder / "readme.txt").write_text("no scans")


def _without_sequence(folder: pathlib.Path) -> None:
    (folder / CASE / f"{CASE}_t1.nii.gz").unlink()


def _without_segmentations(folder: pathlib.Path) -> None:
    for path in folder.rglob("*_seg.nii.gz"):
        path.unlink()


def _doubled_case(folder: pathlib.Path) -> None:
    shutil.copytree(folder / CASE, folder / "copy" / CASE)


def _two_releases(folder: pathlib.Path) -> None:
    shutil.copytree(folder / CASE, folder / "BraTS20_Training_001")


def _foreign_name(folder: pathlib.Path) -> None:
    case = folder / CASE
    (case / f"{CASE}_t2.nii.gz").rename(case / "BraTS2021_00777_t2.nii.gz")


def _two_of_a_sequence(folder: pathlib.Path) -> None:
    case = folder / CASE
    shutil.copy(case / f"{CASE}_t2.nii.gz", case / f"{CASE}_t2w.nii.gz")


def _no_names(folder: pathlib.Path) -> None:
    _emptied(folder)
    for number in range(3):
        scans.write(folder / f"scan{number}.nii.gz", scans.encode(scans.brain()))


def _other_grid(folder: pathlib.Path) -> None:
    path = folder / CASE / f"{CASE}_t1ce.nii.gz"
    path.unlink()
    scans.write(path, scans.encode(scans.brain()[:-2]))


def _elsewhere(folder: pathlib.Path) -> None:
    path = folder / CASE / f"{CASE}_t1ce.nii.gz"
    path.unlink()
    affine = scans.AFFINE.copy()
    affine[0, 3] += scans.SPACING_MM
    scans.write(path, scans.encode(scans.brain(), affine))


def _reference_on_other_grid(folder: pathlib.Path) -> None:
    path = folder / CASE / f"{CASE}_seg.nii.gz"
    path.unlink()
    scans.write(path, scans.encode(scans.labels()[:-2]))


def _decathlon(name: str, description: Any, says: str = "dataset.json") -> Cohort:
    def damage(folder: pathlib.Path) -> None:
        _emptied(folder)
        for part in ("imagesTr", "labelsTr"):
            (folder / part).mkdir()
            scans.write(folder / part / "BRATS_001.nii.gz", scans.encode(scans.brain()))
        if description is not None:
            text = description if isinstance(description, str) else json.dumps(description)
            (folder / "dataset.json").write_text(text)

    return Cohort(name, damage, says, surveyed=True)


def _own(name: str, table: bytes) -> Cohort:
    def damage(folder: pathlib.Path) -> None:
        for number, case in enumerate(sorted(folder.iterdir())):
            for path in case.iterdir():
                path.rename(case / path.name.rsplit("_", 1)[1])
            case.rename(folder / f"own{number}")
        (folder / "patients.csv").write_bytes(table)

    return Cohort(name, damage, "patients.csv", surveyed=True)


_CHANNELS: Final = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
_LABELS: Final = {"0": "background", "1": "edema", "2": "non-enhancing", "3": "enhancing"}

BAD: Final = (
    Cohort("empty folder", _emptied, "cohort"),
    Cohort("archive in place of a folder", _replaced_by_file, "cohort"),
    Cohort("links in a circle", _circle_of_folders, "cohort"),
    Cohort("no scans", _only_text, "readme.txt"),
    Cohort("a sequence is missing", _without_sequence, CASE, surveyed=True),
    Cohort("no segmentations", _without_segmentations, "cohort", surveyed=True, predicted=True),
    Cohort("a case twice", _doubled_case, CASE, surveyed=True),
    Cohort("two releases", _two_releases, "brats2020", surveyed=True),
    Cohort("a file of another case", _foreign_name, "BraTS2021_00777", surveyed=True),
    Cohort("two files of a sequence", _two_of_a_sequence, "_t2w.nii.gz", surveyed=True),
    Cohort("names that tell nothing", _no_names, "cohort"),
    Cohort("sequences on two grids", _other_grid, CASE, surveyed=True),
    Cohort("a sequence that lies elsewhere", _elsewhere, CASE, surveyed=True),
    Cohort(
        "a reference on another grid", _reference_on_other_grid, CASE, surveyed=True, predicted=True
    ),
    _decathlon("Decathlon without dataset.json", None),
    _decathlon("dataset.json is no JSON", "{"),
    _decathlon("dataset.json is a list", []),
    _decathlon("dataset.json is too deep", "[" * 100_000),
    _decathlon("dataset.json without labels", {"modality": _CHANNELS}),
    _decathlon("dataset.json of numbers", {"modality": {"0": 1}, "labels": {"1": 5}}),
    _decathlon("dataset.json of another task", {"modality": {"0": "CT"}, "labels": {"1": "edema"}}),
    _decathlon(
        "dataset.json of other labels", {"modality": _CHANNELS, "labels": _LABELS | {"1": "<b>"}}
    ),
    _own("patients.csv is binary", bytes(range(256)) * 4),
    _own("patients.csv without columns", b"a,b\n1,2\n"),
    _own(
        "patients.csv with an unknown grade",
        b"case_id,patient_id,grade\n" + b"".join(b"own%d,p%d,IV\n" % (n, n) for n in range(4)),
    ),
    _own("patients.csv is cut off", b"case_id,patient_id,grade\nown0,p0"),
)
