"""A comparison in words and tables: the verdict, Markdown, LaTeX, CSV and JSON."""

import json
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Final

from kdnet_jax.core import files, provenance
from kdnet_jax.errors import counted
from kdnet_jax.evaluation import comparison, comparison_scores
from kdnet_jax.metrics import statistics
from kdnet_jax.reports import comparison_records, latex_table

SIGNIFICANT: Final = 0.05
MARKDOWN, LATEX = "comparison.md", "comparison.tex"
TABLE, CASES, EVERYTHING = "comparison.csv", "cases.csv", "comparison.json"


# --- The verdict --------------------------------------------------------------------------------


def verdict(c: comparison.Comparison) -> list[str]:
    """Returns what the data support and what they do not, a sentence or two each; Dice first."""
    said = [*_forced(c), *_networks_only(c)]
    for metric in ("dice", *c.metrics):
        if metric in c.metrics:
            said.append(_main_sentence(c, c.result(metric, c.main)))
            break
    if "dice" in c.metrics:
        said += _dice_sentences(c, c.result("dice", c.main))
    said += [_corrected_sentence(c), _share_sentence(c)]
    return [sentence for sentence in [*said, *c.notes] if sentence]


def _forced(c: comparison.Comparison) -> list[str]:
    if not c.differs:
        return []
    return [
        "These runs are not comparable: they differ in more than their role (listed above), and "
        "what follows may be due to that. It is no verdict on the method."
    ]


def _networks_only(c: comparison.Comparison) -> list[str]:
    if c.pairs > 1:
        return []
    return [
        "There is one training run a side: how much a score changes from seed to seed is unknown, "
        "so nothing can be said about the method. All intervals and p-values below are about "
        "these two networks on other cases."
    ]


def _main_sentence(c: comparison.Comparison, result: comparison.Result) -> str:
    measure = comparison.MEASURES[result.metric]
    levels = [
        f"{side} {_number(result, result.levels[side].interval.estimate)}" for side in c.sides
    ]
    return (
        f"{measure.label}{_of_regions(c)}: {', '.join(levels)}. The student differs from "
        f"the baseline by {interval(result.difference, measure.digits)}, p "
        f"{p_value(result.difference.p)}: {counted(c.pairs, 'pair')} of runs, "
        f"{counted(result.cases, 'test case')}."
    )


def _of_regions(c: comparison.Comparison) -> str:
    *others, last = c.regions
    return f", mean of {', '.join(others)} and {last}" if others else f" of {last}"


def _dice_sentences(c: comparison.Comparison, result: comparison.Result) -> list[str]:
    about = "the student" if c.pairs > 1 else "this student"
    than = "the baseline" if c.pairs > 1 else "this baseline"
    said = [f"{_direction(result.difference, about, than)} {margin_text(result.difference)}"]
    if c.pairs > 1 and result.p_wilcoxon < SIGNIFICANT <= result.difference.p:
        said.append(
            "Between these trained networks there is a difference over the cases (Wilcoxon, "
            f"p {p_value(result.p_wilcoxon)}), but not one beyond what other seeds may bring."
        )
    return said


def _direction(difference: statistics.Interval, about: str, than: str) -> str:
    if difference.low > 0:
        return f"The data support that {about} beats {than} in Dice."
    if difference.high < 0:
        return f"The data support that {about} is worse than {than} in Dice."
    return f"The data show neither that {about} beats {than} in Dice nor that it is worse."


def margin_text(difference: statistics.Interval) -> str:
    """Says which differences the interval excludes, around the margin that matters."""
    margin, low, high = comparison.RELEVANT_DICE, difference.low, difference.high
    if low >= margin:
        return f"The gain is {margin} or more."
    if high <= -margin:
        return f"The loss is {margin} or more."
    if -margin < low and high < margin:
        return f"A difference of {margin} or more is excluded, in either direction."
    gain = (
        f"A gain of {margin} or more is excluded"
        if high < margin
        else f"A gain of {margin} or more is possible (only one above {high:.3f} is excluded)"
    )
    loss = (
        f"a loss of {margin} or more is excluded"
        if low > -margin
        else f"a loss of {margin} or more is possible (only one above {-low:.3f} is excluded)"
    )
    undecided = high >= margin and low <= -margin
    verdict = " The comparison is too small to decide." if undecided else ""
    return f"{gain}; {loss}.{verdict}"


