"""Gathers what a run's folder holds into its report, and into the lines that the command prints."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdnet_jax import conventions, evaluation
from kdnet_jax.data import geometry, labels, nifti, store
from kdnet_jax.metrics import cases as case_metrics
from kdnet_jax.reporting import figures, html, progress

FILE = "report.html"
_RANKS = ("best", "median", "worst")


def write(
    folder: pathlib.Path,
    cases: store.CaseStore,
    *,
    channel: int,
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
        cavity: what a resection cavity in the reference counts as.
        others: folders of evaluated runs to compare with, by role (the teacher).
        synthetic: say that the cases are phantoms.
        facts: rows of key and value on what was run, beyond what the summary holds.

    Returns:
        The report's path.
    """
    summary = evaluation.read_summary(folder)
    summaries = {role: evaluation.read_summary(other) for role, other in others.items()}
    scores = {role: evaluation.read_scores(other) for role, other in others.items()}
    summaries[summary["role"]] = summary
    scores[summary["role"]] = evaluation.read_scores(folder)
    report = html.Report(
        title=f"KD-Net {summary['role']}: {', '.join(summary['modalities'])}",
        summary=[dice_sentence(role, each) for role, each in summaries.items()],
        facts=[*facts, *_facts(summary)],
        runs=summaries,
        pictures=_pictures(folder, others, scores),
        cases=_case_views(folder, cases, channel, cavity, scores[summary["role"]]),
        commands=[
            ("Repeat this run", summary["provenance"]["command"]),
            (
                "Segment a scan with it",
                f"python -m kdnet_jax.predict --checkpoint={folder} --input=SCAN.nii.gz "
                "--output=MASK.nii.gz --overlay=MASK.png",
            ),
        ],
        synthetic=synthetic,
    )
    html.write_report(folder / FILE, report)
    return folder / FILE


def dice_sentence(role: str, summary: Mapping[str, Any]) -> str:
    """Returns one line with the test Dice of each region."""
    dice = ", ".join(
        f"{region} {row['dice']['mean']:.3f}" for region, row in summary["regions"].items()
    )
    return (
        f"{role} ({', '.join(summary['modalities'])}): test Dice {dice}, "
        f"mean {summary['mean_dice']:.3f} over {summary['cases']} cases"
    )


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("Best checkpoint", f"step {summary['step']} of {summary['steps']}"),
        ("Training time", f"{summary['train_seconds'] / 60:.1f} min"),
        ("Parameters", f"{summary['parameters']:,}"),
        ("Split", summary["split_hash"][:16]),
        ("Data", summary["data_fingerprint"][:16]),
        ("Post-processing", summary["post_processing"]),
        ("HD95", summary["hd95"]),
    ]
    if summary["teacher"]:
        teacher = summary["teacher"]
        rows.append(("Teacher", f"{teacher['path']} ({teacher['hash'][:16]})"))
    return rows + list(summary["provenance"].items())


def _pictures(
    folder: pathlib.Path,
    others: Mapping[str, pathlib.Path],
    scores: Mapping[str, Sequence[case_metrics.RegionScore]],
) -> list[html.Picture]:
    pictures = [
        html.Picture(
            figures.dice_plot(scores),
            "Dice of each test case, by region and run",
            "Dice of each test case; the bar is the mean, a line joins the same case.",
        )
    ]
    own = [role for role in scores if role not in others]
    for role, each in {own[0]: folder, **others}.items():
        rows = progress.read_metrics(each / progress.METRICS_FILE)
        caption = f"{role}: loss terms and validation Dice over the steps."
        pictures.append(html.Picture(figures.curves(rows), caption, caption))
    return pictures


def ranked(scores: Sequence[case_metrics.RegionScore]) -> dict[str, str]:
    """Returns the ids of the best, median and worst case by mean Dice over the regions."""
    by_case: dict[str, list[float]] = {}
    for score in scores:
        by_case.setdefault(score.case, []).append(score.dice)
    ordered = sorted(by_case, key=lambda case: (-np.mean(by_case[case]), case))
    picks = (ordered[0], ordered[len(ordered) // 2], ordered[-1])
    chosen: dict[str, str] = {}
    for rank, case in zip(_RANKS, picks, strict=True):
        if case not in chosen.values():
            chosen[rank] = case
    return chosen


def _case_views(
    folder: pathlib.Path,
    cases: store.CaseStore,
    channel: int,
    cavity: str,
    scores: Sequence[case_metrics.RegionScore],
) -> list[html.CaseView]:
    position = {summary.case_id: i for i, summary in enumerate(cases.summaries)}
    convention = evaluation.read_summary(folder)["labels"]
    views = []
    for rank, case_id in ranked(scores).items():
        case = cases[position[case_id]]
        path = folder / evaluation.PREDICTIONS / f"{case_id}.nii.gz"
        predicted = labels.to_classes(nifti.read_labels(path).data, convention, path)
        picture = figures.overlay(
            case.image[..., channel].astype(np.float32),
            labels.map_cavity(case.label, cavity),
            geometry.to_working(predicted, case.geometry, 0),
            spacing=case.geometry.spacing,
            title=f"{case_id}, {case.modalities[channel]}",
        )
        facts = [
            (f"Dice {score.region}", f"{score.dice:.3f}")
            for score in scores
            if score.case == case_id
        ]
        alt = f"{rank} case {case_id}: reference and prediction as contours in three planes"
        views.append(html.CaseView(rank, case_id, html.Picture(picture, alt), facts))
    return views


def region_table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the test Dice as a small plain-text table, a row per run."""
    head = f"{'':10s}" + "".join(f"{region:>8s}" for region in conventions.REGIONS) + "    mean"
    rows = [
        f"{role:10s}"
        + "".join(f"{row['dice']['mean']:8.3f}" for row in summary["regions"].values())
        + f"{summary['mean_dice']:8.3f}"
        for role, summary in summaries.items()
    ]
    return "\n".join(["Test Dice", head, *rows])
