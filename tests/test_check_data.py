"""The command on folders of cases that are broken on purpose, one way each."""

import csv
import pathlib
import re
import shutil
import subprocess
from collections.abc import Callable

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from kdnet_jax import dataset_json
from kdnet_jax.data.checks import case_checks, problems
from kdnet_jax.data.scans import prepare
from kdnet_jax.data.sources import cases
from kdnet_jax.errors import UserError
from kdnet_jax.reports import data_summary, data_survey
from tests.helpers import commands, made_tasks

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE = (24, 20, 16)
# Of two healthy tissues, CSF, ED and ET.
LOOKS = {
    "t1": (300, 250, 100, 240, 230),
    "t1ce": (300, 250, 100, 230, 600),
    "t2": (200, 250, 600, 400, 380),
    "flair": (250, 270, 100, 500, 420),
}


def write_case(
    root: pathlib.Path, number: int, et: int = 100, affine: np.ndarray = LPS, name: str = ""
) -> pathlib.Path:
    """Writes a BraTS 2021 case: a box of tissues, 60 voxels of edema, `et` of enhancing tumour."""
    folder = root / (name or f"BraTS2021_{number:05}")
    folder.mkdir(parents=True)
    rng = np.random.default_rng(number)
    tissue = np.zeros(SHAPE, int)
    tissue[3:-3, 3:-3, 3:-3] = (
        rng.choice([0, 1, 2], (9, 7, 5)).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    )
    brain = np.zeros(SHAPE, bool)
    brain[3:-3, 3:-3, 3:-3] = True
    label = np.zeros(SHAPE, np.uint8)
    edema = np.repeat([2, 0], [60, 40]).astype(np.uint8)
    label[4:9, 5:9, 5:10] = rng.permutation(edema).reshape(5, 4, 5)
    box = np.zeros((5, 4, 5), np.uint8)
    box.reshape(-1)[:et] = 4
    label[10:15, 5:9, 5:10] = box
    tissue[label == 2], tissue[label == 4] = 3, 4
    for sequence, looks in LOOKS.items():
        image = np.where(brain, np.array(looks)[tissue] + rng.normal(0, 15, SHAPE), 0)
        save(folder, sequence, image.astype(np.float32), affine)
    save(folder, "seg", label, affine)
    return folder


def file_of(folder: pathlib.Path, sequence: str) -> pathlib.Path:
    return folder / f"{folder.name}_{sequence}.nii.gz"


def save(folder: pathlib.Path, sequence: str, data: np.ndarray, affine: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(data, affine), file_of(folder, sequence))


def change(folder: pathlib.Path, sequence: str, edit: Callable[[np.ndarray], np.ndarray]) -> None:
    image = nib.load(file_of(folder, sequence))
    save(folder, sequence, edit(np.asarray(image.dataobj).copy()), image.affine)