def _corrected_sentence(c: comparison.Comparison) -> str:
    found = [result for result in c.results if result.p_holm < SIGNIFICANT]
    tests = f"Over all {len(c.results)} tests (metrics and regions, Holm's correction)"
    if not found:
        return (
            f"{tests} no difference stands out from the variation "
            f"{'between seeds and cases' if c.pairs > 1 else 'between cases'}; that is no proof "
            "that there is none: the intervals say what remains possible."
        )
    listed = "; ".join(
        f"{comparison.MEASURES[result.metric].label}{of_column(result.region)}: "
        f"{'better' if _better(result) else 'worse'} by "
        f"{interval(result.difference, comparison.MEASURES[result.metric].digits)}, "
        f"p {p_value(result.p_holm)}"
        for result in found
    )
    return f"{tests} the student differs in {len(found)}: {listed}."


def _share_sentence(c: comparison.Comparison) -> str:
    if "teacher" not in c.sides or "dice" not in c.metrics:
        return ""
    result = c.result("dice", c.main)
    share = result.share
    assert share is not None  # with a teacher and Dice there is one
    lead = f"a lead over the baseline of {interval(share.lead, 3)} in mean Dice"
    if math.isnan(share.estimate):
        return (
            f"The teacher has {lead}: that is not far enough from 0 for a share of it to have "
            "a meaning, so the share that the student closes is undefined."
        )
    return (
        f"The teacher has {lead}; the student closes {percent(share.estimate)} of it (95 % "
        f"interval {percent(share.low)} to {percent(share.high)})."
    )


# --- The table ----------------------------------------------------------------------------------


def rows(c: comparison.Comparison) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows of the table, as plain text."""
    header = ["Metric", "Region", *(side.capitalize() for side in c.sides)]
    header.append("Student - baseline")
    if "teacher" in c.sides:
        header.append("Share of the lead")
    header += ["p (seeds and cases)", "Median difference", "p (Wilcoxon)", "Rank-biserial", "dz"]
    return header, [_row(c, result) for result in c.results]


def _row(c: comparison.Comparison, result: comparison.Result) -> list[str]:
    digits = comparison.MEASURES[result.metric].digits
    cells = [comparison.MEASURES[result.metric].label, result.region]
    cells += [level_text(result.levels[side].interval, digits) for side in c.sides]
    cells += [bracket(*result.difference[:3], f"+z.{digits}f")]
    if result.share is not None:
        cells.append(share_text(result.share))
    cells += [p_value(result.p_holm), bracket(*result.median_difference, f"+z.{digits}f")]
    cells += [p_value(result.p_wilcoxon_holm), f"{result.rank_biserial:+.2f}"]
    return [*cells, _or_dash(result.cohen_dz, "+.2f")]


def level_text(level: statistics.Interval, digits: int) -> str:
    """Returns the mean of a side as "0.710 [0.650, 0.770]"."""
    return bracket(level.estimate, level.low, level.high, f".{digits}f")


def bracket(estimate: float, low: float, high: float, form: str) -> str:
    """Returns "estimate [low, high]", each in the form; the estimate alone without an interval."""
    if math.isnan(low):
        return f"{estimate:{form}}"
    return f"{estimate:{form}} [{low:{form}}, {high:{form}}]"


def share_text(share: statistics.Share) -> str:
    """Returns a share as "43 % [10 %, 76 %]", or "undefined"."""
    if math.isnan(share.estimate):
        return "undefined"
    return f"{percent(share.estimate)} [{percent(share.low)}, {percent(share.high)}]"


# --- Words and numbers --------------------------------------------------------------------------


def interval(value: statistics.Interval, digits: int) -> str:
    """Returns "+0.012 (95 % interval -0.003 to +0.027)"."""
    return (
        f"{value.estimate:+z.{digits}f} (95 % interval {value.low:+z.{digits}f} to "
        f"{value.high:+z.{digits}f})"
    )


def percent(share: float) -> str:
    """Returns a share as "-12 %"."""
    return f"{100 * share:z.0f} %"


def p_value(p: float) -> str:
    """Returns a p-value as it is printed."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _or_dash(value: float, form: str) -> str:
    return "-" if math.isnan(value) else f"{value:{form}}"


def _number(result: comparison.Result, value: float) -> str:
    return f"{value:.{comparison.MEASURES[result.metric].digits}f}"


