"""Training on without cases that cannot be read: the same in every place, told, and bounded."""

import itertools
import json
import pathlib
import threading
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdnet_jax import task as task_lib
from kdnet_jax.data.loading import loader, patches
from kdnet_jax.data.records import records, skipping, store
from kdnet_jax.data.scans import prepare
from kdnet_jax.errors import UserError
from kdnet_jax.parallel import sharding
from tests.helpers import damage, stores

COUNT, BATCH = 20, 3
PLACES = ("stream", "host", "device")
OPTIONS: dict[str, Any] = {"patch": (4, 4, 4), "batch": BATCH, "seed": 3, "crops_per_read": 2}
pristine, cases = damage.fixtures(COUNT)


def open_batches(
    cases: store.CaseStore, place: str, unreadable: skipping.Unreadable | None, **options: Any
) -> loader.PatchIterator:
    cases.cache_bytes = cases.decoded_bytes if place == "host" else 0
    return loader.make_loader(
        cases,
        range(COUNT),
        mesh=sharding.make_mesh(),
        on_device=place == "device",
        unreadable=unreadable,
        **OPTIONS | options,
    )


def take(
    cases: store.CaseStore, count: int, place: str, **options: Any
) -> list[dict[str, np.ndarray]]:
    with open_batches(cases, place, skipping.Unreadable(COUNT, "skip"), **options) as batches:
        return jax.device_get(list(itertools.islice(batches, count)))


def assert_equal(
    ours: Sequence[dict[str, np.ndarray]], theirs: Sequence[dict[str, np.ndarray]]
) -> None:
    for left, right in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(left["image"], right["image"])
        np.testing.assert_array_equal(left["label"], right["label"])


class Faulty:
    """Cases in memory of which some cannot be read."""

    def __init__(self, count: int, unreadable: set[int]) -> None:
        self.cases = [stores.make_case(number, (7, 7, 7)) for number in range(count)]
        self.summaries = [store.summarise(case) for case in self.cases]
        self.unreadable = unreadable
        self.task = task_lib.GLIOMA

    def __getitem__(self, index: int) -> prepare.PreparedCase:
        if index in self.unreadable:
            raise records.UnreadableCaseError(index, f"case_{index}", pathlib.Path("x"), "gone")
        return self.cases[index]


# ---------------------------------------------------------------------------- which case instead


