"""Training, validation and test cases: by patient, stratified by grade, the same everywhere.

All visits of a patient lie in one part. The order of the cases on disk, the machine and the number
of processes have no influence: patients are sorted by name before a seeded permutation.
"""

import dataclasses
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol, runtime_checkable

import numpy as np

from kdnet_jax.core import documents, files, typed
from kdnet_jax.errors import UserError, first_few

PARTS: Final = ("train", "validation", "test")
UNLABELLED: Final = "unlabelled"


@runtime_checkable
class Summary(Protocol):
    """What a split needs to know of a case, such as `cases.Case` or `store.CaseSummary`."""

    @property
    def case_id(self) -> str:
        """The name of the visit."""
        ...

    @property
    def patient_id(self) -> str:
        """The name of the patient."""
        ...

    @property
    def grade(self) -> str | None:
        """Known grades are HGG and LGG."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Case ids of the parts, sorted, and the sha256 of their canonical JSON.

    Attributes:
        train: cases that train with their reference.
        validation: those that choose the best checkpoint.
        test: those that are scored.
        hash: of the lists of names.
        unlabelled: cases of the training part whose reference is not used, or that have none.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    hash: str
    unlabelled: tuple[str, ...] = ()

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Part -> case ids, in the order of `PARTS`; then the unlabelled ones, if there are any."""
        others = {UNLABELLED: self.unlabelled} if self.unlabelled else {}
        return {part: getattr(self, part) for part in PARTS} | others


def make_split(
    summaries: Sequence[Summary],
    *,
    seed: int,
    fractions: tuple[float, float, float] | None = None,
    folds: int | None = None,
    fold: int | None = None,
    validation_fraction: float = 0.1,
) -> Split:
    """Divides cases by patient; each grade, and the unknown one, is divided separately.

    Args:
        summaries: the cases.
        seed: of the permutation of patients.
        fractions: shares of training, validation and test patients, of sum 1. A part of share 0
            is empty.
        folds: instead of fractions, the number of folds; `fold` of them is the test part.
        fold: which fold, from 0.
        validation_fraction: with folds, the share of the other patients that validate.

    Raises:
        UserError: wrong arguments, too few patients, or a duplicate case.
    """
    strata = _strata(summaries)
    rng = np.random.default_rng(seed)
    ordered = {grade: rng.permutation(names).tolist() for grade, names in strata.items()}
    count = sum(map(len, ordered.values()))
    if fractions is not None and folds is None and fold is None:
        check_fractions(fractions)
        wanted: dict[str, float] = dict(zip(PARTS, fractions, strict=True))
        part_of = _by_shares(ordered, wanted)
    elif fractions is None and folds is not None and fold is not None:
        check_folds(folds, fold, validation_fraction, count)
        part_of = _by_folds(ordered, folds, fold, validation_fraction)
        wanted = {"train": 1.0, "validation": validation_fraction, "test": 1.0}
    else:
        raise UserError(
            f"split: fractions are {fractions}, folds {folds} and fold {fold}; expected either "
            "fractions, or folds together with fold (--config.split)"
        )
    _check_filled(part_of, wanted, count)
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for summary in summaries:
        parts[part_of[summary.patient_id]].append(summary.case_id)
    return _split(parts)


def _split(parts: Mapping[str, Iterable[str]]) -> Split:
    ordered = {part: tuple(sorted(ids)) for part, ids in parts.items()}
    named = {part: ids for part, ids in ordered.items() if part in PARTS or ids}
    text = json.dumps(named, separators=(",", ":"))
    return Split(**ordered, hash=hashlib.sha256(text.encode()).hexdigest())


def with_more(split: Split, summaries: Sequence[Summary], part: str, cases: Iterable[str]) -> Split:
    """Returns the split with more cases to train on; not those of tested patients.

    Args:
        split: of the other cases.
        summaries: all cases.
        part: "train", or `UNLABELLED`.
        cases: those to add.
    """
    patients = {each.case_id: each.patient_id for each in summaries}
    taken = {patients[case] for case in (*split.validation, *split.test)}
    free = [case for case in cases if patients[case] not in taken]
    return _split({**split.parts, part: (*getattr(split, part), *free)})


