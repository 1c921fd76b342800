"""Batches of cases with a reference and without: who comes when, and that nothing hidden shows."""

import dataclasses
import itertools
import json
from typing import Any

import jax
import numpy as np
import pytest

from kdnet_jax import task as task_lib
from kdnet_jax.augment import augment
from kdnet_jax.data.loading import loader, mixed
from kdnet_jax.data.records import store
from kdnet_jax.errors import UserError
from kdnet_jax.losses import distillation, objective
from kdnet_jax.models import networks, unet
from kdnet_jax.parallel import sharding
from kdnet_jax.training import optimizers, steps
from tests.helpers import glioma, stores

PATCH = (8, 8, 8)
# The shapes differ, so that one is padded.
SHAPES = ((14, 16, 18), (12, 9, 9), (9, 11, 14), (8, 12, 10), (7, 9, 8), (10, 10, 10))
LABELLED, OTHERS = (1, 3), (0, 2, 4, 5)


def make_cases(hidden: int) -> store.CaseStore:
    """Cases of noise; those without a reference in use have labels that follow from `hidden`."""
    cases = [stores.make_case(number, shape) for number, shape in enumerate(SHAPES)]
    for number, case in enumerate(cases):
        case.image[...] = np.random.default_rng(number).normal(size=case.image.shape)
        if number in OTHERS:
            rng = np.random.default_rng([hidden, number])
            case.label[...] = rng.integers(0, 4, case.label.shape)
    # One has no label at all.
    cases[5] = dataclasses.replace(cases[5], label=None, reference=None)
    return stores.store_of(cases)


def options(**more: Any) -> dict[str, Any]:
    chosen: dict[str, Any] = {"patch": PATCH, "batch": 4, "seed": 5, "crops_per_read": 2}
    return {**chosen, "unlabelled": OTHERS, "unlabelled_share": 0.5, **more}


def batches_of(cases: store.CaseStore, count: int, **more: Any) -> list[loader.Batch]:
    mesh = sharding.make_mesh()
    with loader.make_loader(cases, LABELLED, mesh=mesh, **options(**more)) as batches:
        return jax.device_get(list(itertools.islice(batches, count)))


def assert_equal(ours: list[loader.Batch], theirs: list[loader.Batch]) -> None:
    for left, right in zip(ours, theirs, strict=True):
        for key in ("image", "label"):
            np.testing.assert_array_equal(left[key], right[key])


def source_of(share: float, batch: int, tumour_share: float = 0.5) -> mixed.Source:
    return mixed.make_source(
        make_cases(0),
        LABELLED,
        OTHERS,
        share,
        batch=batch,
        patch=(1, 1, 1),
        seed=0,
        tumour_share=tumour_share,
    )


@pytest.mark.parametrize(
    ("share", "pattern"),
    [
        (0.5, "-u-u-u-u"),
        (0.25, "---u---u"),
        (1.0, "uuuuuuuu"),
        (0.75, "-uuu-uuu"),
        (0.0, "--------"),
    ],
)
def test_the_share_alone_says_who_comes(share: float, pattern: str) -> None:
    source = source_of(share, batch=4)
    labels = [source[element]["label"] for element in range(8)]
    found = ["u" if (label == task_lib.NO_LABEL).all() else "-" for label in labels]
    assert "".join(found) == pattern
    names = [source.cases_of(number) for number in range(2)]
    wanted = [
        {f"case_{i}" for i in OTHERS} if kind == "u" else {"case_1", "case_3"} for kind in pattern
    ]
    for number, ids in enumerate(names):
        assert set(ids) <= set.union(*wanted[4 * number : 4 * number + 4])


def test_the_cases_of_a_batch_differ_and_half_of_the_labelled_patches_lie_on_tumour() -> None:
    source = source_of(0.5, batch=4, tumour_share=0.5)
    assert all(len(source.cases_of(number)) == 4 for number in range(20))
    # Patches of one voxel: on a foreground voxel if centred there.
    labels = [int(source[element]["label"].item()) for element in range(0, 400, 2)]
    assert 100 <= sum(value > 0 for value in labels) < 130


