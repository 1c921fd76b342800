"""Batches cut on the device: the same bits as those cut on the host, wherever they go."""

import itertools
import json
import os
import pathlib
import sys
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdnet_jax import task as task_lib
from kdnet_jax.data.loading import loader, resident
from kdnet_jax.data.records import store
from kdnet_jax.parallel import sharding
from tests.helpers import commands, stores

# Larger than some of the cases along every axis, smaller than others.
PATCH = (8, 12, 10)
SHAPES = ((14, 16, 18), (7, 20, 9), (9, 11, 30), (8, 12, 10), (7, 7, 7))
MESHES = ((4, 1), (2, 2), (1, 4))


def mixed_cases() -> store.CaseStore:
    """Cases of all sizes; one has a resection cavity, one no tumour, and all a noise image."""
    cases = [stores.make_case(i, shape, tumour=i != 2) for i, shape in enumerate(SHAPES, start=1)]
    cases[0].label[3:6] = len(task_lib.GLIOMA.classes)
    for number, case in enumerate(cases):
        case.image[...] = np.random.default_rng(number).normal(size=case.image.shape)
    return stores.store_of(cases)


def batches_of(cases: store.CaseStore, mesh: Any, count: int, **options: Any) -> list[loader.Batch]:
    """The first batches as NumPy arrays."""
    chosen = {"patch": PATCH, "batch": 4, "seed": 5, "crops_per_read": 2, "cavity": "NCR"} | options
    with loader.make_loader(cases, range(len(cases)), mesh=mesh, **chosen) as batches:
        return jax.device_get(list(itertools.islice(batches, count)))


def assert_equal(ours: list[loader.Batch], theirs: list[loader.Batch]) -> None:
    for left, right in zip(ours, theirs, strict=True):
        for key in ("image", "label"):
            assert left[key].dtype == right[key].dtype
            np.testing.assert_array_equal(left[key], right[key])


@pytest.mark.parametrize(("threads", "crop"), [(1, None), (3, None), (2, (16, 20, 12))])
def test_every_place_of_the_cases_gives_the_same_bits(
    threads: int, crop: tuple[int, int, int] | None
) -> None:
    cases, mesh = mixed_cases(), sharding.make_mesh()
    options = {"threads": threads, "crop": crop}
    streamed = batches_of(cases, mesh, 12, **options)
    cases.cache_bytes = cases.decoded_bytes
    kept = batches_of(cases, mesh, 12, **options)
    on_device = batches_of(cases, mesh, 12, on_device=True, **options)
    assert_equal(kept, streamed)
    assert_equal(on_device, streamed)
    # The comparison says something: the stream holds tumour, cavities and padding.
    labels = np.concatenate([batch["label"] for batch in streamed])
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    assert any((batch["image"] == 0).any() for batch in streamed)


@given(
    st.tuples(*[st.integers(7, 12)] * 3),
    st.tuples(*[st.integers(1, 14)] * 3),
    st.tuples(*[st.integers(0, 12)] * 3),
)
@settings(max_examples=8, deadline=None)
def test_any_case_and_any_patch(
    shape: tuple[int, int, int], patch: tuple[int, int, int], more: tuple[int, int, int]
) -> None:
    cases = stores.store_of([stores.make_case(0, shape), stores.make_case(1, (9, 8, 7))])
    crop = tuple(edge + extra for edge, extra in zip(patch, more, strict=True))
    options = {"patch": patch, "crop": crop, "batch": 2, "seed": 3}
    with (
        loader.make_loader(cases, [0, 1], mesh=sharding.make_mesh(), **options) as host,
        loader.make_loader(
            cases, [0, 1], mesh=sharding.make_mesh(), on_device=True, **options
        ) as device,
    ):
        pairs = list(itertools.islice(zip(host, device, strict=False), 3))
    assert_equal(*(jax.device_get(list(side)) for side in zip(*pairs, strict=True)))


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False), (True, True)])
def test_a_position_is_the_same_wherever_the_cases_lie(before: bool, after: bool) -> None:
    cases, mesh = mixed_cases(), sharding.make_mesh()
    straight = batches_of(cases, mesh, 7)
    options: dict[str, Any] = {"patch": PATCH, "batch": 4, "seed": 5, "crops_per_read": 2}
    options |= {"cavity": "NCR", "mesh": mesh}
    with loader.make_loader(cases, range(5), on_device=before, **options) as first:
        for _ in range(3):
            next(first)
        text = json.dumps(first.get_state())
    with loader.make_loader(cases, range(5), on_device=after, **options) as second:
        second.start()
        second.set_state(json.loads(text))
        second.start()
        # A batch that is ready but was not handed out does not count.
        assert second.get_state() == json.loads(text)
        rest = jax.device_get(list(itertools.islice(second, 4)))
        assert second.get_state()["batches"] == 7
    assert_equal(rest, straight[3:])