def keep_labels(split: Split, summaries: Sequence[Summary], count: int, seed: int) -> Split:
    """Returns the split in which `count` training cases keep their labels, the others do not.

    The cases that keep them follow a permutation of the patients by `seed`: those of a smaller
    count are part of those of a larger one.

    Args:
        split: the split.
        summaries: the cases.
        count: how many keep their labels; 0: all.
        seed: of the permutation.

    Raises:
        UserError: there are not so many.
    """
    if not count:
        return split
    if count > len(split.train):
        raise UserError(
            f"split.labelled is {count}, but the training part has {len(split.train)} cases with "
            f"a reference. Give up to {len(split.train)}, or 0 for all of them."
        )
    patients = {each.case_id: each.patient_id for each in summaries}
    order = np.random.default_rng(seed).permutation(sorted({patients[c] for c in split.train}))
    place = {patient: number for number, patient in enumerate(order.tolist())}
    cases = sorted(split.train, key=lambda case: (place[patients[case]], case))
    without = (*split.unlabelled, *cases[count:])
    return _split({**split.parts, "train": cases[:count], UNLABELLED: without})


# ------------------------------------------------------------------------- dividing patients


def _strata(summaries: Iterable[Summary]) -> dict[str, list[str]]:
    """Returns grade -> patients, both sorted; "" is the unknown grade."""
    grades: defaultdict[str, set[str]] = defaultdict(set)
    seen: set[str] = set()
    for summary in summaries:
        if summary.case_id in seen:
            raise UserError(f"split: case {summary.case_id} is duplicate; expected it once")
        seen.add(summary.case_id)
        grades[summary.patient_id].add(summary.grade or "")
    strata: defaultdict[str, list[str]] = defaultdict(list)
    for patient in sorted(grades):
        # A glioma can progress: the highest grade of the visits ("HGG" < "LGG") is the patient's.
        strata[min(grades[patient] - {""}, default="")].append(patient)
    return dict(sorted(strata.items()))


def _by_shares(ordered: Mapping[str, Sequence[str]], shares: Mapping[str, float]) -> dict[str, str]:
    """Returns patient -> part.

    Within a stratum every part gets its share, rounded down or up. What is rounded up is given to
    the part that has come off worst so far, so that many small strata do not starve a part.
    """
    part_of: dict[str, str] = {}
    owed = dict.fromkeys(shares, 0.0)
    for patients in ordered.values():
        quota = {part: share * len(patients) for part, share in shares.items()}
        # 0.1 * 30 is a little above 3: a share that is whole but for rounding stays whole.
        given = {part: int(np.floor(amount + 1e-9)) for part, amount in quota.items()}
        uneven = [part for part in shares if quota[part] - given[part] > 1e-9]
        owed = {part: owed[part] + quota[part] - given[part] for part in shares}
        uneven.sort(key=lambda part: -round(owed[part], 9))
        for part in uneven[: len(patients) - sum(given.values())]:
            given[part] += 1
            owed[part] -= 1
        labels = [part for part in shares for _ in range(given[part])]
        part_of |= dict(zip(patients, labels, strict=True))
    return part_of


def _by_folds(
    ordered: Mapping[str, Sequence[str]], folds: int, fold: int, validation_fraction: float
) -> dict[str, str]:
    """Returns patient -> part; the folds are dealt out like cards, on through all strata."""
    dealt = 0
    test: list[str] = []
    rest: dict[str, list[str]] = {}
    for grade, patients in ordered.items():
        mine = [name for i, name in enumerate(patients, dealt) if i % folds == fold]
        rest[grade] = [name for i, name in enumerate(patients, dealt) if i % folds != fold]
        test += mine
        dealt += len(patients)
    shares = {"train": 1 - validation_fraction, "validation": validation_fraction}
    return _by_shares(rest, shares) | dict.fromkeys(test, "test")


def check_fractions(fractions: Sequence[float]) -> None:
    """Raises UserError for shares of training, validation and test that do not make 1."""
    good = len(fractions) == len(PARTS) and all(0 <= share <= 1 for share in fractions)
    if not good or abs(sum(fractions) - 1) > 1e-6:
        raise UserError(
            f"split.train, .validation and .test are {tuple(fractions)}; expected three "
            "shares from 0 to 1 with the sum 1, such as (0.7, 0.1, 0.2)"
        )


def check_folds(
    folds: int, fold: int, validation_fraction: float, patients: int | None = None
) -> None:
    """Raises UserError for impossible folds; `patients` is their number, if known."""
    if folds < 2 or not 0 <= fold < folds:
        raise UserError(
            f"split.fold is {fold} of {folds} folds; expected at least 2 folds and a fold from 0 "
            "to folds - 1"
        )
    if not 0 <= validation_fraction < 1:
        raise UserError(
            f"split.validation is {validation_fraction}; expected a share of at least 0 and below 1"
        )
    if patients is not None and patients < folds:
        raise UserError(
            f"split.folds is {folds}, but there are only {patients} patients; expected at least "
            "one patient for every fold"
        )


