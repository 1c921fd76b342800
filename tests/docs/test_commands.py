"""Every command of the documents: all are parsed, those for real scans are run one after another.

Those of docs/tour.md are run from an installed wheel: tests/test_wheel.py.
"""

import json
import pathlib
import shutil

import pytest

from tests.docs import doc_commands
from tests.helpers import commands, tiny_cases

pytestmark = pytest.mark.once

ROOT = doc_commands.ROOT
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
REAL = ROOT / "docs" / "real_brats.md"
TOUR = ROOT / "docs" / "tour.md"
CASES = 4


def _parsed(lines: list[list[str]], folder: pathlib.Path) -> list[str]:
    """Returns what is wrong with each command line, an empty text where nothing is."""
    (folder / "lines.json").write_text(json.dumps(lines), "utf-8")
    done = commands.python(*("-m", "tests.docs.parse_commands", folder / "lines.json"), timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_command_has_flags_and_keys_that_exist(tmp_path: pathlib.Path) -> None:
    found = [(path, words) for path in DOCUMENTS for words in doc_commands.all_commands(path)]
    wrong = _parsed([words for _, words in found], tmp_path)
    assert len(found) > 60
    assert not [
        f"{path.name}: {' '.join(words)}: {said}"
        for (path, words), said in zip(found, wrong, strict=True)
        if said
    ]


def test_a_command_that_is_wrong_is_found(tmp_path: pathlib.Path) -> None:
    said_of = {
        "kdnet_jax.predict --checkpoint=a --input=b --outptu=c": "outptu",
        "kdnet_jax.predict --checkpoint=a --input=b": "output",
        "kdnet_jax.main --config=configs/student.py:brats --config.train.step=3": "step",
        "kdnet_jax.main --config=configs/student.py --config.train.steps=0": "train.steps",
        "kdnet_jax.main --config=configs/student.py:large": "large",
        "kdnet_jax.main --config=configs/pupil.py": "pupil",
        "kdnet_jax.check_data --data_dir=a --workers=many": "many",
        "kdnet_jax.check_data --data_dir=a b": "'b'",
        "kdnet_jax.check_dat --data_dir=a": "check_dat",
    }
    found = _parsed([line.split() for line in said_of], tmp_path)
    for expected, said in zip(said_of.values(), found, strict=True):
        assert expected in said


@pytest.fixture
def cohort(sample_dir: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return tiny_cases.write_coarser(sample_dir, tmp_path / "cohort", CASES)


def test_real_scans_and_the_readme(
    cohort: pathlib.Path, tmp_path: pathlib.Path, report_free_env: dict[str, str]
) -> None:
    """docs/real_brats.md from top to bottom, then what the README has beyond it, in one folder.

    Smaller: the preset of seconds, scans of 2 mm worked on at 6 mm, four cases of which two are
    test cases.
    """
    case = min(case.name for case in cohort.iterdir())
    shares = "--config.split.train=0.25 --config.split.validation=0.25 --config.split.test=0.5"
    smaller = {
        "--config.data.data_dir=": f"{shares} --config.data.data_dir=",
        "/data/BraTS2021": str(cohort),
        "BraTS2021_01480": case,
        "--spacing=1.0": "--spacing=6.0",
        ":brats": ":smoke",
        "-brats": "-smoke",
    }
    for line in filter(_is_run, doc_commands.shell_lines(REAL)):
        doc_commands.run(doc_commands.replaced(line, smaller), ROOT, tmp_path, report_free_env)
    assert len(list((tmp_path / "datasets" / "brats").glob("brats2021-*"))) == 1, "built once"
    shutil.copytree(cohort, tmp_path / "predictions")
    given = {
        "--predictions=DIR": "--predictions=predictions",
        "--output=DIR": "--output=readme",
        "=DIR": f"={cohort}",
        "--input=t1ce.nii.gz": f"--input={cohort}/{case}/{case}_t1ce.nii.gz",
    }
    for line in filter(_is_run, _only_in_the_readme()):
        doc_commands.run(
            doc_commands.replaced(line, smaller | given), ROOT, tmp_path, report_free_env
        )
    made = ["sheet.png", "problems.csv", "comparison/comparison.md", "mask.nii.gz"]
    made += ["readme/comparison.md", "readme/evaluation/cases.csv"]
    assert not [name for name in made if not (tmp_path / name).is_file()]


def _is_run(line: str) -> bool:
    # A study is run by tests/experiment/test_studies.py, what is of another task by test_tasks.py;
    # all scans have labels here.
    elsewhere = ("configs/study.py", "nnUNet_results", "Dataset005_Prostate", "teacher_labels.py")
    return not any(word in line for word in elsewhere)


def _only_in_the_readme() -> list[str]:
    """Returns the README's command lines that neither the tour nor the guide has."""
    elsewhere = [*doc_commands.shell_lines(REAL), *doc_commands.shell_lines(TOUR)]
    known = {_told(line.replace("/data/BraTS2021", "DIR")) for line in elsewhere}
    lines = doc_commands.shell_lines(ROOT / "README.md")
    return [line for line in lines if _told(line) not in known]


def _told(line: str) -> str:
    """Returns a command line without its comment and its extra spaces."""
    return " ".join(line.partition(" #")[0].split())
