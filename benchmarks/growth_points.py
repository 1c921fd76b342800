"""What `benchmarks.growth` measures: sizes of a training step, and what each costs."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import tqdm

from benchmarks import measuring

# What stays the same while one of them grows; the width is that of the finest of five levels.
BASE = {"edge": 64, "batch": 2, "width": 8}
GROWTH = {"edge": (32, 48, 64, 80, 96), "batch": (1, 2, 4, 8), "width": (4, 8, 16, 32)}
COHORTS = (4, 8, 16, 32, 64)
QUICK_BASE = {"edge": 16, "batch": 1, "width": 4}
QUICK_GROWTH = {"edge": (16, 32), "batch": (1, 2), "width": (4, 8)}
QUICK_COHORTS = (2, 4)
_LEVELS, _QUICK_LEVELS = 5, 2
Point = dict[str, Any]


def points(
    base: Mapping[str, int], growth: Mapping[str, Sequence[int]]
) -> list[tuple[dict[str, int], list[str]]]:
    """Returns every size once, with the names of the axes that it is a point of."""
    sizes: dict[tuple[int, ...], list[str]] = {}
    for axis, value in itertools.chain.from_iterable(
        zip(itertools.repeat(axis), values, strict=False) for axis, values in growth.items()
    ):
        key = tuple({**base, axis: value}.values())
        sizes.setdefault(key, []).append(axis)
    return [(dict(zip(base, key, strict=True)), axes) for key, axes in sizes.items()]


def measure_point(size: Mapping[str, int], levels: int, cores: int, peer: bool) -> Point:
    """Returns seconds and GiB of one size, ours and the peer's."""
    options = {
        "widths": tuple(size["width"] * 2**level for level in range(levels)),
        "edge": size["edge"],
        "batch": size["batch"],
        "repetitions": 4,
    }
    sides = {"ours": measuring.once("speed_ours:training_memory", cores, **options)}
    if peer:
        sides["peer"] = measuring.once(
            "speed_peer:training_memory", cores, **options, layout="channels_last", threads=cores
        )
    found: Point = dict(size)
    for side, about in sides.items():
        # The first is a warm-up.
        found[f"{side}_seconds"] = statistics.median(about["seconds"][1:])
        found[f"{side}_all_seconds"] = about["seconds"][1:]
        found[f"{side}_gib"] = about["peak_gib"]
    return found


def measure(cores: int, quick: bool, peer: bool, root: str) -> dict[str, list[Point]]:
    """Returns the points of each axis."""
    base, growth = (QUICK_BASE, QUICK_GROWTH) if quick else (BASE, GROWTH)
    cohorts = QUICK_COHORTS if quick else COHORTS
    levels = _QUICK_LEVELS if quick else _LEVELS
    found: dict[str, list[Point]] = {axis: [] for axis in (*growth, "cases")}
    planned = points(base, growth)
    total = len(planned) + len(cohorts)
    with tqdm.tqdm(total=total, unit="point", leave=False, disable=None) as bar:
        for size, axes in planned:
            point = measure_point(size, levels, cores, peer)
            for axis in axes:
                found[axis].append(point)
            bar.update()
        for cases in cohorts:
            about = measuring.once("growth_cohort:training", cores, root=root, cases=cases)
            found["cases"].append(
                {
                    "cases": cases,
                    "ours_seconds": statistics.median(about["seconds"]),
                    "ours_all_seconds": about["seconds"],
                    "ours_gib": about["peak_gib"],
                }
            )
            bar.update()
    for axis, values in found.items():
        values.sort(key=lambda point, axis=axis: point[axis])
    return found
