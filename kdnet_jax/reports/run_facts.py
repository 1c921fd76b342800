"""Facts of a run's report in words: the result, and what was run."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from kdnet_jax.core import typed
from kdnet_jax.metrics import cases, statistics
from kdnet_jax.reports import score_tables

# Keys of the summary's provenance that are no version of a package.
_MACHINE: Final = {"commit": "Commit", "device": "Device", "machine": "Machine"}
_ELSEWHERE: Final = ("command",)


def sentences(
    summaries: Mapping[str, typed.JsonView],
    processed: Mapping[str, typed.JsonView | None],
    scores: Mapping[str, Sequence[cases.RegionScore]],
    role: str,
) -> list[str]:
    """Returns the result in words, that of the run with `role` first."""
    means = {name: cases.worst_first(each) for name, each in scores.items()}
    texts = [_result(role, summaries[role], means[role])]
    for name, summary in summaries.items():
        if name != role:
            texts.append(_result(name, summary, means[name]))
            texts.append(_difference(role, means[role], name, means[name]))
    after = processed.get(role)
    if after:
        before, then = (f"{each['mean_dice']:.3f}" for each in (summaries[role], after))
        change = f"stays at {then}" if then == before else f"goes from {before} to {then}"
        texts.append(
            f"With post-processing ({after['post_processing']}) the {role}’s mean Dice {change}."
        )
    return texts


def post_processing(summary: typed.JsonView) -> str:
    """Returns the rule of a post-processed evaluation, and what it came to for this run."""
    chosen = summary.get("post_processing_chosen")
    return summary["post_processing"] + (f": {chosen}" if chosen else "")


def _result(role: str, summary: typed.JsonView, means: Mapping[str, float]) -> str:
    sequences = ", ".join(summary["modalities"])
    regions = ", ".join(
        f"{region} {row['dice']['mean']:.3f}" for region, row in summary["regions"].items()
    )
    found = score_tables.mean(list(means.values()), 0.0, 1.0)
    return (
        f"The {role} ({sequences}) reaches a mean test Dice of "
        f"{_text(found, '.3f')} over {summary['cases']} cases: "
        f"{regions}."
    )


def _difference(
    role: str, means: Mapping[str, float], other: str, other_means: Mapping[str, float]
) -> str:
    common = [case for case in means if case in other_means]
    found = score_tables.mean([means[case] - other_means[case] for case in common], -1.0, 1.0)
    return (
        f"On the same {len(common)} cases the {role}’s mean Dice differs from the {other}’s by "
        f"{_text(found, '+.3f')}."
    )


def _text(found: statistics.Interval, form: str) -> str:
    text = f"{found.estimate:{form}}"
    if not math.isnan(found.low):
        text += f" (95 % interval {found.low:{form}} to {found.high:{form}})"
    return text.replace("-", "−")


# --- What was run ------------------------------------------------------------------------------


def rows(summary: typed.JsonView) -> list[tuple[str, str]]:
    """Returns rows of key and value on a run; what its summary does not hold is left out."""
    readers: tuple[tuple[str, tuple[str, ...], Callable[..., str]], ...] = (
        ("Best checkpoint", ("step", "steps"), lambda step, steps: f"step {step} of {steps}"),
        ("Parameters", ("parameters",), lambda count: f"{count:,}"),
        ("Wall time, training", ("train_seconds",), _duration),
        ("Wall time, evaluation", ("evaluate_seconds",), _duration),
        ("Peak memory (host)", ("peak_memory_gib",), lambda gib: f"{gib:.1f} GiB"),
        ("Split (hash)", ("split_hash",), _short),
        ("Data (fingerprint)", ("data_fingerprint",), _short),
        ("Parameters (hash)", ("params_hash",), _short),
        ("Teacher", ("teacher",), lambda each: f"{each['path']} ({_short(each['hash'])})"),
        ("HD95", ("hd95",), str),
    )
    found = []
    for name, keys, text in readers:
        values = [value for key in keys if (value := summary.get(key)) is not None]
        if len(values) == len(keys):
            found.append((name, text(*values)))
    return found + _software(summary.get("provenance", {}))


def _short(digest: str) -> str:
    return digest[:16]


def _software(provenance: Mapping[str, str]) -> list[tuple[str, str]]:
    packages = [
        f"{name} {version}"
        for name, version in provenance.items()
        if name not in _MACHINE and name not in _ELSEWHERE
    ]
    found = [(name, provenance[key]) for key, name in _MACHINE.items() if key in provenance]
    return found + ([("Versions", ", ".join(packages))] if packages else [])


def _duration(seconds: float) -> str:
    """Returns seconds as a reader says them: 41 s, 12.5 min, 3.2 h."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{math.ceil(seconds)} s"
