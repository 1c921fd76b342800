"""Every malformed input with every command that can meet it, as command lines to run.

`scans.py`, `cohorts.py`, `runs.py` and `flags.py` hold the inputs.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Sequence

from tests.bad_input import cohorts, flags, runs, scans, sound
from tests.helpers import forks

_CONFIGS = forks.ROOT / "configs"
_SPACING = f"--config.data.spacing={scans.SPACING_MM}"


@dataclasses.dataclass(frozen=True)
class Trial:
    """A command line with a malformed input, and how it has to end.

    Attributes:
        name: the input and the command.
        command: a module of kdnet_jax.
        words: of the command line; outputs are relative to an empty folder.
        says: words of the message.
        code: the exit status.
    """

    name: str
    command: str
    words: tuple[str, ...]
    says: str
    code: int = 2


def _trial(name: str, command: str, *words: object, says: str, code: int = 2) -> Trial:
    return Trial(f"{name}: {command}", command, tuple(map(str, words)), says, code)


def build(folder: pathlib.Path) -> list[Trial]:
    """Writes all inputs under a folder and returns the trials."""
    base = sound.write_all(folder / "sound")
    numbers = itertools.count()

    def place() -> pathlib.Path:
        new = folder / "inputs" / f"{next(numbers):03d}"
        new.mkdir(parents=True)
        return new

    trials: list[Trial] = []
    for file in (*scans.BAD_ON_BOTH_SIDES, *scans.BAD_SCANS):
        trials += _of_scan(file, base, place())
    for file in (*scans.BAD_ON_BOTH_SIDES, *scans.BAD_MASKS):
        trials += _of_mask(file, base, place())
    for cohort in cohorts.BAD:
        trials += _of_cohort(cohort, base, place())
    for run in (*runs.OTHER_PROGRAMS, *runs.BAD_CHECKPOINTS):
        trials += _of_run(run, base, place())
    for run in (*runs.OTHER_PROGRAMS, *runs.BAD_SCORES):
        trials += _of_scores(run, base, place())
    for name, text in runs.SPLITS.items():
        trials += _of_split(name, text, base, place())
    for run in runs.BAD_STATISTICS:
        folder = sound.copy(base / "baseline", place() / "run")
        run.build(folder)
        words = (f"--checkpoint={folder}", f"--input={base / 'cohort'}", "--output=masks")
        trials.append(_trial(f"run, {run.name}", "predict", *words, says=run.says))
    return [*trials, *_of_settings(), *_of_flags(base), *_sound(base)]


def _config(role: str) -> str:
    return f"--config={_CONFIGS / role}.py:smoke"


# --- Scans and masks --------------------------------------------------------------------------


def _sound(base: pathlib.Path) -> Iterator[Trial]:
    """Sound inputs: what the others are refused for is not the way they are given."""
    lines = {
        "check_data": [f"--data_dir={base / 'cohort'}"],
        "build_data": [f"--data_dir={base / 'cohort'}", "--spacing=8"],
        "predict": [
            f"--checkpoint={base / 'baseline'}",
            f"--input={base / 'cohort'}",
            "--output=m",
        ],
        "evaluate": [
            *(f"--predictions={base / 'masks'}", f"--references={base / 'cohort'}"),
            *("--output=scores", "--workers=1"),
        ],
        "compare": [
            *(f"--baseline={base / 'scored' / 'baseline'}", "--output=out"),
            f"--student={base / 'scored' / 'student'}",
        ],
    }
    for command, words in lines.items():
        yield _trial(f"sound input, {command}", command, *words, says="", code=0)


def _of_scan(file: scans.File, base: pathlib.Path, place: pathlib.Path) -> Iterator[Trial]:
    name, scan = f"scan, {file.name}", place / f"scan{file.suffix}"
    file.build(scan)
    yield _trial(
        name,
        "predict",
        *(f"--checkpoint={base / 'baseline'}", f"--input={scan}", "--output=mask.nii.gz"),
        says=scan.name,
    )
    cohort = _with_bad_file(file, "t1ce", base, place)
    yield from _of_data(name, cohort, base, cohorts.CASE, broken=True)


def _of_mask(file: scans.File, base: pathlib.Path, place: pathlib.Path) -> Iterator[Trial]:
    name = f"mask, {file.name}"
    masks = place / "masks"
    masks.mkdir()
    for number in range(2, sound.CASES + 1):
        scans.write(masks / f"BraTS2021_{number:05d}.nii.gz", scans.encode(scans.labels()))
    bad = masks / f"{cohorts.CASE}{file.suffix}"
    file.build(bad)
    words = (f"--references={base / 'cohort'}", "--output=scores", "--workers=1")
    yield _trial(name, "evaluate", f"--predictions={masks}", *words, says=bad.name)
    cohort = _with_bad_file(file, "seg", base, place)
    if file.as_label:
        yield _trial(name, "check_data", f"--data_dir={cohort}", says=cohorts.CASE, code=1)
        yield _trial(name, "build_data", f"--data_dir={cohort}", "--spacing=8", says=cohorts.CASE)


def _with_bad_file(
    file: scans.File, sequence: str, base: pathlib.Path, place: pathlib.Path
) -> pathlib.Path:
    cohort = sound.copy(base / "cohort", place / "cohort")
    path = cohort / cohorts.CASE / f"{cohorts.CASE}_{sequence}.nii.gz"
    path.unlink()
    file.build(path.with_name(f"{cohorts.CASE}_{sequence}{file.suffix}"))
    return cohort


# --- Folders of cases -------------------------------------------------------------------------


def _of_data(
    name: str, cohort: pathlib.Path, base: pathlib.Path, says: str, *, broken: bool
) -> Iterator[Trial]:
    """The commands that read a folder of cases; `broken`: check_data finds cases and faults."""
    data, config = f"--data_dir={cohort}", f"--config.data.data_dir={cohort}"
    yield _trial(name, "check_data", data, says=says, code=1 if broken else 2)
    yield _trial(name, "build_data", data, "--spacing=8", says=says)
    yield _trial(name, "main", _config("baseline"), config, _SPACING, "--workdir=run", says=says)
    words = (_config("baseline"), config, _SPACING, "--output=sheet.png")
    yield _trial(name, "preview_augmentation", *words, says=says)
    yield _trial(
        name,
        "evaluate",
        *(f"--checkpoint={base / 'teacher'}", f"--references={cohort}"),
        *("--output=scores", "--workers=1"),
        says=says,
    )


def _of_cohort(entry: cohorts.Cohort, base: pathlib.Path, place: pathlib.Path) -> Iterator[Trial]:
    folder = sound.copy(base / "cohort", place / "cohort")
    entry.damage(folder)
    name = f"cohort, {entry.name}"
    yield from _of_data(name, folder, base, entry.says, broken=entry.surveyed)
    if not entry.predicted:
        words = (f"--checkpoint={base / 'teacher'}", f"--input={folder}", "--output=masks")
        yield _trial(name, "predict", *words, says=entry.says)


# --- Runs, scores, splits ---------------------------------------------------------------------


def _of_run(entry: runs.Run, base: pathlib.Path, place: pathlib.Path) -> Iterator[Trial]:
    name, folder = f"run, {entry.name}", sound.copy(base / "teacher", place / "run")
    entry.build(folder)
    cohort = base / "cohort"
    says = entry.says
    words = (f"--input={cohort}", "--output=masks")
    yield _trial(name, "predict", f"--checkpoint={folder}", *words, says=says)
    words = (f"--references={cohort}", "--output=scores", "--workers=1")
    yield _trial(name, "evaluate", f"--checkpoint={folder}", *words, says=says)
    yield _trial(name, "export", f"--checkpoint={folder}", "--output=model", says=says)
    words = (f"--config.teacher.checkpoint={folder}", f"--config.data.data_dir={cohort}", _SPACING)
    yield _trial(name, "main", _config("student"), *words, "--workdir=run", says=says)


def _of_scores(entry: runs.Run, base: pathlib.Path, place: pathlib.Path) -> Iterator[Trial]:
    folder = sound.copy(base / "scored" / "student", place / "run")
    entry.build(folder)
    words = (f"--baseline={base / 'scored' / 'baseline'}", f"--student={folder}", "--output=out")
    yield _trial(f"scores, {entry.name}", "compare", *words, says=place.name)


def _of_split(name: str, text: str, base: pathlib.Path, place: pathlib.Path) -> Iterator[Trial]:
    path = place / "split.json"
    path.write_text(text)
    cohort = base / "cohort"
    words = (f"--config.data.data_dir={cohort}", _SPACING, f"--config.split.file={path}")
    # That cases are other ones is known when the data are built, which stay for the next run.
    if "other cases" not in name:
        yield _trial(name, "main", _config("baseline"), *words, "--workdir=run", says="split.json")
    words = (f"--predictions={base / 'masks'}", f"--references={cohort}", "--output=scores")
    yield _trial(name, "evaluate", *words, f"--cases={path}:test", says="split.json")


# --- Settings and flags -----------------------------------------------------------------------


def _of_settings() -> Iterator[Trial]:
    for key, values in flags.SETTINGS.items():
        for value in values:
            words = (_config("student"), f"--config.{key}={value}")
            says = value if "/" in value else key.rsplit(".", 1)[-1]
            yield _trial(f"{key}={value}", "main", *words, "--workdir=run", says=says)
    for key in flags.OF_THE_PICTURE:
        words = (_config("student"), f"--config.{key}={flags.SETTINGS[key][0]}")
        says = key.rsplit(".", 1)[-1]
        yield _trial(f"{key}", "preview_augmentation", *words, "--output=sheet.png", says=says)


def _of_flags(base: pathlib.Path) -> Iterator[Trial]:
    places: dict[str, object] = {
        "RUN": base / "baseline",
        "COHORT": base / "cohort",
        "SCORED": base / "scored",
    }
    places["STUDY"] = f"{_CONFIGS / 'study.py'}:smoke"
    for command, sets in flags.COMMAND_LINES.items():
        for line, says in sets.items():
            words = [_filled(word, places) for word in line.split()]
            if command in ("main", "preview_augmentation") and "--config=" not in line:
                words.insert(0, _config("student"))
            yield _trial(line, command, *words, says=says)


def _filled(word: str, places: dict[str, object]) -> str:
    for name, place in places.items():
        word = word.replace(name, str(place))
    return word


def lines(trials: Sequence[Trial], folder: pathlib.Path) -> list[forks.Line]:
    """Returns the command lines, each with an empty folder of its own to run in."""
    made = []
    for number, trial in enumerate(trials):
        cwd = folder / f"{number:04d}"
        cwd.mkdir(parents=True)
        made.append(forks.Line(trial.command, trial.words, cwd))
    return made


def part(trials: Sequence[Trial]) -> list[Trial]:
    """Returns a part that meets every input: of each, one of its commands.

    Which one goes round, so that each command meets many inputs of a kind.
    """
    groups = itertools.groupby(trials, lambda trial: trial.name.rsplit(":", 1)[0])
    chosen = []
    for number, (_, group) in enumerate(groups):
        same = list(group)
        chosen.append(same[number % len(same)])
    return chosen