def test_places_and_threads_change_nothing() -> None:
    cases = make_cases(0)
    streamed = batches_of(cases, 6)
    assert_equal(batches_of(cases, 6, threads=3), streamed)
    cases.cache_bytes = cases.decoded_bytes
    assert_equal(batches_of(cases, 6), streamed)
    assert_equal(batches_of(cases, 6, on_device=True), streamed)


@pytest.mark.parametrize("on_device", [False, True])
def test_a_position_is_saved_and_another_share_is_another_stream(on_device: bool) -> None:
    cases, mesh = make_cases(0), sharding.make_mesh()
    straight = batches_of(cases, 5)
    with loader.make_loader(cases, LABELLED, mesh=mesh, **options()) as first:
        for _ in range(2):
            next(first)
        text = json.dumps(first.get_state())
        assert any("4 training cases without a reference" in note for note in first.notes)
    given = options(on_device=on_device)
    with loader.make_loader(cases, LABELLED, mesh=mesh, **given) as second:
        second.set_state(json.loads(text))
        assert_equal(jax.device_get(list(itertools.islice(second, 3))), straight[2:])
    given = options(unlabelled_share=0.25)
    with (
        loader.make_loader(cases, LABELLED, mesh=mesh, **given) as other,
        pytest.raises(UserError, match="unlabelled_share"),
    ):
        other.set_state(json.loads(text))


def test_all_references_can_be_hidden() -> None:
    cases = make_cases(0)
    ours, theirs = (batches_of(each, 3, hidden=True) for each in (cases, make_cases(1)))
    assert_equal(ours, theirs)
    # 0 where a patch reaches beyond its case.
    assert {*np.unique([batch["label"] for batch in ours])} == {0, task_lib.NO_LABEL}
    given = options(hidden=True)
    with loader.make_loader(cases, LABELLED, mesh=sharding.make_mesh(), **given) as batches:
        seen = {name for number in range(8) for name in batches.cases_of(number)}
    assert seen == {f"case_{number}" for number in range(6)}


@pytest.mark.once
def test_a_hidden_label_changes_no_bit_of_the_parameters() -> None:
    ours, theirs = (batches_of(make_cases(hidden), 3) for hidden in (0, 1))
    assert_equal(ours, theirs)
    config = unet.UNetConfig(widths=(2, 3), blocks=1, last_blocks=1)
    apply = unet.UNet(config).apply
    rule = optimizers.make_optimizer(optimizers.OptimizerOptions(schedule="constant"), 10, 1)
    kd = distillation.DistillationOptions()
    step = steps.jit_step(
        sharding.make_mesh(),
        student=steps.Network(apply, glioma.SOFTMAX, (0,)),
        teacher=steps.Network(apply, glioma.SOFTMAX, (0, 1)),
        loss=objective.of_options(glioma.SOFTMAX, kd=kd, unlabelled=True),
        optimizer=rule,
        plan=steps.Plan(augment.AugmentOptions()),
    )
    teacher = networks.init_params(config, 2, jax.random.key(0))

    def trained(batches: list[loader.Batch]) -> Any:
        params = networks.init_params(config, 1, jax.random.key(1))
        state = steps.init_state(params, rule)
        for batch in batches:
            state, metrics = step(state, teacher, batch, jax.random.key(2))
            assert float(metrics["pl_dice"]) > 0
        return jax.device_get(state.params)

    first = trained(ours)
    jax.tree.map(np.testing.assert_array_equal, first, trained(theirs))
    # What is not hidden does change them.
    changed = trained(
        [{**batch, "label": np.where(batch["label"] < 4, 0, batch["label"])} for batch in theirs]
    )
    assert any(
        (left != right).any()
        for left, right in zip(jax.tree.leaves(first), jax.tree.leaves(changed), strict=True)
    )