def of_column(column: str) -> str:
    """Returns what follows a metric's name: " of ET" or ", mean of the regions"."""
    mean = column == comparison_scores.MEAN
    return f"{',' if mean else ' of'} {comparison_scores.title(column)}"


def _better(result: comparison.Result) -> bool:
    return (result.difference.estimate > 0) == comparison.MEASURES[result.metric].larger_is_better


# --- Files --------------------------------------------------------------------------------------


def write(c: comparison.Comparison, folder: pathlib.Path) -> None:
    """Writes the comparison as Markdown, LaTeX, CSV (tidy, and per case) and JSON."""
    everything = comparison_records.as_json(c) | {
        "verdict": verdict(c),
        "provenance": provenance.collect(),
    }
    texts = {
        MARKDOWN: markdown(c),
        LATEX: latex(c),
        TABLE: csv_of(comparison_records.table(c)),
        CASES: csv_of(comparison_records.cases(c)),
        EVERYTHING: json.dumps(everything, indent=2, allow_nan=False) + "\n",
    }
    for name, text in texts.items():
        files.write_text(folder / name, text)


def csv_of(records: Iterable[comparison_records.Row]) -> str:
    """Returns rows with the same columns as the text of a CSV file."""
    records = list(records)
    return files.csv_text(list(records[0]), [list(record.values()) for record in records])


def markdown(c: comparison.Comparison) -> str:
    """Returns the whole comparison as Markdown: what differs, verdict, table, runs, legend."""
    parts = ["# Student against baseline", ""]
    if c.differs:
        parts += ["**The runs are not comparable (--force). They differ in:**", ""]
        parts += [*(f"- {line}" for line in c.differs), ""]
    parts += [*(f"{sentence}\n" for sentence in verdict(c)), *_markdown_table(*rows(c)), ""]
    parts += [*(f"{line}\n" for line in legend(c)), "## How the scores vary", ""]
    parts += [*_markdown_table(*_spread_rows(c)), "", "## Runs", ""]
    parts += [f"- {side}: {', '.join(map(str, c.sides[side]))}" for side in c.sides]
    return "\n".join(parts) + "\n"


def _markdown_table(header: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *body]
    return ["| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines]


def _spread_rows(c: comparison.Comparison) -> tuple[list[str], list[list[str]]]:
    body = []
    for result in c.results:
        digits = comparison.MEASURES[result.metric].digits
        for side, level in result.levels.items():
            spread = (_or_dash(each, f".{digits}f") for each in (level.sd_runs, level.sd_cases))
            body.append([*_row(c, result)[:2], side, *spread, f"{level.median:.{digits}f}"])
    return ["Metric", "Region", "Side", "SD over runs", "SD over cases", "Median"], body


def legend(c: comparison.Comparison) -> list[str]:
    """Returns what the columns mean, in words."""
    folds = f", in {len(c.folds)} folds" if len(c.folds) > 1 else ""
    scores = "after post-processing" if c.postprocessed else "without post-processing"
    over = "runs and cases (of a single run, over cases)" if c.pairs > 1 else "cases alone"
    lines = [
        f"Scores {scores}; {counted(c.pairs, 'pair')} of runs{folds}, "
        f"{counted(len(c.cases.names), 'test case')}. Brackets: 95 % intervals, of the means over "
        f"{over}, of the median over the cases of these networks. HD95 includes the penalty of "
        "373 mm for a region that one side alone has, so look at its median too.",
        "p (seeds and cases) belongs to the interval of the difference: would other seeds and "
        "cases show it? p (Wilcoxon) and the effect sizes are about these trained networks on "
        f"other cases. Both p are Holm-corrected over the {len(c.results)} rows; the intervals "
        "are not.",
    ]
    if "teacher" in c.sides:
        lines.append(
            "Share of the lead: (student - baseline) / (teacher - baseline); undefined where the "
            "teacher's lead is not safely above 0."
        )
    return lines


def latex(c: comparison.Comparison) -> str:
    """Returns the table as LaTeX; it needs the packages booktabs and graphicx."""
    warning = [f"The runs are not comparable: {'; '.join(c.differs)}."] if c.differs else []
    header, body = rows(c)
    caption = " ".join([*warning, *legend(c)])
    return latex_table.table(header, body, caption=caption, rows_per_group=len(c.columns))
