"""Prints, as Markdown, the processor time to score a whole case, and that of other tools.

    python -m benchmarks.metrics_speed --data_dir=DIR [--cases=N] [--peers]

DIR is a folder of BraTS cases. The time is that of this process on the case's whole grid, three
regions, all columns of cases.csv, without reading files; of a tool, its own metrics only.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks import metrics_oracles, metrics_pairs
from kdnet_jax import errors
from kdnet_jax import task as task_lib
from kdnet_jax.metrics import cases

ISO = (1.0, 1.0, 1.0)

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of BraTS cases.", required=True)
_CASES = flags.DEFINE_integer("cases", 3, "Number of cases.")
_PEERS = flags.DEFINE_bool("peers", False, "Also time the tools that are installed.")


def predictions(
    reference: metrics_pairs.Classes, other: metrics_pairs.Classes
) -> Mapping[str, metrics_pairs.Classes]:
    """Returns predictions that are near, far and scattered over the whole grid."""
    generator = np.random.default_rng(0)
    scattered = reference.copy()
    specks = generator.random(reference.shape) < 0.003
    scattered[specks] = generator.integers(1, 4, np.count_nonzero(specks))
    return {
        "shifted by 2 voxels": np.roll(reference, 2, axis=0),
        "another patient's": other,
        "none": np.zeros_like(reference),
        "specks on 0.3 % of the grid": scattered,
    }


def ours(reference: metrics_pairs.Classes, prediction: metrics_pairs.Classes) -> None:
    """Scores the case."""
    cases.score_case("", reference, prediction, ISO, task=task_lib.GLIOMA)


def of_tool(ask: Callable[..., Any]) -> Callable[..., None]:
    """Returns a function that asks a tool for the three regions of a case."""

    def score(reference: metrics_pairs.Classes, prediction: metrics_pairs.Classes) -> None:
        for region in task_lib.GLIOMA.region_names:
            both = (task_lib.GLIOMA.mask(each, region) for each in (reference, prediction))
            ask(*both, ISO)

    return score


def seconds(score: Callable[..., None], *masks: metrics_pairs.Classes) -> float:
    """Returns the processor time of one call."""
    start = time.process_time()
    score(*masks)
    return time.process_time() - start


def main(argv: list[str]) -> None:
    """Prints the table."""
    del argv
    errors.exit_on_user_error(_run)


def _run() -> None:
    tools = {"kdnet_jax": ours}
    if _PEERS.value:
        tools |= {name: of_tool(ask) for name, ask in metrics_oracles.peers().items()}
    cube = np.pad(np.full((4, 4, 4), 3, np.uint8), 4)
    for score in tools.values():
        score(cube, cube)  # the first call imports
    found = metrics_pairs.segmentations(_DATA_DIR.value)
    taken: dict[str, dict[str, list[float]]] = {}
    for place, (_, reference) in enumerate(found[: _CASES.value]):
        other = found[(place + 1) % len(found)][1]
        for kind, prediction in predictions(reference, other).items():
            for tool, score in tools.items():
                row = taken.setdefault(kind, {}).setdefault(tool, [])
                row.append(seconds(score, reference, prediction))
    print(f"| prediction | {' | '.join(tools)} |\n" + "|---" * (len(tools) + 1) + "|")
    for kind, row in taken.items():
        cells = (f"{np.mean(row[tool]):.2f} (at most {max(row[tool]):.2f})" for tool in tools)
        print(f"| {kind} | {' | '.join(cells)} |")


if __name__ == "__main__":
    app.run(main)
