"""A study of few labels in words and tables, and its numbers as files for others to recompute."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterator
from typing import Final, NamedTuple

from kdnet_jax.config import keys, study
from kdnet_jax.core import files, provenance
from kdnet_jax.errors import counted
from kdnet_jax.evaluation import comparison, comparison_arms, comparison_runs
from kdnet_jax.metrics import cases
from kdnet_jax.reports import comparison_records, comparison_text

SCORES, DIFFERENCES, EVERYTHING = "scores.csv", "differences.csv", "few_labels.json"

ARMS: Final = {
    "A": "baseline on the labelled cases",
    "B": "self-training: student of A's run, which sees no more than it does, on all cases",
    "C": "student of E's run on all cases",
    "D": "baseline with the labels of all cases",
    "E": "teacher on all sequences of the labelled cases",
}


class _Words(NamedTuple):
    """What a difference of arms is, and what it says where it is above 0, below, or neither."""

    name: str
    better: str
    worse: str
    undecided: str


WORDS: Final = {
    "C-A": _Words(
        "the benefit of distillation",
        "The data support that the student profits from the scans without a reference.",
        "The data support that the student is worse than the baseline on the labelled cases alone.",
        "The data show neither that the student profits from the scans without a reference nor "
        "that it is worse for them.",
    ),
    "C-B": _Words(
        "whether the teacher's other sequences matter",
        "The data support that the teacher's other sequences matter: its labels teach more than "
        "those of a network that sees what the student sees.",
        "The data support that the teacher's labels teach less than those of a network that sees "
        "what the student sees.",
        "The data do not show that the teacher's other sequences matter.",
    ),
    "B-A": _Words(
        "self-training",
        "The data support that self-training helps.",
        "The data support that self-training harms.",
        "The data show neither that self-training helps nor that it harms.",
    ),
    "D-A": _Words(
        "the room: what the missing labels are worth",
        "The data support that the missing labels are worth something.",
        "The data support that more labels make the baseline worse: train longer first.",
        "The data do not show that the missing labels are worth anything.",
    ),
}


# --- The verdict --------------------------------------------------------------------------------


def verdict(found: comparison_arms.Arms, least_room: float) -> list[str]:
    """Returns what the data support and what they do not, the primary endpoint first.

    Args:
        found: the arms, compared.
        least_room: of `study.least_room`.
    """
    said = _one_seed(found) + _primary(found) + _room(found, least_room)
    main = found.columns[-1]
    for name in study.CONTRASTS:
        key = (name, "dice", main)
        if key in found.p_holm and name != "D-A":
            said.append(_difference(found, *key))
    said += _share(found) + _teacher(found)
    notes = [note for each in found.contrasts.values() for note in each.found.notes]
    return [*said, *dict.fromkeys(notes)]


def _one_seed(found: comparison_arms.Arms) -> list[str]:
    if found.first.pairs > 1:
        return []
    return [
        "There is one run an arm: how much a score changes from seed to seed is unknown, so "
        "nothing can be said about the method. All intervals and p-values are about these networks "
        "on other cases."
    ]


def _primary(found: comparison_arms.Arms) -> list[str]:
    name, metric, column = found.primary
    result = found.result(name, metric, column)
    if result is None:
        return [f"The primary endpoint, {_endpoint(found)}, needs arms that have not been run."]
    said = _difference(found, *found.primary)
    if metric == "dice":
        said += f" {comparison_text.margin_text(result.difference)}"
    runs = counted(found.first.pairs, "run")
    cases_ = counted(result.cases, "test case")
    when = (
        "The primary endpoint once more, after post-processing"
        if found.postprocessed
        else "Primary endpoint, named before the first run"
    )
    return [f"{when} ({runs} an arm, {cases_}): {said}"]


def _endpoint(found: comparison_arms.Arms) -> str:
    name, metric, column = found.primary
    label = comparison.MEASURES[metric].label
    return f"{_spaced(name)} in {label}{comparison_text.of_column(column)}"


def _difference(found: comparison_arms.Arms, name: str, metric: str, column: str) -> str:
    result = found.result(name, metric, column)
    assert result is not None
    measure, words = comparison.MEASURES[metric], WORDS[name]
    holm = found.p_holm.get((name, metric, column))
    p = result.difference.p if holm is None else holm
    finding = words.undecided
    if p < comparison_text.SIGNIFICANT:
        better = (result.difference.estimate > 0) == measure.larger_is_better
        finding = words.better if better else words.worse
    number = comparison_text.interval(result.difference, measure.digits)
    return (
        f"{_spaced(name)}, {words.name}, is {number} in {measure.label}"
        f"{comparison_text.of_column(column)}, p {comparison_text.p_value(p)}"
        f"{'' if holm is None else ' after Holm'}. {finding}"
    )


def _room(found: comparison_arms.Arms, least: float) -> list[str]:
    main = found.columns[-1]
    result = found.result("D-A", "dice", main)
    if result is None:
        return ["Arm D was not run: how much room there is for a method is unknown."]
    said = [_difference(found, "D-A", "dice", main)]
    # A negative least room says that students are trained in any case, not that there is room.
    room = least if least >= 0 else keys.LEAST_ROOM
    if result.difference.estimate < room:
        said.append(
            f"Room: D - A is below {room:g}. With so little to recover this study can hardly show "
            "that a method helps, or that none does: take fewer labelled cases, or train longer."
        )
    elif result.difference.low < room:
        said.append(f"Room: D - A is above {room:g}, but its interval reaches below.")
    return said


def _share(found: comparison_arms.Arms) -> list[str]:
    share = found.share("dice", found.columns[-1])
    if share is None:
        return []
    if math.isnan(share.estimate):
        return [
            "The share of the labels' worth that the student recovers, (C - A) / (D - A), is "
            "undefined: D - A is not clearly above 0."
        ]
    ends = f"{comparison_text.percent(share.low)} to {comparison_text.percent(share.high)}"
    return [
        f"The student recovers {comparison_text.percent(share.estimate)} (95 % interval {ends}) of "
        "what the missing labels are worth, (C - A) / (D - A)."
    ]


def _teacher(found: comparison_arms.Arms) -> list[str]:
    if "E" not in found.runs:
        return []
    level = found.level("E", "dice", found.columns[-1]).interval
    score = comparison_text.level_text(level, comparison.MEASURES["dice"].digits)
    return [f"The teacher E has Dice {score}{comparison_text.of_column(found.columns[-1])}."]


# --- The table ----------------------------------------------------------------------------------


def rows(found: comparison_arms.Arms) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows of the table; a row of one cell is a heading."""
    header = ["Region", "First", "Second", "Difference", "p", "Share of D - A"]
    body = []
    for name, compared in found.contrasts.items():
        for metric in found.first.metrics:
            label = comparison.MEASURES[metric].label
            body.append([f"{label}: {_spaced(name)}, {WORDS[name].name}"])
            body += [_row(found, name, compared, metric, column) for column in found.columns]
    return header, body


