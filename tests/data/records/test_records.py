"""Damaged record files: every changed bit is noticed, and the file and the case are named."""

import pathlib
import re
from collections import Counter

import numpy as np
import pytest

from kdnet_jax.data.records import records, store
from kdnet_jax.errors import UserError
from tests.helpers import damage

# What is done to a file; what is told of it when it is opened, and when it is read.
AT_THE_START = [
    (damage.remove, "the file is missing"),
    (damage.cut, r"reading it fails \(.*64KB"),
    (damage.empty, r"reading it fails \(.*64KB"),
    (damage.cut_behind, r"reading it fails \("),
    (damage.replace_by_foreign, r"it holds 2 records, not 1"),
    (damage.replace_by_folder, "Is a directory"),
    (damage.circle, "Too many levels of symbolic links"),
]
IN_THE_MIDDLE = [
    (damage.remove, "the file is missing"),
    (damage.cut, r"the file was cut off \(\d+ bytes are left\)"),
    (damage.empty, r"the file was cut off \(0 bytes are left\)"),
    (damage.flip, r"reading it fails \(Corrupted .*hash mismatch"),
    (damage.circle, "Too many levels of symbolic links"),
]
pristine, cases = damage.fixtures(4)


def root(cases: store.CaseStore) -> pathlib.Path:
    return cases.folder.parents[3]


def assert_named(error: pytest.ExceptionInfo, cases: store.CaseStore, finding: str) -> None:
    """The message is one line with the file, the case, the finding and the way out."""
    text = str(error.value)
    assert "\n" not in text
    path = damage.file_of(cases, 0).with_name(error.value.path.name)
    assert text.startswith(f"{path}: the case BraTS2021_00003 cannot be read: ")
    assert re.search(finding, text)
    assert f"Delete {cases.folder} and start again" in text


@pytest.mark.parametrize(("fault", "finding"), AT_THE_START)
def test_a_damaged_file_is_named_at_the_start(
    cases: store.CaseStore, fault: damage.Fault, finding: str
) -> None:
    fault(damage.file_of(cases, 2))
    with pytest.raises(records.UnreadableCaseError) as caught:
        damage.open_again(root(cases))
    assert_named(caught, cases, finding)
    # Opened all the same, the other cases can be read.
    opened = damage.open_again(root(cases), damaged=True)
    opened.check_files([0, 1, 3])
    assert [opened[index].case_id[-1] for index in (0, 1, 3)] == ["1", "2", "4"]
    with pytest.raises(records.UnreadableCaseError, match="BraTS2021_00003"):
        _ = opened[2]


@pytest.mark.parametrize(("fault", "finding"), IN_THE_MIDDLE)
@pytest.mark.parametrize("read_before", [True, False])
def test_a_file_that_is_damaged_while_it_is_read_is_named(
    cases: store.CaseStore, fault: damage.Fault, finding: str, read_before: bool
) -> None:
    if read_before:
        # The file is open from here on.
        assert cases[2].case_id == "BraTS2021_00003"
    elif fault in (damage.cut, damage.empty):
        finding = "reading it fails"
    fault(damage.file_of(cases, 2))
    with pytest.raises(records.UnreadableCaseError) as caught:
        _ = cases[2]
    assert_named(caught, cases, finding)
    assert "a score over fewer cases would be another score" in str(caught.value)
    assert [cases[index].case_id[-1] for index in (0, 1, 3)] == ["1", "2", "4"]


def test_another_cases_file_in_its_place_is_named(cases: store.CaseStore) -> None:
    damage.swap(damage.file_of(cases, 2))
    opened = damage.open_again(root(cases))
    with pytest.raises(records.UnreadableCaseError) as caught:
        _ = opened[2]
    assert_named(caught, cases, "its record is of another dataset")


@pytest.mark.parametrize("read_before", [True, False])
def test_a_mended_file_is_read_again(cases: store.CaseStore, read_before: bool) -> None:
    path = damage.file_of(cases, 2)
    good = path.read_bytes()
    expected = damage.open_again(root(cases))[2].image
    if read_before:
        _ = cases[2]
    damage.cut(path)
    with pytest.raises(records.UnreadableCaseError):
        _ = cases[2]
    path.write_bytes(good)
    np.testing.assert_array_equal(cases[2].image, expected)


@pytest.mark.once
def test_no_flipped_bit_passes(cases: store.CaseStore) -> None:
    path = damage.file_of(cases, 2)
    expected = cases[2]
    size = path.stat().st_size
    rng = np.random.default_rng(0)
    outcomes: Counter[str] = Counter()
    for position in [*rng.integers(0, size, 150).tolist(), 0, 1, 63, 64, 65, size - 1]:
        bit = int(rng.integers(8))
        damage.flip_at(path, position, bit)
        try:
            # A new reader: some errors show in the file's index only.
            found = damage.open_again(root(cases))[2]
            outcomes["harmless"] += 1
            for name in ("image", "label", "reference"):
                np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
            assert found.geometry == expected.geometry
        except records.UnreadableCaseError:
            outcomes["noticed"] += 1
        damage.flip_at(path, position, bit)
    # Between the record and the file's end lies padding.
    assert outcomes["noticed"] > 20
    assert outcomes["harmless"] > 0


def test_a_description_of_other_records_is_refused(cases: store.CaseStore) -> None:
    path = cases.folder / store.METADATA_FILE
    text = path.read_text()
    start = text.index("{", text.index('"cases"'))
    end = text.index("},", start) + 2
    path.write_text(text[:start] + text[end:])
    with pytest.raises(UserError, match="names 4 records for 3 cases"):
        damage.open_again(root(cases))
