"""Report of a run, and the lines that the command prints, from what its folder holds."""

import pathlib
import shlex
from collections.abc import Mapping, Sequence

import numpy as np

from kdnet_jax import task as task_lib
from kdnet_jax.core import typed
from kdnet_jax.data.records import store
from kdnet_jax.data.scans import geometry, nifti, prepare
from kdnet_jax.data.sources import labels
from kdnet_jax.drawing import charts, figures, html
from kdnet_jax.evaluation import evaluation, score_files
from kdnet_jax.metrics import cases as case_metrics
from kdnet_jax.models import heads
from kdnet_jax.reports import run_facts, score_tables, viewer
from kdnet_jax.training import progress

FILE = "report.html"

Scores = Sequence[case_metrics.RegionScore]


def write(
    folder: pathlib.Path,
    cases: store.CaseStore,
    *,
    channel: int,
    head: heads.Head,
    cavity: str,
    others: Mapping[str, pathlib.Path],
    synthetic: bool,
    facts: Sequence[tuple[str, str]],
) -> pathlib.Path:
    """Writes `report.html` of an evaluated run.

    Args:
        folder: the run's folder.
        cases: the cases it was evaluated on.
        channel: position of the sequence that the overlays show.
        head: of the run's network: its task, and what the channels of its probabilities are.
        cavity: what a resection cavity in the reference counts as.
        others: folders of evaluated runs to compare with, by role (the teacher).
        synthetic: say that the cases are phantoms.
        facts: rows of key and value on what was run, beyond what the summary holds.

    Returns:
        The report's path.
    """
    summary = score_files.summary_of(folder)
    folders = {**others, summary["role"]: folder}
    summaries = {role: score_files.summary_of(each) for role, each in folders.items()}
    processed = {
        role: score_files.read_summary(each, postprocessed=True) for role, each in folders.items()
    }
    scores = {role: score_files.read_scores(each) for role, each in folders.items()}
    measured = {
        role: found
        for role, each in folders.items()
        if (found := score_files.read_calibration(each)) is not None
    }
    shown = evaluation.shown_cases(scores[summary["role"]])
    task = head.task
    report = html.Report(
        title=f"KD-Net {summary['role']}: {', '.join(summary['modalities'])}",
        summary=run_facts.sentences(summaries, processed, scores, summary["role"]),
        tables=[
            _results(folders, scores, processed, task),
            *score_tables.decisions(summaries),
            *score_tables.calibration(measured),
        ],
        pictures=[
            *_pictures(folders, scores, task.region_names),
            *_reliability(measured, task.region_names),
        ],
        cases=_case_views(folder, cases, channel, head, cavity, scores[summary["role"]], shown),
        cases_note=_cases_note(summary, len(shown), task.noun),
        regions=task.region_names,
        noun=task.noun,
        facts=[*facts, *run_facts.rows(summary)],
        commands=[
            ("Repeat this run", summary["provenance"]["command"]),
            (
                "Segment a scan with it",
                f"python -m kdnet_jax.predict --checkpoint={shlex.quote(str(folder))} "
                "--input=SCAN.nii.gz --output=MASK.nii.gz --overlay=MASK.png",
            ),
        ],
        synthetic=synthetic,
    )
    html.write_report(folder / FILE, report)
    return folder / FILE


def _results(
    folders: Mapping[str, pathlib.Path],
    scores: Mapping[str, Scores],
    processed: Mapping[str, typed.JsonView | None],
    task: task_lib.Task,
) -> html.Table:
    """Returns the table of scores, each run without and with post-processing where it has both."""
    runs: dict[str, Scores] = {}
    rules = []
    for role, folder in folders.items():
        runs[role] = scores[role]
        after = processed[role]
        if after:
            runs[f"{role}\npost-processed"] = score_files.read_scores(folder, postprocessed=True)
            rules.append(f"{role}: {run_facts.post_processing(after)}")
    note = f"Post-processing: {'; '.join(rules)}." if rules else ""
    return score_tables.results(runs, note, task=task)


def _pictures(
    folders: Mapping[str, pathlib.Path], scores: Mapping[str, Scores], regions: Sequence[str]
) -> list[html.Picture]:
    pictures = [
        html.Picture(
            charts.case_plot(scores, charts.DICE, regions),
            "Dice of each test case, by region and run",
            "Dice of each test case; the bar is the mean, a line joins the same case.",
        ),
        html.Picture(
            charts.case_plot(scores, charts.HD95, regions),
            "HD95 of each test case, by region and run",
            "HD95 of each test case in mm, on a scale that is logarithmic above 1 mm; the bar is "
            "the median, a line joins the same case. 373 mm stands for an empty mask.",
        ),
    ]
    for role, folder in reversed([*folders.items()]):
        log = folder / progress.METRICS_FILE
        if not log.is_file():  # a teacher from elsewhere may have come without
            continue
        rows = progress.read_metrics(log)
        caption = (
            f"Training of the {role}: the loss, each of its terms on its own scale (thin: as "
            "logged, thick: running mean) and the Dice on validation cases."
        )
        alt = f"Loss terms and validation Dice of the {role} over the steps"
        pictures.append(html.Picture(charts.curves(rows, regions), alt, caption))
    return pictures


