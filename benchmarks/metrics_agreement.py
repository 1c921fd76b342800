"""Prints, as Markdown, how far other tools are from this project's metrics.

    python -m benchmarks.metrics_agreement --data_dir=DIR [--cases=N]

DIR is a folder of BraTS cases. The tools are those of requirements-oracles.txt that are installed.
"""

import collections
import math
import sys
from collections.abc import Iterable, Mapping

import tqdm
from absl import app, flags

from benchmarks import metrics_oracles, metrics_pairs
from kdnet_jax import errors

METRICS = ("dice", "hd95_mm", "nsd", "nsd_2mm", "lesion_dice", "lesion_hd95_mm")
_EQUAL = 1e-6
# tool -> metric -> difference per pair; NaN where just one side is finite.
Differences = dict[str, dict[str, list[float]]]

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of BraTS cases.", required=True)
_CASES = flags.DEFINE_integer("cases", None, "Number of cases (all of them by default).")


def difference(ours: float, theirs: float) -> float:
    """Returns the absolute difference; NaN where just one of the two is a finite number."""
    if math.isfinite(ours) and math.isfinite(theirs):
        return abs(ours - theirs)
    return 0.0 if str(ours) == str(theirs) else math.nan


def compare(pairs: Iterable[metrics_pairs.Pair]) -> tuple[Differences, list[str]]:
    """Asks every tool for every pair; returns the differences and lines on those that differ."""
    tools = metrics_oracles.installed()
    found: Differences = {tool: collections.defaultdict(list) for tool in tools}
    lines = []
    for name, *pair in pairs:
        ours = metrics_oracles.ours(*pair)
        for tool, ask in tools.items():
            theirs = ask(*pair)
            apart = {key: difference(ours[key], theirs[key]) for key in METRICS if key in theirs}
            for key, value in apart.items():
                found[tool][key].append(value)
            odd = [f"{k} {ours[k]:.4g} / {theirs[k]:.4g}" for k, v in apart.items() if not v < 1e-3]
            if odd:
                lines.append(f"| {name} | {tool} | {'; '.join(odd)} |")
    return found, lines


def table(found: Mapping[str, Mapping[str, list[float]]]) -> str:
    """Returns the Markdown table of largest differences."""
    lines = ["| tool | " + " | ".join(METRICS) + " |", "|---" * (len(METRICS) + 1) + "|"]
    for tool, metrics in found.items():
        cells = (_cell(metrics[key]) if key in metrics else "-" for key in METRICS)
        lines.append(f"| {tool} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    """Largest and median difference, and on how many pairs just one side is defined."""
    defined = sorted(value for value in values if not math.isnan(value))
    undefined = len(values) - len(defined)
    text = "-"
    if defined:
        largest, median = defined[-1], defined[len(defined) // 2]
        text = "0" if largest < _EQUAL else f"{largest:.3g} (median {median:.2g})"
    return text + (f"; {undefined} undefined" if undefined else "")


def main(argv: list[str]) -> None:
    """Prints the tables."""
    del argv
    errors.exit_on_user_error(_run)


def _run() -> None:
    real = list(metrics_pairs.real_pairs(_DATA_DIR.value, _CASES.value))
    progress = tqdm.tqdm(real, desc="real pairs", unit="pair", file=sys.stderr)
    print(f"## Largest difference over {len(real)} real pairs\n\n{table(compare(progress)[0])}\n")
    edges = metrics_pairs.edge_pairs()
    found, lines = compare(edges)
    print(f"## Largest difference over {len(edges)} edge cases\n\n{table(found)}\n")
    print("## Edge cases that differ: ours / theirs\n\n| case | tool | values |\n|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    app.run(main)
