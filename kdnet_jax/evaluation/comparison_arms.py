"""Comparison of the arms of a study of few labels: each pair of arms as `comparison` compares two.

C - A is the benefit of a student; C - B what of it is due to the teacher's other sequences, and not
to the scans alone; B - A the benefit of the scans alone; D - A the worth of the labels that A
lacks: the room for the others.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from kdnet_jax.config import study
from kdnet_jax.errors import UserError
from kdnet_jax.evaluation import comparison, comparison_runs, comparison_scores
from kdnet_jax.metrics import statistics

# In these the arms differ by construction, and the seeds in their labelled cases.
_EXPECTED: Final = ("role: ", "split_hash: ", "teacher: ")


@dataclasses.dataclass(frozen=True)
class Contrast:
    """Two arms, compared.

    Attributes:
        sides: "student" and "baseline" -> the first and the second arm of the name; "teacher" ->
            the arm that the share refers to, where there is one.
        found: what the comparison found.
    """

    sides: Mapping[str, str]
    found: comparison.Comparison


@dataclasses.dataclass(frozen=True)
class Arms:
    """All that a study of few labels found.

    Attributes:
        runs: arm -> its runs, fold by fold.
        primary: the endpoint that was named before the first run; its region is a column.
        contrasts: name of the difference, such as "C-A" -> its arms, compared.
        p_holm: (contrast, metric, column) -> p after Holm's correction over all but the primary.
        postprocessed: whether these are the scores after post-processing.
    """

    runs: Mapping[str, Sequence[comparison_runs.Run]]
    primary: study.Endpoint
    contrasts: Mapping[str, Contrast]
    p_holm: Mapping[tuple[str, str, str], float]
    postprocessed: bool

    @property
    def first(self) -> comparison.Comparison:
        """One of the comparisons, for what they have in common."""
        return next(iter(self.contrasts.values())).found

    @property
    def columns(self) -> tuple[str, ...]:
        """What is compared: the regions, and the mean of several."""
        return self.first.columns

    def result(self, contrast: str, metric: str, column: str) -> comparison.Result | None:
        """Returns what was found for a difference, `None` where one of its arms was not run."""
        compared = self.contrasts.get(contrast)
        return compared.found.result(metric, column) if compared else None

    def level(self, arm: str, metric: str, column: str) -> comparison.Level:
        """Returns how an arm scores."""
        return next(
            compared.found.result(metric, column).levels[side]
            for compared in self.contrasts.values()
            for side, name in compared.sides.items()
            if name == arm
        )

    def share(self, metric: str, column: str) -> statistics.Share | None:
        """Returns (C - A) / (D - A), `None` where one of these arms was not run."""
        compared = self.contrasts.get("C-A")
        if compared is None or compared.sides.get("teacher") != "D":
            return None
        return compared.found.result(metric, column).share


def compare(
    folders: Mapping[str, Sequence[pathlib.Path]],
    primary: study.Endpoint,
    *,
    postprocessed: bool = False,
) -> Arms:
    """Compares the arms of a study.

    Args:
        folders: arm -> its finished runs, of the same folds and seeds for each arm.
        primary: what the study is to decide.
        postprocessed: compare the scores after post-processing.

    Raises:
        UserError: a run that cannot be read, or runs that differ in more than arm and seed.
    """
    metrics = tuple(dict.fromkeys(("dice", primary.metric)))
    contrasts = {
        name: _contrast(name, folders, metrics, postprocessed) for name in study.contrasts(folders)
    }
    if primary.region == comparison_scores.MEAN:
        # Of a task with one region that is the mean.
        primary = primary._replace(region=next(iter(contrasts.values())).found.main)
    tests = {key: p for key, p in _tests(contrasts) if key != tuple(primary)}
    return Arms(
        runs={
            arm: [comparison_runs.read_run(arm, each, postprocessed=postprocessed) for each in own]
            for arm, own in folders.items()
        },
        primary=primary,
        contrasts=contrasts,
        p_holm=dict(zip(tests, statistics.holm(list(tests.values())), strict=True)),
        postprocessed=postprocessed,
    )


def _contrast(
    name: str,
    folders: Mapping[str, Sequence[pathlib.Path]],
    metrics: Sequence[str],
    postprocessed: bool,
) -> Contrast:
    first, second = name.split("-")
    # What a share of C - A is a share of: of the labels' worth.
    wanted = "D" if name == "C-A" and "D" in folders else "E"
    sides = {"baseline": second, "student": first}
    if wanted in folders:
        sides["teacher"] = wanted
    found = comparison.compare(
        folders[second],
        folders[first],
        folders.get(wanted, ()),
        metrics=metrics,
        postprocessed=postprocessed,
        force=True,
    )
    if wrong := [line for line in found.differs if not line.startswith(_EXPECTED)]:
        listed = "".join(f"\n  - {line}" for line in wrong)
        raise UserError(
            f"the arms {first} and {second} differ in more than they should:{listed}\nDelete the "
            "runs that are not of this study, and give its command again."
        )
    return Contrast(sides, found)


def _tests(contrasts: Mapping[str, Contrast]) -> Iterator[tuple[tuple[str, str, str], float]]:
    for name, compared in contrasts.items():
        for each in compared.found.results:
            yield (name, each.metric, each.region), each.difference.p