def _reliability(
    measured: Mapping[str, typed.JsonView], regions: Sequence[str]
) -> list[html.Picture]:
    return [
        html.Picture(
            charts.reliability(found["regions"], regions),
            f"Reliability diagram of the {role}, by region",
            f"Reliability of the {role}'s probabilities on the test cases, before and after "
            "calibration on validation cases: the share of voxels that are in the region among "
            "those of like probability. Below the diagonal it is too sure.",
        )
        for role, found in reversed([*measured.items()])
    ]


# --- Cases -------------------------------------------------------------------------------------


def _cases_note(summary: typed.JsonView, shown: int, noun: str) -> str:
    if shown == summary["cases"]:
        which = f"All {shown} test cases, the worst first, by mean Dice over the regions."
    else:
        # Of fewer than 20 cases, the median is one of the worst.
        alone = shown > evaluation.WORST + 1
        rest = "then the median and" if alone else "the median among them, then"
        which = (
            f"The {evaluation.WORST} worst of {summary['cases']} test cases by mean Dice over the "
            f"regions, the worst first, {rest} the best case."
        )
    return (
        f"{which} In the pictures each plane is the one with most {noun} of the reference. Solid "
        "line: reference; dashed line: prediction. Where probabilities were kept, a further row "
        "shows where the calibrated one of a region passes 0.1, 0.5 and 0.9: far apart, the "
        "network is unsure of the border. Slices are those of the working grid."
    )


def ranks(scores: Scores, shown: Sequence[str]) -> list[str]:
    """Returns why each shown case is shown: "worst", "2nd worst", ..., "median", "best"."""
    ordered = list(case_metrics.worst_first(scores))
    words = {case: f"{_ordinal(place)} worst" for place, case in enumerate(ordered, start=1)}
    words |= {ordered[len(ordered) // 2]: "median", ordered[-1]: "best", ordered[0]: "worst"}
    return [words[case] for case in shown]


def _ordinal(number: int) -> str:
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number // 10 % 10 != 1 else 0, "th")
    return f"{number}{suffix}"


def _case_views(
    folder: pathlib.Path,
    cases: store.CaseStore,
    channel: int,
    head: heads.Head,
    cavity: str,
    scores: Scores,
    shown: Sequence[str],
) -> list[html.CaseView]:
    position = {summary.case_id: i for i, summary in enumerate(cases.summaries)}
    convention = score_files.summary_of(folder)["labels"]
    views = []
    for rank, case_id in zip(ranks(scores, shown), shown, strict=True):
        case = cases[position[case_id]]
        assert case.label is not None, f"{case_id} was scored without a label"
        path = folder / score_files.PREDICTIONS / f"{case_id}.nii.gz"
        predicted = labels.to_classes(
            nifti.read_labels(path).data, convention, path, task=head.task
        )
        probabilities = score_files.read_probabilities(folder, case_id)
        views.append(
            case_view(
                rank,
                case,
                channel,
                labels.map_cavity(case.label, cavity, task=head.task),
                geometry.to_working(predicted, case.geometry, 0),
                None if probabilities is None else head.region_probabilities(probabilities),
                [score for score in scores if score.case == case_id],
                task=head.task,
            )
        )
    return views


def case_view(
    rank: str,
    case: prepare.PreparedCase,
    channel: int,
    reference: np.ndarray,
    predicted: np.ndarray,
    probabilities: np.ndarray | None,
    scores: Scores,
    *,
    task: task_lib.Task,
) -> html.CaseView:
    """Returns a case as the page shows it; all volumes are on the working grid."""
    image = case.image[..., channel].astype(np.float32)
    modality = case.modalities[channel]
    picture = figures.overlay(
        image,
        reference,
        predicted,
        spacing=case.geometry.spacing,
        title=f"{case.case_id}, {modality}",
        task=task,
        foreground=case.foreground,
        probabilities=probabilities,
    )
    dice = ", ".join(f"{score.region} {score.dice:.3f}" for score in scores)
    alt = (
        f"{case.case_id}, {modality}: reference and prediction as outlines on an axial, a coronal "
        f"and a sagittal slice. Dice {dice}."
    )
    slices = viewer.build(
        image,
        reference,
        predicted,
        probabilities,
        spacing=case.geometry.spacing,
        task=task,
        foreground=case.foreground,
    )
    table = score_tables.of_case(case.case_id, scores)
    return html.CaseView(rank, case.case_id, html.Picture(picture, alt), table, slices)


def region_table(summaries: Mapping[str, typed.JsonView]) -> str:
    """Returns the test Dice as a small plain-text table, a row per run."""
    regions = next(iter(summaries.values()))["regions"]
    widths = {region: max(8, len(region) + 2) for region in regions}
    names = "".join(f"{region:>{width}s}" for region, width in widths.items())
    head = f"{'':10s}{names}    mean"
    rows = [
        f"{role:10s}"
        + "".join(
            f"{summary['regions'][region]['dice']['mean']:{width}.3f}"
            for region, width in widths.items()
        )
        + f"{summary['mean_dice']:8.3f}"
        for role, summary in summaries.items()
    ]
    return "\n".join(["Test Dice", head, *rows])