def cut_off(folder: pathlib.Path, sequence: str) -> None:
    path = file_of(folder, sequence)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_value(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def edit(data: np.ndarray) -> np.ndarray:
        data[4, 4, 4] = value
        return data

    return edit


def with_skull(data: np.ndarray) -> np.ndarray:
    return data + np.random.default_rng(0).uniform(50, 60, SHAPE).astype(np.float32)


def moved(folder: pathlib.Path, sequence: str) -> None:
    affine = LPS.copy()
    affine[0, 3] = 30
    save(folder, sequence, np.asarray(nib.load(file_of(folder, sequence)).dataobj), affine)


def stored(folder: pathlib.Path, sequence: str) -> np.ndarray:
    return np.asarray(nib.load(file_of(folder, sequence)).dataobj)


def turned(folder: pathlib.Path, sequence: str) -> None:
    image = nib.as_closest_canonical(nib.load(file_of(folder, sequence)))
    save(folder, sequence, np.asarray(image.dataobj), image.affine)


def with_header(
    folder: pathlib.Path, sequence: str, edit: Callable[[nib.Nifti1Header], None]
) -> None:
    header = nib.load(file_of(folder, sequence)).header
    edit(header)
    image = nib.Nifti1Image(stored(folder, sequence), header.get_best_affine(), header)
    nib.save(image, file_of(folder, sequence))


def no_codes(header: nib.Nifti1Header) -> None:
    header["sform_code"] = header["qform_code"] = 0


def other_sizes(header: nib.Nifti1Header) -> None:
    header["pixdim"][1] = 1.5


@pytest.fixture
def data(tmp_path: pathlib.Path) -> pathlib.Path:
    """Three good cases (ET 100, none and 7 voxels) and one whose header is turned over."""
    root = tmp_path / "data"
    for number, et in enumerate((100, 0, 7)):
        write_case(root, number, et)
    write_case(root, 3, affine=np.diag([1.0, 1.0, 2.0, 1.0]))
    return root


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return commands.run("check_data", *arguments)


def checked(root: pathlib.Path) -> list[problems.Problem]:
    cohort, rows = cases.survey_cases(root)
    return rows + data_survey.check_cases(cohort.cases)[1]


def test_counts_and_odd_header(data: pathlib.Path) -> None:
    cohort, rows = cases.survey_cases(data)
    assert rows == []
    reports, rows = data_survey.check_cases(cohort.cases)
    assert [r.voxels for r in reports] == [
        (0, 60, 100),
        (0, 60, 0),
        (0, 60, 7),
        (0, 60, 100),
    ]
    assert reports[0].grid == "24x20x16"
    assert reports[0].spacing_mm == "1x1x1"
    assert reports[3].spacing_mm == "1x1x2"
    assert [(row.case, row.severity) for row in rows] == [("BraTS2021_00003", "warning")]
    assert "says RAS, most cases have LPS" in rows[0].finding
    text = data_summary.summary(cohort, reports, rows)
    assert "4, without error 4" in text
    assert "LPS (3), RAS (1)" in text
    assert "without ET            1 (BraTS2021_00001)" in text
    assert "ET below 50 voxels    1 (BraTS2021_00002)" in text
    assert "0 problems to fix (errors), 1 to look at (warnings)" in text


def test_an_orientation_that_is_given_overrides_headers(data: pathlib.Path) -> None:
    cohort, _ = cases.survey_cases(data)
    assert data_survey.check_cases(cohort.cases, "LPS")[1] == []


BROKEN: dict[str, tuple[Callable[[pathlib.Path], object], str, str, str]] = {
    # what is done to the case, the file, the severity, part of the finding
    "missing": (lambda f: file_of(f, "t2").unlink(), "", "error", "no file for t2"),
    "cut off": (lambda f: cut_off(f, "t1"), "t1", "error", "damaged or cut off"),
    "grid": (
        lambda f: change(f, "flair", lambda d: d[::2, ::2, ::2].copy()),
        "flair",
        "error",
        "has 12 x 10 x 8 voxels; the other files of the case have 24 x 20 x 16",
    ),
    "affine": (lambda f: moved(f, "t1ce"), "t1ce", "error", "places the voxels elsewhere"),
    "label in another order": (
        lambda f: turned(f, "seg"),
        "",
        "warning",
        "voxels of label are stored in another order (RAS) than those of t1 (LPS)",
    ),
    "label that lies elsewhere": (
        lambda f: save(f, "seg", stored(f, "seg"), LPS @ np.diag([-1.0, 1, 1, 1])),
        "seg",
        "error",
        "places the voxels elsewhere",
    ),
    "no orientation": (
        lambda f: [with_header(f, s, no_codes) for s in (*LOOKS, "seg")],
        "",
        "error",
        "does not say how the voxels are stored",
    ),
    "other sizes": (
        lambda f: [with_header(f, s, other_sizes) for s in (*LOOKS, "seg")],
        "",
        "warning",
        "by its sform the voxels are 1 x 1 x 1 mm, by its pixdim 1.5 x 1 x 1 mm",
    ),
    "scaled label": (
        lambda f: save(f, "seg", stored(f, "seg") * np.float32(1.001), LPS),
        "seg",
        "warning",
        "label values were stored scaled",
    ),
    "nan": (lambda f: change(f, "t2", with_value(np.nan)), "t2", "error", "1 of 7680 voxels"),
    "inf": (lambda f: change(f, "t2", with_value(-np.inf)), "t2", "error", "NaN or infinite"),
    "constant": (lambda f: change(f, "t1", lambda d: 0 * d + 7), "t1", "error", "every voxel is 7"),
    "one value in the brain": (
        lambda f: change(f, "t1", lambda d: np.where(d > 0, 9, 0).astype(np.float32)),
        "t1",
        "error",
        "every voxel of the brain is 9",
    ),
    "label value": (lambda f: change(f, "seg", with_value(3)), "seg", "error", "holds the label 3"),
    "label cut off": (lambda f: cut_off(f, "seg"), "seg", "error", "damaged or cut off"),
    "empty label": (lambda f: change(f, "seg", lambda d: 0 * d), "seg", "warning", "is empty"),
    "no label": (lambda f: file_of(f, "seg").unlink(), "", "warning", "no segmentation"),
    "label turned over": (
        lambda f: change(f, "seg", lambda d: np.roll(d, 10, axis=2)),
        "seg",
        "warning",
        "lie within the brain",
    ),
    "skull": (
        lambda f: change(f, "flair", with_skull),
        "flair",
        "error",
        "the skull seems to be on",
    ),
    "copied": (
        lambda f: shutil.copy(file_of(f, "t1"), file_of(f, "t1ce")),
        "t1ce",
        "error",
        "t1ce repeats t1 (",
    ),
    "swapped": (
        lambda f: (
            file_of(f, "t2").rename(f / "kept"),
            file_of(f, "t1").rename(file_of(f, "t2")),
            (f / "kept").rename(file_of(f, "t1")),
        ),
        "",
        "warning",
        "t1 and t2 seem to be swapped",
    ),
}


def test_a_mask_of_the_brain_in_the_label_s_place_is_an_error(tmp_path: pathlib.Path) -> None:
    folder = write_case(tmp_path, 1)
    brain = np.asarray(nib.load(file_of(folder, "t1")).dataobj) != 0
    save(folder, "seg", brain.astype(np.uint8), LPS)
    (row,) = checked(tmp_path)
    assert (row.severity, row.file) == (problems.ERROR, str(file_of(folder, "seg")))
    assert "the tumour fills 100% of the brain" in row.finding


@pytest.mark.parametrize("name", BROKEN)
def test_each_problem_is_told_and_is_an_error_if_training_refuses_the_case(
    tmp_path: pathlib.Path, name: str
) -> None:
    write_case(tmp_path, 0)
    folder = write_case(tmp_path, 1)
    spoil, sequence, severity, finding = BROKEN[name]
    spoil(folder)
    rows = checked(tmp_path)
    assert [(row.case, row.severity) for row in rows] == [(folder.name, severity)]
    assert rows[0].file == str(file_of(folder, sequence) if sequence else folder)
    assert finding in rows[0].finding
    assert rows[0].remedy
    # What training refuses is an error; of scans that may lie mirrored it warns.
    if name not in ("no label", "no orientation"):
        try:
            for case in cases.find_cases(tmp_path).cases:
                prepare.prepare_case(case, spacing=None)
            refused = False
        except UserError:
            refused = True
        assert refused == (severity == problems.ERROR)


def test_several_problems_of_one_case_are_all_told(tmp_path: pathlib.Path) -> None:
    write_case(tmp_path, 0)
    folder = write_case(tmp_path, 1)
    file_of(folder, "t1").unlink()
    cut_off(folder, "t1ce")
    change(folder, "t2", with_value(np.nan))
    change(folder, "seg", with_value(9))
    found = sorted(pathlib.Path(row.file).name for row in checked(tmp_path))
    assert found == [
        folder.name,
        *(file_of(folder, sequence).name for sequence in ("seg", "t1ce", "t2")),
    ]


def test_a_case_of_which_only_the_label_can_be_read(tmp_path: pathlib.Path) -> None:
    write_case(tmp_path, 0)
    folder = write_case(tmp_path, 1)
    for sequence in LOOKS:
        cut_off(folder, sequence)
    cohort, _ = cases.survey_cases(tmp_path)
    reports, rows = data_survey.check_cases(cohort.cases)
    assert [row.severity for row in rows] == ["error"] * 4
    assert (reports[1].grid, reports[1].voxels[1]) == ("24x20x16", 60)
    figure = data_survey.sheet(cohort.cases, rows, "title")
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert "no t1\nto show" in texts
    cut_off(folder, "seg")
    reports, rows = data_survey.check_cases(cohort.cases)
    assert len(rows) == 5
    assert (reports[1].grid, reports[1].voxels) == ("", None)


def test_a_patient_in_two_releases(tmp_path: pathlib.Path) -> None:
    write_case(tmp_path / "new", 0)
    write_case(tmp_path / "new", 1)
    write_case(tmp_path / "old", 1, name="BraTS20_Training_007")
    rows = checked(tmp_path)
    assert "holds several releases: brats2020 (1 case), brats2021 (2 cases)" in rows[0].finding
    assert [row.case for row in rows[1:]] == ["BraTS2021_00001", "BraTS20_Training_007"]
    assert all("t1, t1ce, t2, flair, segmentation: the same" in row.finding for row in rows[1:])


def stored_anew(folder: pathlib.Path, store: Callable[[nib.Nifti1Image], nib.Nifti1Image]) -> None:
    for sequence in (*LOOKS, "seg"):
        image = store(nib.load(file_of(folder, sequence)))
        nib.save(image, file_of(folder, sequence))


@pytest.mark.parametrize(
    "store",
    [
        lambda i: nib.Nifti1Image(np.round(i.get_fdata()).astype(np.int16), i.affine),
        lambda i: nib.Nifti1Image(np.asarray(i.dataobj), np.eye(4)),
        lambda i: nib.Nifti1Image(np.asarray(i.dataobj)[::-1], np.diag([1.0, -1, 1, 1])),
        lambda i: nib.Nifti1Image(np.pad(np.asarray(i.dataobj), 4), i.affine),
    ],
    ids=["type", "lost header", "another orientation", "padding"],
)
def test_a_copy_under_another_name_is_found(
    tmp_path: pathlib.Path, store: Callable[[nib.Nifti1Image], nib.Nifti1Image]
) -> None:
    write_case(tmp_path, 0)
    write_case(tmp_path, 1)
    stored_anew(write_case(tmp_path, 1, name="BraTS2021_00077"), store)
    rows = [row for row in checked(tmp_path) if row.severity == problems.ERROR]
    assert [row.case for row in rows] == ["BraTS2021_00001", "BraTS2021_00077"]
    assert "t1, t1ce, t2, flair, segmentation: the same content" in rows[0].finding


def test_a_case_id_in_two_folders(tmp_path: pathlib.Path) -> None:
    write_case(tmp_path / "a", 0)
    write_case(tmp_path / "b", 0)
    rows = checked(tmp_path)
    assert [row.severity for row in rows] == ["error", "warning", "warning"]
    assert "is duplicate" in rows[0].finding
    assert "the same content" in rows[1].finding


def test_a_sequence_that_no_case_has_is_told_once(tmp_path: pathlib.Path) -> None:
    for number in range(3):
        file_of(write_case(tmp_path, number), "flair").unlink()
    rows = checked(tmp_path)
    assert [(row.case, row.severity) for row in rows] == [("", "error")]
    assert "no case has flair; there are t1, t1ce, t2" in rows[0].finding


def test_a_case_without_any_wanted_file_is_told(tmp_path: pathlib.Path) -> None:
    write_case(tmp_path, 0)
    folder = write_case(tmp_path, 1)
    for sequence in ("t2", "seg"):
        file_of(folder, sequence).unlink()
    cohort, rows = cases.survey_cases(tmp_path, modalities=("t2",))
    reports, more = data_survey.check_cases(cohort.cases)
    assert len(reports) == 2
    assert [(row.case, row.file) for row in rows + more] == [(folder.name, str(folder))]


def test_a_decathlon_without_its_description(tmp_path: pathlib.Path) -> None:
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "BRATS_001.nii.gz").touch()
    cohort, rows = cases.survey_cases(tmp_path)
    assert cohort.cases == []
    assert "dataset.json: missing" in f"{rows[0].file}: {rows[0].finding}"
    assert {row.severity for row in rows} == {"error"}


