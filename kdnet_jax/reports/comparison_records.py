"""A comparison for machines: tidy rows and JSON."""

import dataclasses
import math
from collections.abc import Iterator

from kdnet_jax.core import typed
from kdnet_jax.evaluation import comparison

# Column -> what stands there.
Row = dict[str, str | int | float]


def table(c: comparison.Comparison) -> Iterator[Row]:
    """Yields a row per metric, region and quantity, each with the same columns."""
    for result in c.results:
        for quantity, values in _quantities(result):
            row = {
                "metric": result.metric,
                "region": result.region,
                "quantity": quantity,
                **dict.fromkeys(("estimate", "low", "high", "sd_runs", "sd_cases"), ""),
                **dict.fromkeys(("p", "p_holm"), ""),
                "runs": c.pairs,
                "cases": result.cases,
            }
            yield row | {key: value for key, value in values.items() if not math.isnan(value)}


def _quantities(result: comparison.Result) -> Iterator[tuple[str, dict[str, float]]]:
    for side, level in result.levels.items():
        spread = {"sd_runs": level.sd_runs, "sd_cases": level.sd_cases}
        yield f"mean, {side}", _ends(*level.interval[:3]) | spread
        yield f"median, {side}", {"estimate": level.median}
    tested = {"p": result.difference.p, "p_holm": result.p_holm}
    yield "difference", _ends(*result.difference[:3]) | tested
    yield "median difference", _ends(*result.median_difference)
    networks = {"p": result.p_wilcoxon, "p_holm": result.p_wilcoxon_holm}
    yield "rank-biserial", {"estimate": result.rank_biserial, **networks}
    yield "Cohen's dz", {"estimate": result.cohen_dz}
    if result.share is not None:
        yield "teacher's lead", _ends(*result.share.lead[:3]) | {"p": result.share.lead.p}
        yield "share of the lead", _ends(*result.share[:3])


def _ends(estimate: float, low: float, high: float) -> dict[str, float]:
    return {"estimate": estimate, "low": low, "high": high}


def cases(c: comparison.Comparison) -> Iterator[Row]:
    """Yields a row per case, region and metric, averaged over the runs."""
    for place, name in enumerate(c.cases.names):
        for column, region in enumerate(c.columns):
            for metric in c.metrics:
                scores = {
                    side: float(c.cases.values[side, metric][place, column]) for side in c.sides
                }
                yield {
                    "case": name,
                    "fold": c.cases.folds[place],
                    "region": region,
                    "metric": metric,
                    **scores,
                    "difference": scores["student"] - scores["baseline"],
                    "volume_ref_ml": float(c.cases.volumes_ml[place, column]),
                }


def as_json(c: comparison.Comparison) -> typed.Json:
    """Returns everything but the scores of single cases; what is undefined is None."""
    return {
        "inputs": {side: [str(folder) for folder in folders] for side, folders in c.sides.items()},
        "pairs_per_fold": list(c.folds),
        "cases": list(c.cases.names),
        "postprocessed": c.postprocessed,
        "seed": c.seed,
        "resamples": c.resamples,
        "differs": list(c.differs),
        "notes": list(c.notes),
        "results": [plain(result) for result in c.results],
    }


def plain(value: object) -> object:
    """Returns a value for JSON: dataclasses and named tuples as dicts, NaN as None."""
    if dataclasses.is_dataclass(value):
        named = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return plain(named)
    if (as_dict := getattr(value, "_asdict", None)) is not None:
        return plain(as_dict())
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
