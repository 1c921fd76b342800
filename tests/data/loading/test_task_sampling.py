"""Patches of other tasks than the glioma: classes alike, ignored voxels."""

import dataclasses
import itertools
from typing import Any

import jax
import numpy as np
import pytest

from kdnet_jax import dataset_json
from kdnet_jax import task as task_lib
from kdnet_jax.data.loading import loader, patches
from kdnet_jax.data.records import store
from kdnet_jax.data.scans import prepare
from kdnet_jax.parallel import sharding
from tests.helpers import made_tasks, stores

PLAIN = dataset_json.parse(made_tasks.PLAIN, "plain/dataset.json")
REGIONS = dataset_json.parse(made_tasks.REGIONS, "regions/dataset.json")
SIZE = (10, 16, 18)


def make_case(task: task_lib.Task, index: int) -> prepare.PreparedCase:
    """Noise; a large first class, each further one smaller; a slab that nobody labelled."""
    case = stores.make_case(index, SIZE, tumour=False)
    rng = np.random.default_rng(index)
    label = np.zeros(SIZE, np.uint8)
    for value in range(1, len(task.classes)):
        edge = 2 * (len(task.classes) - value)
        start = [int(rng.integers(0, max(1, size - edge))) for size in SIZE]
        label[tuple(slice(at, at + edge) for at in start)] = value
    if task.ignore is not None:
        label[:2] = task.ignore
    return dataclasses.replace(
        case,
        modalities=task.modalities,
        image=rng.normal(size=(*SIZE, len(task.modalities))).astype(np.float16),
        label=label,
        reference=label,
        foreground=np.ones(SIZE, bool),
    )


def make_store(task: task_lib.Task, count: int) -> store.CaseStore:
    return stores.store_of([make_case(task, index) for index in range(count)], task)


def batches_of(cases: store.CaseStore, **options: Any) -> list[loader.Batch]:
    chosen = {"patch": (6, 8, 8), "batch": 2, "seed": 1} | options
    with loader.make_loader(
        cases, range(len(cases)), mesh=sharding.make_mesh(), **chosen
    ) as batches:
        return jax.device_get(list(itertools.islice(batches, 8)))


@pytest.mark.parametrize("task", [PLAIN, REGIONS], ids=lambda task: task.name)
def test_centres_are_of_each_class_alike_and_never_ignored(task: task_lib.Task) -> None:
    cases = make_store(task, 1)
    source = patches.PatchSource(cases, [0], patch=(1, 1, 1), batch=1, seed=3, tumour_share=1.0)
    found = [int(source[i]["label"][0, 0, 0]) for i in range(400)]
    count = len(task.classes) - 1
    times = np.bincount(found, minlength=count + 1)
    assert times[0] == 0
    assert len(times) == count + 1
    # Binomial; four deviations.
    share = 1 / count
    assert np.abs(times[1:] / 400 - share).max() < 4 * np.sqrt(share * (1 - share) / 400)


@pytest.mark.parametrize("task", [PLAIN, REGIONS], ids=lambda task: task.name)
@pytest.mark.parametrize("crop", [None, (12, 10, 20)])
def test_batches_are_the_same_wherever_the_cases_lie(task: task_lib.Task, crop: Any) -> None:
    host = batches_of(make_store(task, 3), crop=crop)
    device = batches_of(make_store(task, 3), crop=crop, on_device=True)
    for ours, theirs in zip(host, device, strict=True):
        np.testing.assert_array_equal(ours["image"], theirs["image"])
        np.testing.assert_array_equal(ours["label"], theirs["label"])
    values = set(np.unique(np.concatenate([batch["label"] for batch in host])))
    assert values == {*range(len(task.classes)), *([] if task.ignore is None else [task.ignore])}


def test_summary_and_note_follow_the_task() -> None:
    cases = make_store(PLAIN, 1)
    label = cases[0].label
    counts = ((label == 1).sum(), (label == 2).sum())
    assert cases.summaries[0].class_voxels == counts
    empty = dataclasses.replace(cases[0], label=np.zeros(SIZE, np.uint8))
    with loader.make_loader(
        stores.store_of([empty], PLAIN),
        [0],
        mesh=sharding.make_mesh(),
        patch=(4, 4, 4),
        batch=1,
        seed=0,
    ) as stream:
        assert any("hold no foreground (case_0" in note for note in stream.notes)