@given(st.integers(2, 12), st.integers(1, 5), st.integers(1, 3), st.data())
@settings(max_examples=40, deadline=None)
def test_only_elements_of_unreadable_cases_change(
    count: int, batch: int, crops: int, data: st.DataObject
) -> None:
    bad = data.draw(st.sets(st.integers(0, count - 1), max_size=max(1, count // 10)))
    options = {"patch": (1, 1, 1), "batch": batch, "seed": 1, "crops_per_read": crops}
    whole = patches.PatchSource(Faulty(count, set()), range(count), **options)
    order = list(range(4 * batch * crops))
    found = []
    # Forwards and backwards: the answer does not depend on what was found out before.
    for elements in (order, order[::-1]):
        source = patches.PatchSource(
            Faulty(count, bad),
            range(count),
            unreadable=skipping.Unreadable(count, "skip"),
            **options,
        )
        got = {index: (source[index], source.case_of(index)) for index in elements}
        found.append([got[index] for index in order])
    for index, ((ours, case), (theirs, other)) in enumerate(zip(*found, strict=True)):
        assert case == other
        assert case not in bad
        np.testing.assert_array_equal(ours["image"], theirs["image"])
        if whole.case_of(index) not in bad:
            assert case == whole.case_of(index)
            np.testing.assert_array_equal(ours["image"], whole[index]["image"])
    if count >= 2 * batch + len(bad):
        used = [case for _, case in found[0]]
        for first in range(0, len(used), batch):
            assert len(set(used[first : first + batch])) == batch


def test_the_next_readable_case_of_the_epochs_order_takes_the_place() -> None:
    whole = patches.PatchSource(Faulty(20, set()), range(20), patch=(1, 1, 1), batch=4, seed=0)
    epoch = [whole.case_of(index) for index in range(20)]
    # The second of the first batch, and who would stand in for it.
    bad = {epoch[1], epoch[5]}
    source = patches.PatchSource(
        Faulty(20, bad),
        range(20),
        patch=(1, 1, 1),
        batch=4,
        seed=0,
        unreadable=skipping.Unreadable(20, "skip"),
    )
    for index in range(20):
        _ = source[index]
    found = [source.case_of(index) for index in range(20)]
    expected = list(epoch)
    expected[1] = expected[5] = epoch[9]
    assert found == expected


# -------------------------------------------------------------------------- a damaged dataset


@pytest.mark.parametrize("place", PLACES)
def test_skipped_cases_are_told_once_and_noted(
    cases: store.CaseStore,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
    place: str,
) -> None:
    damaged = [damage.file_of(cases, index) for index in (4, 11)]
    damage.flip(damaged[0])
    damage.remove(damaged[1])
    unreadable = skipping.Unreadable(COUNT, "skip", [tmp_path])
    with open_batches(cases, place, unreadable, threads=4) as batches:
        for _ in itertools.islice(batches, 20):
            pass
    rows = [json.loads(line) for line in (tmp_path / skipping.FILE).read_text().splitlines()]
    rows.sort(key=lambda row: row["case_id"])
    assert [row["case_id"] for row in rows] == ["BraTS2021_00005", "BraTS2021_00012"]
    assert [row["file"] for row in rows] == [str(path) for path in damaged]
    assert "hash mismatch" in rows[0]["reason"]
    assert rows[1]["reason"] == "the file is missing"
    said = caplog.text
    for row in rows:
        assert (
            said.count(f"the training case {row['case_id']} cannot be read: {row['reason']}") == 1
        )
    assert said.count("left out of training") == 2


def test_every_place_and_number_of_threads_skips_alike(cases: store.CaseStore) -> None:
    pristine = take(cases, 20, "stream")
    for index in (4, 11):
        damage.flip(damage.file_of(cases, index))
    streamed = take(cases, 20, "stream", threads=1)
    assert_equal(take(cases, 20, "host", threads=4), streamed)
    assert_equal(take(cases, 20, "device"), streamed)
    same = [
        np.array_equal(ours["image"][k], theirs["image"][k])
        for ours, theirs in zip(streamed, pristine, strict=True)
        for k in range(BATCH)
    ]
    # 60 elements over 18 places of an epoch of 20 cases: two of these hold the damaged ones.
    assert 60 * (1 - 3 / 18) <= sum(same) < 60


def test_a_position_goes_on_with_what_was_skipped(cases: store.CaseStore) -> None:
    damage.flip(damage.file_of(cases, 4))
    straight = take(cases, 20, "stream")
    with open_batches(cases, "stream", skipping.Unreadable(COUNT, "skip")) as first:
        for _ in range(9):
            next(first)
        state = first.get_state()
    with open_batches(cases, "stream", skipping.Unreadable(COUNT, "skip")) as second:
        second.set_state(json.loads(json.dumps(state)))
        assert_equal(jax.device_get(list(itertools.islice(second, 11))), straight[9:])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fault", [damage.remove, damage.cut, damage.flip])
def test_by_default_the_stream_stops_and_its_threads_end(
    cases: store.CaseStore, place: str, fault: damage.Fault
) -> None:
    before = set(threading.enumerate())
    with open_batches(cases, place, None, crops_per_read=1) as batches:
        if place != "device":
            # In the middle: some batches are out, and files are open.
            next(batches)
        for path in [damage.file_of(cases, index) for index in range(COUNT)]:
            fault(path)
        with pytest.raises(UserError) as caught:
            for _ in itertools.islice(batches, 30):
                pass
    text = str(caught.value)
    assert "array_record-000" in text
    assert "the training case BraTS2021_" in text
    assert f"Delete {cases.folder} and start again" in text
    assert text.endswith("To continue without such cases: --config.data.on_read_error=skip.")
    deadline = time.monotonic() + 20
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left


@pytest.mark.parametrize(("training", "allowed"), [(1, 0), (2, 1), (9, 1), (20, 2), (1251, 125)])
def test_more_than_a_tenth_stops(training: int, allowed: int) -> None:
    unreadable = skipping.Unreadable(training, "skip")
    faults = [
        records.UnreadableCaseError(k, f"case_{k}", pathlib.Path("d/x"), "gone") for k in range(126)
    ]
    for fault in faults[:allowed]:
        unreadable.add(fault)
        unreadable.add(fault)
        assert fault.index in unreadable
    message = (
        f"case_{allowed} .* With it {allowed + 1} of the {training} training cases cannot be read, "
        f"and data.on_read_error=skip leaves out at most {allowed}: 10 %. Delete d"
    )
    with pytest.raises(UserError, match=message):
        unreadable.add(faults[allowed])


@pytest.mark.parametrize("place", PLACES)
def test_too_many_unreadable_cases_stop_the_stream(cases: store.CaseStore, place: str) -> None:
    for index in (4, 11, 12):
        damage.flip(damage.file_of(cases, index))
    with pytest.raises(UserError, match=r"With it 3 of the 20 training cases cannot be read"):
        take(cases, 30, place)


def test_a_skipped_case_that_is_scored_stops(cases: store.CaseStore) -> None:
    damage.flip(damage.file_of(cases, 4))
    with open_batches(cases, "stream", skipping.Unreadable(COUNT, "skip")) as batches:
        found = [case.case_id for case in batches.cases([3, 4, 5])]
    assert found == ["BraTS2021_00004", "BraTS2021_00006"]
    with pytest.raises(records.UnreadableCaseError, match="would be another score"):
        _ = cases[4]


def test_each_process_notes_in_a_file_of_its_own(tmp_path: pathlib.Path) -> None:
    fault = records.UnreadableCaseError(0, "case_0", pathlib.Path("x"), "gone")
    for process in (0, 2):
        skipping.Unreadable(9, "skip", [tmp_path], process).add(fault)
    assert {path.name for path in tmp_path.iterdir()} == {
        "skipped_cases.jsonl",
        "skipped_cases-2.jsonl",
    }
    assert skipping.left_out(tmp_path) == ["case_0"]
    with (tmp_path / skipping.FILE).open("a") as file:
        file.write('{"case_id": "cut o')
    assert skipping.left_out(tmp_path) == ["case_0"]
    assert skipping.left_out(tmp_path / "absent") == []
