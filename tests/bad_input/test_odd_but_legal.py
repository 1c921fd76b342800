"""What looks malformed and is legal: it works, and comes out escaped."""

import csv
import html.parser
import json
import pathlib
import shutil

import nibabel as nib
import numpy as np
import pytest

from tests.bad_input import corpus, scans, sound
from tests.helpers import compared_runs, forks

pytestmark = pytest.mark.once

# A case of each name; the folders above them have such names too.
NAMES = (
    "a case with spaces",
    'it\'s "quoted"',
    "<img src=x onerror=alert(1)>",
    "Größe 肿瘤 é",
    "50%_&$#{}~^",
    "=cmd, 'formula'; --flag",
)
ODD = "runs & <b>50%_#1</b".replace("/", "") + ' of "ö"'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Holds a cohort with odd names, and what the commands make of it."""
    base = tmp_path_factory.mktemp("odd") / ODD
    made = sound.write_cohort(base / "made", len(NAMES))
    for case, name in zip(sorted(made.iterdir()), NAMES, strict=True):
        (base / "cohort" / name).mkdir(parents=True)
        (base / "masks").mkdir(exist_ok=True)
        for path in case.iterdir():
            shutil.move(path, base / "cohort" / name / path.name.rsplit("_", 1)[1])
        shutil.copy(base / "cohort" / name / "seg.nii.gz", base / "masks" / f"{name}.nii.gz")
    return base


@pytest.fixture(scope="module")
def ended(folder: pathlib.Path) -> dict[str, forks.Ended]:
    """How the commands ended, by name."""
    run = sound.write_all(folder / "sound") / "baseline"
    for side in ("baseline", "student"):
        prefix = "<i>&%_"
        compared_runs.write_run(
            folder / f"scored {side}", side, [0.4, 0.5, 0.7], prefix=prefix, seed=1
        )
    scans.big_endian(folder / "big endian.nii")
    config = f"--config={forks.ROOT / 'configs' / 'baseline.py'}:smoke"
    cohort, masks = folder / "cohort", folder / "masks"
    lines = {
        "main": [
            *(config, f"--config.data.data_dir={cohort}", "--workdir=run <b>& 'é'"),
            *("--config.data.spacing=8.0", "--config.model.widths=2,4"),
            *("--config.loader.patch=8,8,8", "--config.inference.patch=8,8,8"),
            *("--config.split.train=0.34", "--config.split.validation=0.33"),
            "--config.split.test=0.33",
        ],
        "check_data": [f"--data_dir={cohort}", "--output=cases.csv", "--figure=sheet.png"],
        "predict": [
            *(f"--checkpoint={run}", f"--input={cohort}", f"--input={folder / 'big endian.nii'}"),
            *("--output=masks", "--volumes=volumes.csv", "--overlay=pictures"),
        ],
        "evaluate": [
            *(f"--predictions={masks}", f"--references={cohort}", "--output=scores"),
            *("--workers=1", "--reference_labels=brats2021", "--prediction_labels=brats2021"),
        ],
        "compare": [
            *(f"--baseline={folder / 'scored baseline'}", f"--student={folder / 'scored student'}"),
            "--output=compared",
        ],
    }
    trials = [corpus.Trial(name, name, tuple(words), "") for name, words in lines.items()]
    results = forks.run(corpus.lines(trials, folder / "cwd"), limit_s=170)
    return dict(zip(lines, results, strict=True))


def _cwd(folder: pathlib.Path, ended: dict[str, forks.Ended], command: str) -> pathlib.Path:
    assert ended[command].code == 0, ended[command].err
    return folder / "cwd" / f"{list(ended).index(command):04d}"


def _cases(path: pathlib.Path, column: str) -> set[str]:
    with path.open(newline="", encoding="utf-8") as file:
        return {row[column] for row in csv.DictReader(file)}


class _Tags(html.parser.HTMLParser):
    """The tags of a page, and what they ask to be loaded or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.risky: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        for name, value in attrs:
            if name.startswith("on") or (name == "src" and not str(value).startswith("data:")):
                self.risky.append(f"<{tag} {name}={value}>")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_of_a_run_shows_names_as_text(
    folder: pathlib.Path, ended: dict[str, forks.Ended]
) -> None:
    (run,) = (path for path in _cwd(folder, ended, "main").iterdir() if path.name != "datasets")
    split = json.loads((run / "split.json").read_text("utf-8"))
    assert {*split["train"], *split["validation"], *split["test"]} == set(NAMES)
    assert _cases(run / "evaluation" / "cases.csv", "case") == set(split["test"])
    page = _Tags((run / "report.html").read_text("utf-8"))
    assert not page.risky
    for name in split["test"]:
        assert name in page.text


def test_tables_hold_the_names_as_they_are(
    folder: pathlib.Path, ended: dict[str, forks.Ended]
) -> None:
    checked = _cwd(folder, ended, "check_data") / "cases.csv"
    volumes = _cwd(folder, ended, "predict") / "volumes.csv"
    scores = _cwd(folder, ended, "evaluate") / "scores" / "evaluation" / "cases.csv"
    assert set(NAMES) <= _cases(checked, next(iter(_header(checked))))
    assert _cases(volumes, "scan") == {*NAMES, "big endian"}
    assert _cases(scores, "case") == set(NAMES)


def _header(path: pathlib.Path) -> list[str]:
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file))


def test_masks_lie_in_the_given_folder_alone(
    folder: pathlib.Path, ended: dict[str, forks.Ended]
) -> None:
    cwd = _cwd(folder, ended, "predict")
    assert {path.name for path in cwd.iterdir()} == {"masks", "pictures", "volumes.csv"}
    assert {path.name for path in (cwd / "masks").iterdir()} == {
        f"{name}.nii.gz" for name in (*NAMES, "big endian")
    }


def test_a_scan_in_the_other_byte_order_is_read(folder: pathlib.Path) -> None:
    scans.big_endian(folder / "other order.nii")
    raw = (folder / "other order.nii").read_bytes()
    assert raw[:4] == (348).to_bytes(4, "big")
    np.testing.assert_array_equal(nib.load(folder / "other order.nii").get_fdata(), scans.brain())


def test_latex_and_markdown_are_escaped(
    folder: pathlib.Path, ended: dict[str, forks.Ended]
) -> None:
    output = _cwd(folder, ended, "compare") / "compared"
    assert {case.split("-")[0] for case in _cases(output / "cases.csv", "case")} == {"<i>&%_"}
    latex = next(output.glob("*.tex")).read_text("utf-8")
    for line in latex.splitlines():
        if not line.startswith("%"):
            assert line.count("&") - line.count(r"\&") in (0, _columns(latex) - 1), line


def _columns(latex: str) -> int:
    (start,) = (line for line in latex.splitlines() if line.startswith(r"\begin{tabular}"))
    return len(start.rsplit("{", 1)[1].rstrip("}"))