def _row(
    found: comparison_arms.Arms,
    name: str,
    compared: comparison_arms.Contrast,
    metric: str,
    column: str,
) -> list[str]:
    result, digits = compared.found.result(metric, column), comparison.MEASURES[metric].digits
    p = found.p_holm.get((name, metric, column))
    shown = comparison_text.p_value(result.difference.p if p is None else p)
    share = found.share(metric, column) if name == "C-A" else None
    return [
        column,
        *(
            comparison_text.level_text(result.levels[side].interval, digits)
            for side in ("student", "baseline")
        ),
        comparison_text.bracket(*result.difference[:3], f"+z.{digits}f"),
        f"{shown} (primary)" if p is None else shown,
        "-" if share is None else comparison_text.share_text(share),
    ]


def legend(found: comparison_arms.Arms) -> str:
    """Returns what the columns mean, in words."""
    scores = "after post-processing" if found.postprocessed else "without post-processing"
    over = "seeds and cases" if found.first.pairs > 1 else "cases alone"
    return (
        f"Scores {scores}. Brackets: 95 % intervals over {over} (of folds: over the folds), not "
        "corrected. The p of the primary endpoint is as it is; all others are Holm-corrected over "
        f"the {len(found.p_holm)} other rows. The share is undefined where D - A is not clearly "
        "above 0. First and second: the two arms of the difference."
    )


# --- Words --------------------------------------------------------------------------------------


def _spaced(contrast: str) -> str:
    return contrast.replace("-", " - ")


# --- Files --------------------------------------------------------------------------------------


def write(found: comparison_arms.Arms, folder: pathlib.Path, least_room: float) -> None:
    """Writes every score of every run, the differences, and all as JSON; see `verdict`."""
    everything = {
        "primary": found.primary._asdict(),
        "postprocessed": found.postprocessed,
        "runs": {arm: [str(run.folder) for run in runs] for arm, runs in found.runs.items()},
        "pairs_per_fold": list(found.first.folds),
        "differences": list(differences(found)),
        "bootstrap": {"seed": found.first.seed, "resamples": found.first.resamples},
        "verdict": verdict(found, least_room),
        "provenance": provenance.collect(),
    }
    texts = {
        SCORES: comparison_text.csv_of(scores(found)),
        DIFFERENCES: comparison_text.csv_of(differences(found)),
        EVERYTHING: json.dumps(comparison_records.plain(everything), indent=2, allow_nan=False)
        + "\n",
    }
    for name, text in texts.items():
        files.write_text(folder / name, text)


def scores(found: comparison_arms.Arms) -> Iterator[comparison_records.Row]:
    """Yields a row per run, case and region, with all metrics of `cases.csv`."""
    every = [run for runs in found.runs.values() for run in runs]
    fold_of = {
        run.folder: number
        for number, runs in enumerate(comparison_runs.folds(every))
        for run in runs
    }
    for run in every:
        about = {"arm": run.side, "fold": fold_of[run.folder], "seed": run.seed}
        for score in run.scores.values():
            own = dataclasses.asdict(score)
            yield about | {name: own[name] for name in ("case", "region", *cases.METRICS)}


def differences(found: comparison_arms.Arms) -> Iterator[comparison_records.Row]:
    """Yields a row per difference, metric and region; what is undefined is NaN."""
    for name, compared in found.contrasts.items():
        for result in compared.found.results:
            key = (name, result.metric, result.region)
            share = found.share(*key[1:]) if name == "C-A" else None
            means = [result.levels[side].interval.estimate for side in ("student", "baseline")]
            yield {
                **dict(zip(study.Endpoint._fields, key, strict=True)),
                **dict(zip(("first", "second"), means, strict=True)),
                **result.difference._asdict(),
                "p_holm": found.p_holm.get(key, math.nan),
                "primary": key == tuple(found.primary),
                "share": share.estimate if share else math.nan,
                "share_low": share.low if share else math.nan,
                "share_high": share.high if share else math.nan,
                "runs": compared.found.pairs,
                "cases": result.cases,
            }
