"""Records and the store: nothing is lost, decoding happens once, memory stays bounded."""

import dataclasses
import pathlib
import threading
import time
from concurrent import futures
from typing import Any

import numpy as np
import pytest

from kdnet_jax.data.records import case_builder, store
from kdnet_jax.data.scans import prepare
from tests.helpers import stores

TWO = ("t1ce", "flair")


def make_case(index: int = 0, labelled: bool = True, size: int = 20) -> prepare.PreparedCase:
    rng = np.random.default_rng(index)
    images = {}
    for modality in TWO:
        images[modality] = np.zeros((size, size, size), np.float32)
        images[modality][3:-3, 2:-4, 4:-2] = rng.normal(300, 40, (size - 6,) * 3)
    labels = np.zeros((size, size, size), np.uint8)
    labels[8:12, 8:12, 8:12] = rng.integers(0, 4, (4, 4, 4))
    return prepare.prepare_arrays(
        images,
        np.diag([-1.0, -1.0, 1.5, 1.0]),
        labels if labelled else None,
        spacing=1.0,
        case_id=f"case_{index}",
        patient_id=f"patient_{index // 2}",
        grade="HGG" if index % 2 else None,
    )


def through_bytes(case: prepare.PreparedCase) -> dict[str, Any]:
    """The record as it comes from a file: encoded, serialised, parsed and decoded by TFDS."""
    features = store.features(case.modalities)
    return features.deserialize_example_np(features.serialize_example(store.to_record(case)))


class CountingSource:
    """Records in memory that count how often they are decoded, and take a while for it."""

    def __init__(self, records: list[dict[str, Any]]) -> None:
        self.records = records
        self.reads = [0] * len(records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.reads[index] += 1
        time.sleep(0.02)
        return self.records[index]


def make_store(count: int) -> tuple[store.CaseStore, CountingSource]:
    cases = [make_case(index) for index in range(count)]
    source = CountingSource([through_bytes(case) for case in cases])
    return stores.store_of(cases, source=source), source


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("index", [0, 1])
def test_a_record_keeps_every_bit_of_a_case(index: int, labelled: bool) -> None:
    case = make_case(index, labelled)
    back = store.from_record(through_bytes(case), TWO)
    assert (back.case_id, back.patient_id, back.grade) == (
        case.case_id,
        case.patient_id,
        case.grade,
    )
    assert back.modalities == TWO
    assert back.geometry == case.geometry
    for name in ("image", "label", "reference"):
        ours, theirs = getattr(back, name), getattr(case, name)
        if name != "image" and not labelled:
            assert ours is None
            continue
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_summary_counts_the_classes_of_the_working_grid() -> None:
    case = make_case(3)
    summary = store.summarise(case)
    assert summary.class_voxels == tuple(int((case.label == c).sum()) for c in (1, 2, 3))
    assert summary.decoded_bytes == case.image.nbytes + case.label.nbytes + case.reference.nbytes
    assert store.summarise(make_case(3, labelled=False)).class_voxels is None


def test_summaries_and_length_and_negative_indices() -> None:
    opened, _ = make_store(3)
    assert opened.summaries == [store.summarise(case) for case in opened]
    assert [summary.case_id for summary in opened.summaries] == ["case_0", "case_1", "case_2"]
    assert len(opened) == 3
    assert opened[-1].case_id == "case_2"
    with pytest.raises(IndexError):
        opened[3]


def test_threads_that_want_one_case_decode_it_once() -> None:
    opened, source = make_store(2)
    opened.cache_bytes = 10**9
    barrier = threading.Barrier(8)

    def read(index: int) -> str:
        barrier.wait()
        return opened[index].case_id

    with futures.ThreadPoolExecutor(8) as pool:
        names = list(pool.map(read, [0, 1] * 4))
    assert names == ["case_0", "case_1"] * 4
    assert source.reads == [1, 1]


def test_without_memory_every_read_decodes() -> None:
    opened, source = make_store(1)
    assert opened[0].case_id == opened[0].case_id
    assert source.reads == [2]


def test_the_longest_unused_case_is_dropped_first() -> None:
    opened, source = make_store(3)
    opened.cache_bytes = 2 * opened.summaries[0].decoded_bytes
    for index in (0, 1, 0, 2, 0, 1):
        assert opened[index].case_id == f"case_{index}"
    # 0 stays because it was used again; 2 drops 1, so 1 is decoded a second time.
    assert source.reads == [1, 2, 1]


def test_a_case_larger_than_the_memory_is_not_kept() -> None:
    opened, source = make_store(1)
    opened.cache_bytes = opened.summaries[0].decoded_bytes - 1
    assert opened[0].case_id == opened[0].case_id == "case_0"
    assert source.reads == [2]


def test_a_shape_that_no_build_noted_is_read_once() -> None:
    opened, source = make_store(2)
    assert opened.shape(0) == make_case(0).image.shape[:3]
    assert source.reads == [0, 0]
    opened.summaries[1] = dataclasses.replace(opened.summaries[1], shape=None)
    assert opened.shape(1) == opened.shape(1) == make_case(1).image.shape[:3]
    assert source.reads == [0, 1]


def test_available_memory_heeds_a_container(tmp_path: pathlib.Path) -> None:
    free = store.available_memory(tmp_path)
    assert free > 0
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert store.available_memory(tmp_path) == 1000 - 700 + 150
    (tmp_path / "memory.max").write_text("max\n")
    assert store.available_memory(tmp_path) > 10**6


def test_fingerprint_names_the_content() -> None:
    assert case_builder.fingerprint({"a": 1, "b": 2}) == case_builder.fingerprint({"b": 2, "a": 1})
    assert case_builder.fingerprint({"a": 1}) != case_builder.fingerprint({"a": 2})
