import collections
import dataclasses
import json
import pathlib
from collections.abc import Callable
from random import Random
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from kdnet_jax.data import splits
from kdnet_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Visit:
    case_id: str
    patient_id: str
    grade: str | None = None


def visits(count: int, grade: str | None = None, start: int = 0) -> list[Visit]:
    return [Visit(f"c{i:03}", f"p{i:03}", grade) for i in range(start, start + count)]


@st.composite
def cohorts(draw: st.DrawFn) -> list[Visit]:
    patients = draw(
        st.lists(
            st.tuples(st.sampled_from(["HGG", "LGG", None]), st.integers(1, 3)),
            min_size=20,
            max_size=60,
        )
    )
    return [
        Visit(f"c{i:03}-{visit}", f"p{i:03}", grade)
        for i, (grade, number) in enumerate(patients)
        for visit in range(number)
    ]


def patients_by_part(cohort: list[Visit], split: splits.Split) -> dict[str, set[str]]:
    patient = {visit.case_id: visit.patient_id for visit in cohort}
    return {part: {patient[case_id] for case_id in ids} for part, ids in split.parts.items()}


def check_partition(cohort: list[Visit], split: splits.Split) -> dict[str, set[str]]:
    ids = [case_id for part in split.parts.values() for case_id in part]
    assert sorted(ids) == sorted(visit.case_id for visit in cohort)
    sides = patients_by_part(cohort, split)
    assert sum(map(len, sides.values())) == len({visit.patient_id for visit in cohort})
    return sides


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(cohorts(), st.integers(0, 5), st.randoms())
def test_fractions_give_disjoint_patients_and_even_strata(
    cohort: list[Visit], seed: int, random: Random
) -> None:
    fractions = (0.6, 0.15, 0.25)
    split = splits.make_split(cohort, seed=seed, fractions=fractions)
    sides = check_partition(cohort, split)
    strata = collections.defaultdict(set)
    for visit in cohort:
        strata[visit.grade].add(visit.patient_id)
    for patients in strata.values():
        for part, fraction in zip(splits.PARTS, fractions, strict=True):
            assert abs(len(sides[part] & patients) - fraction * len(patients)) < 1
    random.shuffle(cohort)
    assert splits.make_split(cohort, seed=seed, fractions=fractions) == split


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(cohorts(), st.integers(2, 5))
def test_every_patient_is_tested_in_exactly_one_fold(cohort: list[Visit], folds: int) -> None:
    tested = collections.Counter()
    for fold in range(folds):
        split = splits.make_split(cohort, seed=1, folds=folds, fold=fold, validation_fraction=0.2)
        sides = check_partition(cohort, split)
        tested.update(sides["test"])
        for grade in ("HGG", "LGG", None):
            stratum = {visit.patient_id for visit in cohort if visit.grade == grade}
            assert abs(len(sides["test"] & stratum) - len(stratum) / folds) < 1
    assert set(tested.values()) == {1}
    assert len(tested) == len({visit.patient_id for visit in cohort})


def test_split_is_the_same_on_every_machine_and_differs_by_seed() -> None:
    cohort = visits(10)
    split = splits.make_split(cohort, seed=0, fractions=(0.6, 0.2, 0.2))
    # Recorded once: a change of these ids would silently change published splits.
    assert split.parts == {"train": PINNED[0], "validation": PINNED[1], "test": PINNED[2]}
    assert splits.make_split(cohort, seed=1, fractions=(0.6, 0.2, 0.2)).hash != split.hash


PINNED = (
    ("c002", "c003", "c004", "c005", "c006", "c007"),
    ("c000", "c009"),
    ("c001", "c008"),
)


def test_small_strata_do_not_starve_a_part() -> None:
    cohort = visits(5, "HGG") + visits(5, "LGG", 5)
    split = splits.make_split(cohort, seed=0, fractions=(0.8, 0.1, 0.1))
    assert [len(ids) for ids in split.parts.values()] == [8, 1, 1]


