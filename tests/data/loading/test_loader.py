"""The stream of patches: pure, aligned, oversampled, divided, resumable."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdnet_jax import task as task_lib
from kdnet_jax.data.loading import loader, patches
from kdnet_jax.data.records import store
from kdnet_jax.errors import UserError
from kdnet_jax.parallel import sharding
from tests.helpers import stores

PATCH = (6, 8, 10)
MESH = sharding.make_mesh()


def take(cases: store.CaseStore, count: int, **kwargs: Any) -> list[loader.Batch]:
    arguments = {"mesh": MESH, "patch": PATCH, "batch": 3, "seed": 5} | kwargs
    with loader.make_loader(cases, range(len(cases)), **arguments) as batches:
        return list(itertools.islice(batches, count))


def assert_equal(ours: Sequence[loader.Batch], theirs: Sequence[loader.Batch]) -> None:
    assert len(ours) == len(theirs)
    for left, right in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(left["image"], right["image"])
        np.testing.assert_array_equal(left["label"], right["label"])


def case_numbers(batch: loader.Batch) -> list[int]:
    return [int(number) - 1 for number in batch["image"][..., 1].max((1, 2, 3))]


def test_shapes_types_and_alignment_of_image_and_label() -> None:
    for batch in take(stores.make_store(4), 6):
        assert batch["image"].shape == (3, *PATCH, 2)
        assert batch["image"].dtype == np.float32
        assert batch["label"].shape == (3, *PATCH)
        assert batch["label"].dtype == np.uint8
        np.testing.assert_array_equal(batch["image"][..., 0], batch["label"])


def test_patches_lie_inside_of_volumes_that_are_large_enough() -> None:
    # The second channel is nowhere 0 inside of a case, so a 0 would be padding.
    assert all((batch["image"][..., 1] > 0).all() for batch in take(stores.make_store(4), 6))


@pytest.mark.parametrize("threads", [1, 3])
def test_the_stream_does_not_depend_on_threads(threads: int) -> None:
    cases = stores.make_store(5)
    assert_equal(
        take(cases, 8, crops_per_read=2, threads=threads, prefetch_batches=3),
        take(cases, 8, crops_per_read=2, threads=2, prefetch_batches=1),
    )


def test_the_stream_depends_on_the_seed() -> None:
    cases = stores.make_store(5)
    ours, theirs = take(cases, 4, seed=1), take(cases, 4, seed=2)
    assert [case_numbers(b) for b in ours] != [case_numbers(b) for b in theirs]


@pytest.mark.parametrize("share", [1 / 3, 0.5, 2 / 3, 1.0])
def test_at_least_the_share_of_patches_holds_tumour(share: float) -> None:
    labels = np.concatenate(
        [batch["label"] for batch in take(stores.make_store(6), 20, tumour_share=share)]
    )
    holds = labels.reshape(len(labels), -1).any(1)
    # Of every prefix of the stream, not only on average.
    counts = np.cumsum(holds)
    assert (counts >= np.arange(1, len(holds) + 1) * share - 1e-9).all()


def test_exactly_every_third_element_is_centred() -> None:
    source = patches.PatchSource(stores.make_store(2), [0, 1], patch=PATCH, batch=2, seed=0)
    assert [source.is_centred(i) for i in range(7)] == [True, False, False] * 2 + [True]
    far = 3 * 10**12
    assert [source.is_centred(far + i) for i in range(3)] == [True, False, False]


def test_the_stream_of_a_seed_stays_what_it_was() -> None:
    # A change of these would change every training; elements 0, 2 and 4 are centred on tumour.
    cases = stores.make_store(3)
    source = patches.PatchSource(cases, range(3), patch=PATCH, batch=2, seed=5, tumour_share=0.5)
    for index in range(3):
        source.read(index)
    assert [source.place_of(i) for i in range(6)] == [
        (1, (2, 4, 8)),
        (2, (7, 7, 2)),
        (0, (5, 5, 8)),
        (1, (4, 2, 4)),
        (0, (6, 5, 4)),
        (2, (1, 6, 5)),
    ]


def test_classes_are_met_alike_whatever_their_size() -> None:
    # ET is one voxel and ED a line of 18: drawn by voxel, ET would be the centre of 1 in 19.
    cases = stores.make_store(1)
    source = patches.PatchSource(cases, [0], patch=(1, 1, 1), batch=1, seed=3, tumour_share=1.0)
    found = np.array([int(source[i]["label"][0, 0, 0]) for i in range(200)])
    assert set(found) == {2, 3}
    assert 60 < (found == 3).sum() < 140


def test_a_case_without_tumour_is_drawn_at_random_and_named() -> None:
    cases = stores.make_store(3, without_tumour=[1])
    with loader.make_loader(cases, [0, 1], mesh=MESH, patch=PATCH, batch=2, seed=0) as batches:
        assert [note for note in batches.notes if "case_1" in note and "1 of 2" in note]
        assert not any(
            b["label"][case_numbers(b).index(1)].any() for b in itertools.islice(batches, 9)
        )


@given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 9)] * 3), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_crops_have_the_patch_and_keep_what_the_volume_holds(
    shape: tuple[int, int, int], patch: tuple[int, int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    volume = rng.integers(1, 200, shape).astype(np.uint8)
    start = patches.uniform_start(shape, patch, rng)
    found = patches.crop(volume, start, patch)
    # Slowly, voxel by voxel: what the patch should hold.
    expected = np.zeros(patch, np.uint8)
    for voxel in np.ndindex(*patch):
        where = tuple(np.add(voxel, start))
        if all(0 <= w < size for w, size in zip(where, shape, strict=True)):
            expected[voxel] = volume[where]
    np.testing.assert_array_equal(found, expected)
    # Nothing of an axis is lost that fits, and nothing padded that need not be.
    kept = tuple(np.minimum(shape, patch))
    assert (found > 0).sum() == np.prod(kept)


def test_a_small_volume_lies_in_the_middle_of_its_patch() -> None:
    volume = np.ones((3, 5, 4), np.uint8)
    found = patches.crop(
        volume, patches.centred_start(volume.shape, (6, 5, 2), (0, 0, 3)), (6, 5, 2)
    )
    # 3 of 6 slices: 1 before and 2 after; 5 of 5 rows; 2 of 4 columns, all inside.
    np.testing.assert_array_equal(found.any((1, 2)), [False, True, True, True, False, False])
    assert found[1:4].all()


@pytest.mark.parametrize("centre", [(0, 0, 0), (13, 15, 17), (7, 8, 9)])
def test_the_centre_is_in_the_crop_and_the_crop_in_the_volume(centre: tuple[int, int, int]) -> None:
    shape = (14, 16, 18)
    start = patches.centred_start(shape, PATCH, centre)
    for first, length, size, middle in zip(start, PATCH, shape, centre, strict=True):
        assert 0 <= first <= middle < first + length <= size
    assert patches.centred_start(shape, PATCH, (7, 8, 9)) == (4, 4, 4)


def test_a_larger_crop_holds_its_patch_in_the_middle() -> None:
    cases = stores.make_store(4)
    alone, around = take(cases, 6), take(cases, 6, crop=(10, 12, 24))
    for patch, crop in zip(alone, around, strict=True):
        assert crop["image"].shape == (3, 10, 12, 24, 2)
        np.testing.assert_array_equal(crop["image"][:, 2:8, 2:10, 7:17], patch["image"])
        np.testing.assert_array_equal(crop["label"][:, 2:8, 2:10, 7:17], patch["label"])
        # The crop is longer than the cases along w: what is more is 0, the rest is the case.
        assert not (crop["image"][..., 1] > 0).all()
        assert ((crop["image"][..., 1] > 0).sum((1, 2, 3)) > 6 * 8 * 10).all()


def test_a_patch_as_large_as_the_volume_is_the_volume() -> None:
    shape = (8, 9, 10)
    cases = stores.make_store(1, shape=shape)
    (batch,) = take(cases, 1, batch=1, patch=shape)
    np.testing.assert_array_equal(batch["label"][0], cases[0].label)


def test_a_large_class_is_thinned_evenly() -> None:
    label = np.zeros((40, 40, 40), np.uint8)
    label[:20] = 2
    (voxels,) = patches.class_voxels(label, task_lib.GLIOMA)
    assert len(voxels) == 4096
    assert (label.reshape(-1)[voxels] == 2).all()
    assert (voxels[0], voxels[-1]) == (0, 20 * 1600 - 1)


def test_an_epoch_takes_every_case_once() -> None:
    drawn = [number for batch in take(stores.make_store(6), 4) for number in case_numbers(batch)]
    assert sorted(drawn[:6]) == list(range(6))
    assert sorted(drawn[6:]) == list(range(6))
    assert drawn[:6] != drawn[6:]


@pytest.mark.parametrize("count", [4, 5, 7])
def test_a_batch_holds_different_cases_at_the_epochs_ends_too(count: int) -> None:
    batches = [
        case_numbers(batch) for batch in take(stores.make_store(count), 30, crops_per_read=2)
    ]
    assert all(len(set(numbers)) == 3 for numbers in batches)
    assert {number for numbers in batches for number in numbers} == set(range(count))


def test_fewer_cases_than_a_batch_serve_and_are_noted() -> None:
    cases = stores.make_store(2)
    with loader.make_loader(cases, [0, 1], mesh=MESH, patch=PATCH, batch=3, seed=0) as batches:
        drawn = [n for batch in itertools.islice(batches, 4) for n in case_numbers(batch)]
        assert any("2 training cases for batches of 3" in note for note in batches.notes)
    assert drawn.count(0) == drawn.count(1) == 6


def test_one_decode_serves_the_crops_of_a_group() -> None:
    cases = stores.make_store(6)
    records = cases._source
    cases.cache_bytes = 3 * cases.summaries[0].decoded_bytes
    batches = take(cases, 8, crops_per_read=4, threads=1, prefetch_batches=0)
    assert [set(case_numbers(b)) for b in batches[:4]] == [set(case_numbers(batches[0]))] * 4
    assert not np.array_equal(batches[0]["label"], batches[1]["label"])
    # 8 batches of 3 patches took two groups of 3 cases; what is read ahead may take a third.
    assert 6 <= sum(records.reads) <= 9


def test_a_saved_position_continues_exactly() -> None:
    cases = stores.make_store(5)
    straight = take(cases, 9, batch=4, crops_per_read=3)
    arguments: dict[str, Any] = {
        "mesh": MESH,
        "patch": PATCH,
        "batch": 4,
        "seed": 5,
        "crops_per_read": 3,
    }
    with loader.make_loader(cases, range(5), **arguments) as first:
        for _ in range(4):
            next(first)
        text = json.dumps(first.get_state())
    with loader.make_loader(cases, range(5), **arguments) as second:
        next(second)
        second.set_state(json.loads(text))
        rest = list(itertools.islice(second, 5))
        assert second.get_state()["batches"] == 9
    assert_equal(rest, straight[4:])


def test_a_position_of_another_stream_is_refused() -> None:
    cases = stores.make_store(5)
    with (
        loader.make_loader(cases, range(5), mesh=MESH, patch=PATCH, batch=2, seed=0) as first,
        loader.make_loader(cases, range(5), mesh=MESH, patch=PATCH, batch=2, seed=1) as second,
        loader.make_loader(cases, range(4), mesh=MESH, patch=PATCH, batch=2, seed=0) as third,
    ):
        with pytest.raises(UserError, match=r"seed: .* 0, .* 1"):
            second.set_state(first.get_state())
        with pytest.raises(UserError, match="training cases"):
            third.set_state(first.get_state())


@pytest.mark.parametrize(("choice", "becomes"), [("background", 0), ("NCR", 1)])
def test_a_resection_cavity_is_never_a_class_of_its_own(choice: str, becomes: int) -> None:
    case = stores.make_case(0, (14, 16, 18), tumour=False)
    case.label[7] = len(task_lib.GLIOMA.classes)
    (batch,) = take(stores.store_of([case]), 1, batch=1, patch=(14, 16, 18), cavity=choice)
    assert set(np.unique(batch["label"][0, 7])) == {becomes}
    assert not np.delete(batch["label"][0], 7, axis=0).any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"patch": (8, 8)}, "patch"),
        ({"patch": (8, 8, 0)}, "patch"),
        ({"batch": 0}, "batch: 0"),
        ({"seed": -1}, "seed: -1"),
        ({"tumour_share": 0.2}, "tumour_share: 0.2"),
        ({"tumour_share": 1.5}, "tumour_share: 1.5"),
        ({"crops_per_read": 0}, "crops_per_read: 0"),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        take(stores.make_store(2), 1, **wrong)


def test_no_cases_are_named() -> None:
    cases = stores.make_store(2)
    with pytest.raises(UserError, match="no cases"):
        loader.make_loader(cases, [], mesh=MESH, patch=PATCH, batch=1, seed=0)
