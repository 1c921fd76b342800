"""Scoring of many cases on several processes."""

import functools
import math
import operator
import os
import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

from kdnet_jax import task as task_lib
from kdnet_jax.data.scans import nifti
from kdnet_jax.errors import UserError
from kdnet_jax.metrics import cases as case_metrics
from kdnet_jax.metrics import postprocessing, scoring

GLIOMA = task_lib.GLIOMA
OFF = postprocessing.Rules()
SPACING = (1.0, 2.0, 3.0)


def _masks(seed: int) -> scoring.Masks:
    rng = np.random.default_rng(seed)
    reference, prediction = rng.choice(4, size=(2, 8, 7, 6), p=[0.7, 0.1, 0.1, 0.1])
    return scoring.Masks(reference.astype(np.uint8), prediction.astype(np.uint8), SPACING)


def _jobs(count: int) -> list[scoring.Job]:
    # Later cases are not later in the alphabet.
    return [
        scoring.Job(f"case{9 - seed}", functools.partial(scoring.Masks, *_masks(seed)))
        for seed in range(count)
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_are_those_of_each_case_in_the_order_of_the_jobs(workers) -> None:
    scored = scoring.score_pairs(iter(_jobs(7)), OFF, task=GLIOMA, workers=workers, total=7)

    expected = [
        row
        for seed in range(7)
        for row in case_metrics.score_case(f"case{9 - seed}", *_masks(seed), task=GLIOMA)
    ]
    # NaN is not equal to itself: compared as text.
    assert list(map(repr, scored.plain)) == list(map(repr, expected))
    assert scored.processed == scored.plain


def test_post_processing_changes_only_its_own_rows() -> None:
    rules = postprocessing.Rules(small_region_ml={"ET": 1000.0})

    scored = scoring.score_pairs(_jobs(1), rules, task=GLIOMA, workers=1, total=1)

    plain, processed = ({row.region: row for row in rows} for rows in scored)
    assert plain["ET"].volume_pred_mm3 > 0
    assert processed["ET"].pred_empty
    assert plain["TC"].dice == processed["TC"].dice
    assert plain["WT"].hd95_mm == processed["WT"].hd95_mm


def _with_a_broken_one(load: functools.partial) -> list[scoring.Job]:
    return [*_jobs(2), scoring.Job("broken", load), *_jobs(1)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_cannot_be_read_names_its_case(workers) -> None:
    load = functools.partial(nifti.read_labels, pathlib.Path("gone.nii.gz"))
    with pytest.raises(UserError, match=r"broken: .*gone\.nii\.gz"):
        scoring.score_pairs(_with_a_broken_one(load), OFF, task=GLIOMA, workers=workers, total=4)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_programming_error_names_its_case_and_keeps_its_cause(workers) -> None:
    load = functools.partial(operator.truediv, 1, 0)
    with pytest.raises(RuntimeError, match="case broken: ZeroDivisionError") as caught:
        scoring.score_pairs(_with_a_broken_one(load), OFF, task=GLIOMA, workers=workers, total=4)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_worker_that_is_ended_from_outside_is_told_plainly() -> None:
    jobs = [scoring.Job("killed", functools.partial(os._exit, 9))]
    with pytest.raises(UserError, match=r"killed: .*memory.*--workers"):
        scoring.score_pairs(jobs, OFF, task=GLIOMA, workers=2, total=1)


def test_few_cases_wait_in_memory() -> None:
    asked = []

    def items() -> Iterator[int]:
        for number in range(50):
            asked.append(number)
            yield number

    results = scoring.map_cases(
        math.factorial, items(), case_id=str, workers=2, total=50, description="", unit="number"
    )
    assert next(results) == 1
    assert len(asked) <= 6
    assert list(results) == [math.factorial(number) for number in range(1, 50)]