def test_a_patient_of_two_grades_stays_together() -> None:
    cohort = [Visit("a-0", "a", "LGG"), Visit("a-1", "a", "HGG"), *visits(9, "HGG")]
    check_partition(cohort, splits.make_split(cohort, seed=0, fractions=(0.6, 0.2, 0.2)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fractions": (0.5, 0.1, 0.1)}, "sum 1"),
        ({"fractions": (1.2, -0.1, -0.1)}, "sum 1"),
        ({"folds": 6, "fold": 0}, "only 5 patients"),
        ({"folds": 3, "fold": 3}, "fold is 3 of 3"),
        ({"folds": 3}, "either"),
        ({"fractions": (0.8, 0.1, 0.1), "folds": 3, "fold": 0}, "either"),
        ({"fractions": (0.98, 0.01, 0.01)}, "5 patients give 5 train, 0 validation, 0 test"),
        ({"folds": 5, "fold": 0, "validation_fraction": 0.01}, "left for validation"),
        ({"folds": 5, "fold": 0, "validation_fraction": 1.0}, "below 1"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        splits.make_split(visits(5), seed=0, **arguments)


def test_a_part_of_share_zero_is_empty_on_purpose() -> None:
    assert splits.make_split(visits(5), seed=0, fractions=(0.8, 0.2, 0.0)).test == ()


def test_no_cases_and_doubled_cases_are_refused() -> None:
    with pytest.raises(UserError, match="no patient"):
        splits.make_split([], seed=0, fractions=(0.8, 0.1, 0.1))
    with pytest.raises(UserError, match="c000 is duplicate"):
        splits.make_split(visits(5) + visits(1), seed=0, fractions=(0.8, 0.1, 0.1))


@pytest.fixture
def saved(tmp_path: pathlib.Path) -> tuple[splits.Split, pathlib.Path]:
    split = splits.make_split(visits(10), seed=0, fractions=(0.6, 0.2, 0.2))
    path = tmp_path / "split.json"
    splits.save_split(split, path)
    return split, path


def test_a_saved_split_comes_back(
    saved: tuple[splits.Split, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    split, path = saved
    assert splits.load_split(path, visits(12)) == split
    assert [file.name for file in tmp_path.iterdir()] == ["split.json"]


def edit(path: pathlib.Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_an_edited_split_needs_its_hash_removed(saved: tuple[splits.Split, pathlib.Path]) -> None:
    split, path = saved
    edit(path, lambda content: content["train"].remove(split.train[0]))
    with pytest.raises(UserError, match='remove "hash"'):
        splits.load_split(path, visits(10))
    edit(path, lambda content: content.pop("hash"))
    assert splits.load_split(path, visits(10)).train == split.train[1:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["train"].append("elsewhere"), "elsewhere.*another release"),
        (lambda c: c["test"].append(c["train"][0]), "listed twice"),
        (lambda c: c.update(train="c000"), "list of case ids"),
        (lambda c: c.update(val=[]), "holds val"),
    ],
)
def test_bad_split_files_are_named(
    saved: tuple[splits.Split, pathlib.Path], change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    _, path = saved
    edit(path, lambda content: content.pop("hash"))
    edit(path, change)
    with pytest.raises(UserError, match=message):
        splits.load_split(path, visits(10))


def test_a_patient_on_two_sides_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "split.json"
    path.write_text('{"train": ["a-0"], "validation": [], "test": ["a-1"]}')
    with pytest.raises(UserError, match="patient a is in train and in test"):
        splits.load_split(path, [Visit("a-0", "a"), Visit("a-1", "a")])


@pytest.mark.parametrize("text", [None, "{", "[]", "3"])
def test_missing_or_broken_split_files(tmp_path: pathlib.Path, text: str | None) -> None:
    path = tmp_path / "split.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=r"split\.json"):
        splits.load_split(path, visits(3))


def test_check_same_split_names_the_difference() -> None:
    first = splits.make_split(visits(10), seed=0, fractions=(0.6, 0.2, 0.2))
    more = splits.make_split(visits(11), seed=0, fractions=(0.6, 0.2, 0.2))
    splits.check_same_split(first, first)
    with pytest.raises(UserError, match=r"gained .*c010"):
        splits.check_same_split(first, more)


def test_an_unwritable_place_is_named(tmp_path: pathlib.Path) -> None:
    split = splits.make_split(visits(10), seed=0, fractions=(0.6, 0.2, 0.2))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        splits.save_split(split, tmp_path / "file" / "split.json")


# --------------------------------------------------------------------- cases without a reference


def test_labelled_cases_are_nested_and_counted_and_the_rest_train_without() -> None:
    cohort = [Visit(f"{i:02}-{visit}", f"p{i:02}") for i in range(20) for visit in range(2)]
    whole = splits.make_split(cohort, seed=0, fractions=(0.6, 0.2, 0.2))
    assert splits.keep_labels(whole, cohort, 0, 0) == whole
    some = {n: splits.keep_labels(whole, cohort, n, 3) for n in (3, 8, len(whole.train))}
    assert set(some[3].train) < set(some[8].train) < set(whole.train)
    for count, split in some.items():
        assert len(split.train) == count
        assert sorted(split.train + split.unlabelled) == list(whole.train)
        assert (split.validation, split.test) == (whole.validation, whole.test)
    # By patient: of three cases two are the visits of one.
    assert len({case[:2] for case in some[3].train}) == 2
    assert some[24] == whole
    assert some[8].hash != whole.hash
    assert splits.keep_labels(whole, cohort, 8, 4).train != some[8].train
    with pytest.raises(UserError, match="labelled is 25, but the training part has 24 cases"):
        splits.keep_labels(whole, cohort, 25, 0)


def test_a_split_with_unlabelled_cases_comes_back(tmp_path: pathlib.Path) -> None:
    path, cohort = tmp_path / "split.json", visits(10)
    split = splits.make_split(cohort, seed=0, fractions=(0.6, 0.2, 0.2))
    split = splits.keep_labels(split, cohort, 2, 0)
    splits.save_split(split, path)
    assert splits.load_split(path, cohort) == split
    with pytest.raises(UserError, match=r"train lost 1 .*unlabelled gained 1"):
        splits.check_same_split(split, splits.keep_labels(split, cohort, 1, 0))
    edit(path, lambda content: content["unlabelled"].append(content["test"][0]))
    edit(path, lambda content: content.pop("hash"))
    with pytest.raises(UserError, match="listed twice"):
        splits.load_split(path, cohort)


def test_cases_without_a_reference_train_unless_their_patient_is_tested() -> None:
    cohort = [Visit(f"{i:02}-0", f"p{i:02}") for i in range(10)]
    split = splits.make_split(cohort, seed=0, fractions=(0.6, 0.2, 0.2))
    bare = [Visit(f"{i:02}-1", f"p{i:02}") for i in range(12)]
    found = splits.with_more(split, cohort + bare, "unlabelled", [visit.case_id for visit in bare])
    tested = {case[:2] for case in split.validation + split.test}
    assert {case[:2] for case in found.unlabelled} == {f"{i:02}" for i in range(12)} - tested
    assert (found.train, found.validation, found.test) == (
        *(split.train, split.validation, split.test),
    )
