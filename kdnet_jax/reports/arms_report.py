"""The report of a study of few labels: verdict, differences of its arms, cost, and every run."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from matplotlib import figure as mpl_figure
from matplotlib import lines as mpl_lines

from kdnet_jax.config import study
from kdnet_jax.drawing import html
from kdnet_jax.evaluation import comparison_arms, comparison_runs, comparison_scores
from kdnet_jax.reports import arms_text, study_report

PLAIN, POSTPROCESSED = "few_labels", "few_labels_postprocessed"
_DOT, _BAR = "#0072B2", "#D55E00"
# Of a summary -> how it is called.
_COSTS: Final = {"train_seconds": "Training (s)", "evaluate_seconds": "Evaluation (s)"}


def write(
    folder: pathlib.Path,
    runs: Mapping[str, Sequence[pathlib.Path]],
    *,
    primary: study.Endpoint,
    least_room: float,
    facts: Sequence[tuple[str, str]],
    synthetic: bool,
) -> tuple[pathlib.Path, list[str]]:
    """Compares the arms of a study, without and with post-processing, and writes its report.

    Args:
        folder: the study's folder.
        runs: arm -> its finished runs.
        primary: what the study is to decide.
        least_room: of `study.least_room`.
        facts: rows of key and value on what was run.
        synthetic: say that the cases are phantoms.

    Returns:
        The report's path, and the verdict without post-processing in sentences. All scores and
        numbers lie beside the report as files, in `few_labels/` and `few_labels_postprocessed/`.

    Raises:
        UserError: see `comparison_arms.compare`.
    """
    plain = comparison_arms.compare(runs, primary)
    processed = comparison_arms.compare(runs, primary, postprocessed=True)
    for found, name in ((plain, PLAIN), (processed, POSTPROCESSED)):
        arms_text.write(found, folder / name, least_room)
    verdict = arms_text.verdict(plain, least_room)
    files = (arms_text.SCORES, arms_text.DIFFERENCES, arms_text.EVERYTHING)
    report = html.Report(
        title="KD-Net study: few labels",
        summary=verdict,
        tables=[_table(plain, "Without post-processing"), _arms(plain)],
        pictures=[
            html.Picture(
                draw_levels(plain),
                "Mean Dice of each run, by arm",
                "Each dot is the mean over the test cases of one run; the diamond is the arm's "
                "mean with its 95 % interval over seeds and cases.",
            )
        ],
        sections=[
            html.Section(
                "With post-processing",
                sentences=arms_text.verdict(processed, least_room),
                tables=[_table(processed, "With post-processing")],
            ),
            html.Section(
                "The numbers",
                sentences=["Every score of every run, and what was computed from them."],
                links=[html.Link(f"{PLAIN}/{name}", f"{PLAIN}/{name}") for name in files],
            ),
            html.Section(
                "The runs",
                sentences=["Each run has a report of its own, with its worst cases."],
                links=[study_report.link(folder, run) for own in runs.values() for run in own],
            ),
        ],
        facts=facts,
        commands=[("Repeat this study", dict(facts)["command"])],
        synthetic=synthetic,
    )
    html.write_report(folder / study_report.FILE, report)
    return folder / study_report.FILE, verdict


def _table(found: comparison_arms.Arms, caption: str) -> html.Table:
    header, rows = arms_text.rows(found)
    # Intervals below their means.
    cells = [[cell.replace(" [", "\n[") for cell in row] for row in rows]
    return html.Table(caption, header, cells, arms_text.legend(found))


def _arms(found: comparison_arms.Arms) -> html.Table:
    """Returns what the arms are and what they cost."""
    rows = []
    for arm in sorted(found.runs):
        own = [run.summary for run in found.runs[arm]]
        rows.append(
            [
                f"{arm}: {arms_text.ARMS[arm]}",
                str(len(own)),
                f"{own[0]['steps']}",
                *(_seconds([each[what] for each in own]) for what in _COSTS),
            ]
        )
    header = ["Arm", "Runs", "Steps", *_COSTS.values()]
    return html.Table("The arms and their cost", header, rows, "Of a run: mean, and range.")


def _seconds(values: Sequence[float]) -> str:
    return f"{np.mean(values):.0f}\n[{min(values):.0f}, {max(values):.0f}]"


def draw_levels(found: comparison_arms.Arms) -> mpl_figure.Figure:
    """Draws the mean Dice of each run by arm, with the arm's interval."""
    arms = sorted(found.runs)
    columns = found.columns
    figure = mpl_figure.Figure(figsize=(3 + 2.6 * len(columns), 4.2), layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for column, panel in zip(columns, panels, strict=True):
        for place, arm in enumerate(arms):
            means = [_mean_dice(run, column) for run in found.runs[arm]]
            spread = np.linspace(-0.14, 0.14, len(means)) if len(means) > 1 else [0.0]
            panel.plot(place + np.asarray(spread), means, "o", color=_DOT, ms=5, alpha=0.7)
            level = found.level(arm, "dice", column).interval
            panel.plot([place + 0.27] * 2, [level.low, level.high], color=_BAR, lw=2)
            panel.plot(place + 0.27, level.estimate, "D", color=_BAR, ms=6)
        panel.set_xticks(range(len(arms)), arms)
        panel.set_title(comparison_scores.title(column), fontsize=12)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="#e6e6e6", lw=0.6)
        panel.set_axisbelow(True)
    panels[0].set_ylabel("Dice")
    handles = [
        mpl_lines.Line2D([], [], color=_DOT, marker="o", ls="none", label="run"),
        mpl_lines.Line2D([], [], color=_BAR, marker="D", lw=2, label="mean, 95 % interval"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _mean_dice(run: comparison_runs.Run, column: str) -> float:
    """Returns a run's mean Dice over its test cases, of a region or of all."""
    mean = column == comparison_scores.MEAN
    return float(np.mean([row.dice for row in run.scores.values() if mean or row.region == column]))
