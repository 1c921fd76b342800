"""Folders of finished runs with made-up scores, as `kdnet_jax.compare` reads them."""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from configs import baseline, student, teacher
from kdnet_jax import task as task_lib
from kdnet_jax.config import reading, study
from kdnet_jax.evaluation import score_files
from kdnet_jax.metrics import cases

_CONFIGS = {"baseline": baseline, "student": student, "teacher": teacher}
TEACHER_HASH = "t" * 64
_A = np.array([[0.3, 0.4, 0.5], [0.32, 0.42, 0.52]])
# Of a study of few labels: arm -> Dice of ET, two seeds of three cases.
ARMS = {
    "E": _A + 0.3,
    "A": _A,
    "D": np.add(_A, [[0.15], [0.17]]),
    "B": np.add(_A, [0.03, 0, -0.03]),
    "C": np.add(_A, [[0.05, 0.06, 0.10], [0.07, 0.08, 0.12]]),
}


def row(case: str, region: str, dice: float, hd95: float, volume: float) -> cases.RegionScore:
    """Returns a row of cases.csv: two scores, the others made from them."""
    values: dict[str, Any] = {
        field.name: 0 for field in dataclasses.fields(cases.RegionScore) if field.type is int
    }
    values |= {"case": case, "region": region, "dice": dice, "hd95_mm": hd95}
    values |= {"nsd": dice / 2, "nsd_2mm": dice, "lesion_dice": dice, "lesion_hd95_mm": hd95}
    values |= {"sensitivity": dice, "specificity": 1.0, "volume_ref_mm3": volume}
    values |= {"volume_pred_mm3": volume, "ref_empty": volume == 0, "pred_empty": False}
    return cases.RegionScore(**values)


def write_run(
    folder: pathlib.Path,
    role: str,
    dice: Sequence[float],
    *,
    seed: int = 0,
    prefix: str = "case",
    config: Mapping[str, Any] | None = None,
    with_config: bool = True,
    summary: Mapping[str, Any] | None = None,
    task: task_lib.Task = task_lib.GLIOMA,
) -> pathlib.Path:
    """Writes a run: `dice` per case for ET; TC and WT 0.01 and 0.02 above, HD95 20 mm (1 - Dice).

    Of another task, the first region takes the place of ET.

    Args:
        folder: of the run.
        role: "baseline", "student" or "teacher".
        dice: of ET, per case.
        seed: of the training.
        prefix: of the cases' names; other names are another fold.
        config: keys of the config to change.
        with_config: whether it has a config.json; the output of `evaluate` has none.
        summary: keys of the summary to change.
        task: whose regions are scored.
    """
    rows = [
        row(f"{prefix}-{i:02d}", region, value + k / 100, 20 * (1 - value), 1000.0 * i)
        for i, value in enumerate(dice)
        for k, region in enumerate(task.region_names)
    ]
    (folder / "evaluation").mkdir(parents=True)
    cases.write_cases_csv(folder / "evaluation/cases.csv", rows)
    about = {
        **cases.summarise(rows, task=task),
        "role": role,
        "params_hash": TEACHER_HASH if role == "teacher" else f"{folder}",
        "teacher": {"path": "t", "hash": TEACHER_HASH} if role == "student" else None,
        "split_hash": f"split of {prefix}",
        "data_fingerprint": "f",
        "hd95": "h",
        "post_processing": "none",
        **(summary or {}),
    }
    if with_config:
        values = _CONFIGS[role].get_config("smoke")
        values.update_from_flattened_dict({"seed": seed, **(config or {})})
        (folder / "config.json").write_text(reading.read(values).to_json(), "utf-8")
    (folder / "evaluation/summary.json").write_text(json.dumps(about), "utf-8")
    return folder


def write_sides(
    folder: pathlib.Path, *, seeds: int = 3, cases: int = 20, gain: float = 0.1, noise: float = 0.01
) -> dict[str, list[pathlib.Path]]:
    """Writes `seeds` baselines, students better by `gain`, and one teacher better by 0.2."""
    rng = np.random.default_rng(0)
    base = rng.uniform(0.4, 0.6, cases)

    def noisy(level: np.ndarray) -> list[float]:
        return (level + noise * rng.standard_normal(cases)).tolist()

    return {
        "baseline": [
            write_run(folder / f"seed-{s}/baseline", "baseline", noisy(base), seed=s)
            for s in range(seeds)
        ],
        "student": [
            write_run(folder / f"seed-{s}/student", "student", noisy(base + gain), seed=s)
            for s in range(seeds)
        ],
        "teacher": [write_run(folder / "teacher", "teacher", noisy(base + 0.2))],
    }


def write_finished(part: study.Part, dice: Sequence[float]) -> None:
    """Writes a part of a study as if it had been run: `dice` per case for ET, see `write_run`."""
    experiment, folder = part.experiment, part.folder
    about = {
        **{"params_hash": f"{folder}", "split_hash": "the split"},
        **{"steps": 6, "train_seconds": 100.0, "evaluate_seconds": 30.0},
        "evaluation_version": score_files.VERSION,
    }
    write_run(folder, part.role, dice, summary=about)
    (folder / "config.json").write_text(experiment.to_json(), "utf-8")
    parts = {"train": ["a", "b"], "validation": ["c"], "test": ["d"], "unlabelled": ["e"]}
    (folder / "split.json").write_text(json.dumps(parts), "utf-8")
    shutil.copytree(folder / "evaluation", folder / "processed")
    (folder / "processed").rename(folder / "evaluation" / "postprocessed")
    (folder / score_files.PREDICTIONS).mkdir()
    (folder / "report.html").write_text("", "utf-8")


def write_arms(
    folder: pathlib.Path, dice: Mapping[str, np.ndarray]
) -> dict[str, list[pathlib.Path]]:
    """Writes the runs of a study of few labels, whose scores post-processing leaves as they are.

    Args:
        folder: the study's.
        dice: arm -> Dice of ET, "seeds cases"; see `write_run`.
    """
    runs: dict[str, list[pathlib.Path]] = {}
    for name, of_seeds in dice.items():
        arm = study.ARMS[name]
        for seed, scores in enumerate(of_seeds.tolist()):
            taught = {"path": "t", "hash": f"{arm.taught_by}{seed}"} if arm.taught_by else None
            about = {
                **{"params_hash": f"{name}{seed}", "teacher": taught},
                # Other cases are labelled with each seed, and all of them in D.
                "split_hash": f"{arm.all_labels} {seed}",
                **{"steps": 800, "train_seconds": 100.0 + seed, "evaluate_seconds": 30.0},
            }
            place = folder / f"seed-{seed}" / arm.folder
            run = write_run(place, arm.role, scores, seed=seed, summary=about)
            shutil.copytree(run / "evaluation", run / "processed")
            (run / "processed").rename(run / "evaluation" / "postprocessed")
            runs.setdefault(name, []).append(run)
    return runs