def _check_filled(part_of: Mapping[str, str], wanted: Mapping[str, float], patients: int) -> None:
    counts = {part: sum(got == part for got in part_of.values()) for part in PARTS}
    empty = [part for part in PARTS if wanted[part] > 0 and not counts[part]]
    if empty or not patients:
        listed = ", ".join(f"{count} {part}" for part, count in counts.items())
        raise UserError(
            f"split: no patient is left for {' and '.join(empty) or 'any part'}: {patients} "
            f"patients give {listed}. Add cases, or change split.train, .validation, .test "
            "or split.folds"
        )


# ------------------------------------------------------------------------- files


def save_split(split: Split, path: str | os.PathLike[str]) -> None:
    """Writes `split` as JSON: the lists of case ids and the hash. Never half-written.

    Raises:
        UserError: the file cannot be written.
    """
    content = {part: list(ids) for part, ids in split.parts.items()} | {"hash": split.hash}
    try:
        files.write_text(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{path}: the split cannot be written ({error.strerror})") from error


def load_split(path: str | os.PathLike[str], summaries: Sequence[Summary] | None = None) -> Split:
    """Reads a split in the form of `save_split`; the hash may be left out.

    Args:
        path: the JSON file.
        summaries: the cases that there are; the file may leave some of them out. None
            reads the split of other data, and checks only its form and hash.

    Raises:
        UserError: no such file or form, a wrong hash, a case that there is not or that is listed
            twice, or a patient in two parts.
    """
    content = _read_json(path)
    listed = (*PARTS, UNLABELLED) if UNLABELLED in content else PARTS
    split = _split({part: _ids(content, part, path) for part in listed})
    if content.get("hash", split.hash) != split.hash:
        raise UserError(
            f"{path}: the cases do not fit its hash, so it was changed after it was saved. If that "
            'was meant, remove "hash" from the file; else restore it'
        )
    if summaries is not None:
        _check_members(split, summaries, path)
    return split


def _read_json(path: str | os.PathLike[str]) -> typed.Json:
    try:
        content = documents.read_json(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; expected a split as JSON") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    unknown = (
        set(content) - {*PARTS, UNLABELLED, "hash"}
        if isinstance(content, dict)
        else {"a list or value"}
    )
    if unknown:
        raise UserError(
            f"{path}: holds {', '.join(sorted(unknown))}; expected an object with the lists of "
            f"case ids {', '.join(PARTS)}, and perhaps {UNLABELLED} and hash"
        )
    return content


def _ids(content: typed.JsonView, part: str, path: str | os.PathLike[str]) -> list[str]:
    ids = content.get(part)
    if not isinstance(ids, list) or not all(isinstance(case_id, str) for case_id in ids):
        raise UserError(f'{path}: "{part}" is {ids!r:.80}; expected a list of case ids')
    return ids


def _check_members(
    split: Split, summaries: Sequence[Summary], path: str | os.PathLike[str]
) -> None:
    patients = {summary.case_id: summary.patient_id for summary in summaries}
    placed: dict[str, str] = {}
    side: dict[str, str] = {}
    unknown = sorted({case_id for ids in split.parts.values() for case_id in ids} - set(patients))
    if unknown:
        raise UserError(
            f"{path}: {len(unknown)} cases are not in the data: {first_few(unknown)}. Expected "
            "case ids of the data that is used; is it another release?"
        )
    for part, ids in split.parts.items():
        for case_id in ids:
            if case_id in placed:
                raise UserError(
                    f"{path}: case {case_id} is listed twice ({placed[case_id]}, {part}); expected "
                    "it once"
                )
            placed[case_id] = part
            patient = patients[case_id]
            # Both train: a patient may have visits with a reference and without.
            part = "train" if part == UNLABELLED else part
            if side.setdefault(patient, part) != part:
                raise UserError(
                    f"{path}: patient {patient} is in {side[patient]} and in {part} (case "
                    f"{case_id}); expected all cases of a patient in one part"
                )


def check_same_split(saved: Split, current: Split) -> None:
    """Refuses to continue with another split than the saved one.

    Raises:
        UserError: they differ; the message counts and names the cases.
    """
    if saved.hash == current.hash:
        return
    differences = []
    for part in (*PARTS, UNLABELLED):
        before, now = set(getattr(saved, part)), set(getattr(current, part))
        if gone := sorted(before - now):
            differences.append(f"{part} lost {len(gone)} ({first_few(gone)})")
        if new := sorted(now - before):
            differences.append(f"{part} gained {len(new)} ({first_few(new)})")
    raise UserError(
        f"the split is not the saved one: {'; '.join(differences)}. Cases that trained would be "
        "tested. Use the same data, seed and split settings, or give the saved split.json"
    )
