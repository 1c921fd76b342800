"""Statistics of CT channels: what the intensities of the foreground are, over all labelled cases.

A CT is in absolute units, so all scans are normalised alike: cut at the 0.5 and 99.5 percentile of
the foreground's voxels, then less their mean, by their deviation (Isensee et al., nnU-Net,
https://doi.org/10.1038/s41592-020-01008-z, supplementary note 2).
"""

import dataclasses
from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float

from kdnet_jax import task as task_lib
from kdnet_jax.data.scans import geometry, grids, prepare
from kdnet_jax.data.sources import cases, labels
from kdnet_jax.errors import UserError

# Of each case, drawn with replacement: each counts the same, however large its foreground.
_SAMPLES: Final = 10_000
_PERCENTILES: Final = (0.5, 99.5)


def measure(
    found: Sequence[cases.Case],
    task: task_lib.Task,
    *,
    orientation: str = geometry.HEADER,
    skip_bad_cases: bool = False,
) -> task_lib.Task:
    """Returns the task with the statistics of its "ct" channels; as it is if none lacks them.

    Args:
        found: all cases of the folder, before they are split, as nnU-Net measures all of
            imagesTr; those without a label say nothing.
        task: what is segmented.
        orientation: see `prepare.prepare_case`.
        skip_bad_cases: leave out cases that cannot be read; the preparation reports them.

    Raises:
        UserError: a case cannot be read, or no case has a foreground of more than one intensity.
    """
    unknown = [
        channel.name
        for channel in task.channels
        if channel.normalisation == "ct" and channel.statistics is None
    ]
    used = [name for name in unknown if any(name in case.images for case in found)]
    if not used:
        return task
    samples: dict[str, list[Float[np.ndarray, " _"]]] = {name: [] for name in used}
    for case in found:
        try:
            drawn = {} if case.label is None else _sample(case, used, task, orientation)
        except UserError:
            if not skip_bad_cases:
                raise
            continue
        for name, values in drawn.items():
            samples[name].append(values)
    measured = {name: _statistics(name, values) for name, values in samples.items()}
    channels = (
        dataclasses.replace(channel, statistics=measured[channel.name])
        if channel.name in measured
        else channel
        for channel in task.channels
    )
    return dataclasses.replace(task, channels=tuple(channels))


def _sample(
    case: cases.Case, names: Sequence[str], task: task_lib.Task, orientation: str
) -> dict[str, Float[np.ndarray, " n"]]:
    """Returns intensities of foreground voxels, the same voxels in every channel."""
    sources = {name: case.images[name] for name in names if name in case.images}
    files = prepare.read_files(dataclasses.replace(case, images=sources), task=task)
    if files.reference is None:
        return {}
    grid = grids.common_grid(
        files.images | {grids.LABEL: files.reference},
        stored_alike=orientation != geometry.HEADER,
    )
    reference = grid.members[grids.LABEL]
    classes = labels.to_classes(reference.data, case.convention, reference.path, task=task)
    voxels = np.flatnonzero(task.hull_mask(classes))
    if not voxels.size:
        return {}
    drawn = np.random.default_rng(0).choice(voxels, _SAMPLES)
    return {name: np.ravel(grid.members[name].data)[drawn].astype(np.float64) for name in sources}


def _statistics(
    name: str, samples: Sequence[Float[np.ndarray, " _"]]
) -> tuple[float, float, float, float]:
    values = np.concatenate(samples) if samples else np.zeros(0)
    low, high = np.percentile(values, _PERCENTILES) if values.size else (0.0, 0.0)
    if low == high:
        what = f"(nearly) only the intensity {low:g}" if values.size else "no voxel"
        raise UserError(
            f"{name}: the foreground of the labelled cases has {what}; expected intensities to "
            "normalise the CT by. Add cases with a labelled structure, or write the statistics "
            "into the task"
        )
    return float(low), float(high), float(values.mean()), float(values.std())