def test_channels_of_one_file_that_cannot_be_read_are_one_problem(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "image.nii.gz"
    path.write_bytes(b"nothing")
    images = {name: (path, i) for i, name in enumerate(LOOKS)}
    case = cases.Case("a", "a", None, images, path, "decathlon")
    rows = case_checks.read_case(case).problems
    assert {row.file for row in rows} == {str(path)}
    assert len(rows) == 1


def test_the_command_lists_every_problem_and_exits_with_1(
    data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    for number in (0, 2):
        cut_off(data / f"BraTS2021_{number:05}", "t2")
    file_of(data / "BraTS2021_00001", "t1").unlink()
    output, listed, sheet = (tmp_path / name for name in ("cases.csv", "problems.csv", "sheet.png"))
    done = command(
        f"--data_dir={data}", f"--output={output}", f"--problems={listed}", f"--figure={sheet}"
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert [re.search(r"BraTS2021_\d+", line)[0] for line in lines] == [
        f"BraTS2021_0000{number}" for number in (1, 0, 2)
    ]
    assert "4, without error 1" in done.stdout
    rows = list(csv.DictReader(output.open()))
    assert [bool(row["problem"]) for row in rows] == [True, True, True, False]
    assert rows[1]["ed"] == "60"
    rows = list(csv.DictReader(listed.open()))
    assert list(rows[0]) == ["case", "file", "severity", "finding", "remedy"]
    assert [row["severity"] for row in rows] == ["error"] * 3 + ["warning"]
    assert Image.open(sheet).size[1] > 500


def test_the_command_on_clean_data(data: pathlib.Path) -> None:
    done = command(f"--data_dir={data}", "--modalities=t1ce,flair")
    assert (done.returncode, "error" in done.stderr) == (0, False)
    assert "warning: BraTS2021_00003" in done.stdout


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--data_dir={}/missing", "no such folder"),
        ("--data_dri={}", "data_dri"),
        ("--output={}/missing/cases.csv", "its folder does not exist"),
        ("--problems={}", "is a folder: give the name of a file"),
    ],
)
def test_a_mistake_in_the_command_exits_with_2(data: pathlib.Path, flag: str, message: str) -> None:
    done = command(f"--data_dir={data}", flag.format(data))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


def test_many_equal_problems_are_printed_once() -> None:
    rows = [problems.Problem(f"c{i}", f"/c{i}", "warning", "is odd", "Look") for i in range(7)]
    text = data_summary.summary(cases.Cohort("user", [], []), [], rows)
    assert "warning: 7 cases (c0, c1, c2, c3, c4 and 2 more): is odd. Look" in text


@pytest.mark.parametrize(
    ("cases_of_files", "count"),
    [
        ("aaaabbbb", "2 cases (a, b)"),
        ("aaaaaa", "1 case (a)"),
        ("abcdef", "6 cases (a, b, c, d, e and 1 more)"),
    ],
)
def test_files_of_one_case_are_one_case(cases_of_files: str, count: str) -> None:
    rows = [
        problems.Problem(case, f"/{case}/{number}", "error", "is bad", "Mend it")
        for number, case in enumerate(cases_of_files)
    ]
    text = data_summary.summary(cases.Cohort("user", [], []), [], rows)
    assert f"error: {count}: is bad. Mend it" in text.splitlines()


def test_long_names_of_regions_do_not_touch_their_numbers() -> None:
    document = dict(made_tasks.PLAIN, labels={"background": 0, "peripheral zone of it": 1, "TZ": 2})
    task = dataset_json.parse(document, "dataset.json")
    text = data_summary.summary(cases.Cohort("user", [], []), [], [], task)
    assert "without peripheral zone of it  0\n" in text
    assert "without TZ                     0\n" in text


def test_the_sheet_shows_problem_cases_first_and_says_how_many(
    data: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_survey, "SHEET_CASES", 2)
    cohort, _ = cases.survey_cases(data)
    row = problems.Problem("BraTS2021_00002", "/x/a.nii", "error", "is bad", "Mend it")
    odd = problems.Problem("BraTS2021_00003", "/x/b.nii", "warning", "is odd", "Look")
    figure = data_survey.sheet(cohort.cases, [odd, row], "title")
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    found = [text for text in texts if text.startswith("BraTS") or "is " in text]
    assert found == ["BraTS2021_00002", "- a.nii: is bad", "BraTS2021_00003", "- b.nii: is odd"]
    assert "2 of 4 cases" in figure.get_suptitle()


def test_an_unwritable_table_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written .*; see --output"):
        data_survey.write_csv(["a"], [], tmp_path / "file" / "r.csv", "--output")


def test_the_command_on_another_task(tmp_path: pathlib.Path) -> None:
    folder = made_tasks.write_plain(tmp_path / "made", 2)
    path = folder / "labelsTr" / "made_01.nii.gz"
    image = nib.load(path)
    output = tmp_path / "cases.csv"
    flags = (f"--task={folder}", f"--data_dir={folder}", f"--output={output}")
    done = command(*flags)
    assert done.returncode == 0, done.stdout + done.stderr  # no skull, no share of a brain
    assert "without TZ            0" in done.stdout
    classes = np.asarray(image.dataobj)
    row = list(csv.DictReader(output.open()))[1]
    assert (row["pz"], row["tz"]) == (f"{(classes == 1).sum()}", f"{(classes == 2).sum()}")
    nib.save(nib.Nifti1Image(classes + np.uint8(4), image.affine), path)
    (folder / "imagesTr" / "made_00_0001.nii.gz").unlink()
    done = command(*flags)
    assert done.returncode == 1
    assert "made_01.nii.gz: holds the label 4 " in done.stdout
    assert "no file for adc" in done.stdout
    assert "tumour" not in done.stdout
    assert command(f"--task={tmp_path}/none.json", flags[1]).returncode == 2