@pytest.mark.parametrize("on_device", [False, True])
def test_no_transfer_is_implicit(on_device: bool) -> None:
    # In every thread, not only in this one.
    jax.config.update("jax_transfer_guard", "disallow")
    try:
        batches_of(mixed_cases(), sharding.make_mesh(), 3, on_device=on_device)
    finally:
        jax.config.update("jax_transfer_guard", "allow")


def test_every_case_is_decoded_once_and_not_kept() -> None:
    cases = mixed_cases()
    cases.cache_bytes = cases.decoded_bytes
    batches_of(cases, sharding.make_mesh(), 9, on_device=True)
    assert cases._source.reads == [1] * len(cases)
    batches_of(cases, sharding.make_mesh(), 1, on_device=True)
    assert cases._source.reads == [2] * len(cases)


def test_nothing_is_read_before_it_is_needed_or_kept_after() -> None:
    cases, mesh = mixed_cases(), sharding.make_mesh()
    shape = resident.padded_shape(SHAPES)
    before = {id(array) for array in jax.live_arrays()}

    def held() -> int:
        new = [array for array in jax.live_arrays() if id(array) not in before]
        return sum(array.nbytes for array in new if array.shape[-3:] == shape)

    batches = loader.make_loader(
        cases, range(5), mesh=mesh, patch=PATCH, batch=1, seed=0, on_device=True
    )
    assert sum(cases._source.reads) == 0
    assert held() == 0
    batches.start()
    assert held() == batches.device_bytes == resident.need_bytes(5, 2, shape)
    batches.close()
    assert held() == 0


def test_room_for_every_case() -> None:
    assert resident.padded_shape([(14, 3, 18), (7, 20, 9)]) == (14, 20, 18)
    # 2 bytes a sequence and 1 for the class: 5 bytes x 3 cases x 2 x 4 x 5 voxels.
    assert resident.need_bytes(3, 2, (2, 4, 5)) == 600


# --- On four devices -----------------------------------------------------------------------------


def test_four_devices_hold_the_same_batches(tmp_path: pathlib.Path) -> None:
    output = tmp_path / "batches.npz"
    done = commands.python(__file__, output, env=os.environ | {"JAX_NUM_CPU_DEVICES": "4"})
    assert done.returncode == 0, done.stderr
    expected = batches_of(mixed_cases(), sharding.make_mesh(), 3)
    with np.load(output) as found:
        for data, space in MESHES:
            for mode in ("host", "device"):
                for number, batch in enumerate(expected):
                    for key, value in batch.items():
                        name = f"{data}x{space}/{mode}/{number}/{key}"
                        np.testing.assert_array_equal(found[name], value, err_msg=name)


def _main(output: str) -> None:
    """Writes the batches of both ways on every mesh, each checked to lie as the step wants it."""
    found = {}
    for data, space in MESHES:
        mesh = sharding.make_mesh(data, space)
        options = {"mesh": mesh, "patch": PATCH, "batch": 4, "seed": 5, "crops_per_read": 2}
        for mode in ("host", "device"):
            with loader.make_loader(
                mixed_cases(), range(5), cavity="NCR", on_device=mode == "device", **options
            ) as batches:
                for number, batch in enumerate(itertools.islice(batches, 3)):
                    for key, value in batch.items():
                        wanted = sharding.batch_sharding(mesh)
                        assert value.sharding.is_equivalent_to(wanted, value.ndim), value.sharding
                        found[f"{data}x{space}/{mode}/{number}/{key}"] = np.asarray(value)
    np.savez(output, **found)


if __name__ == "__main__":
    _main(sys.argv[1])
