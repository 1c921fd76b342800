"""Scoring of many cases on several processes."""

import collections
import contextlib
import functools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from concurrent.futures import process
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Integer

from kdnet_jax import task as task_lib
from kdnet_jax.core import console
from kdnet_jax.errors import UserError
from kdnet_jax.metrics import cases as case_metrics
from kdnet_jax.metrics import postprocessing

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
# Jobs that wait beside those at work: enough that no worker idles, and few in memory.
_WAITING_PER_WORKER = 2

Classes = Integer[np.ndarray, "x y z"]


class Masks(NamedTuple):
    """Classes of reference and prediction on one grid, and its spacing in mm."""

    reference: Classes
    prediction: Classes
    spacing: tuple[float, float, float]


class Job(NamedTuple):
    """A case to score.

    Attributes:
        case_id: the case's id.
        load: returns its masks, in the worker: a function of a module with its arguments bound by
            `functools.partial`. With paths bound, only these travel to the worker.
    """

    case_id: str
    load: Callable[[], Masks]


class Scored(NamedTuple):
    """The rows of a case, without and with post-processing."""

    plain: list[case_metrics.RegionScore]
    processed: list[case_metrics.RegionScore]


def default_workers() -> int:
    """Returns the number of cores that this process may use, 8 at most."""
    # macOS and Windows do not say which cores a process may use.
    known = hasattr(os, "sched_getaffinity")
    return min(8, len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1)


def score_pairs(
    jobs: Iterable[Job],
    rules: postprocessing.Rules,
    *,
    task: task_lib.Task,
    workers: int,
    total: int,
) -> Scored:
    """Scores cases without and with post-processing, `workers` at a time, with a progress bar.

    The rows come in the order of the jobs, whatever the number of workers. A worker holds one
    case. The jobs may be a generator: the next is taken only when a worker is about to need it.

    Raises:
        UserError: the masks of a case cannot be read or scored, or a worker was ended from
            outside; the case is named.
    """
    score = functools.partial(_score, rules=rules, task=task)
    done = list(
        map_cases(
            score,
            jobs,
            case_id=lambda job: job.case_id,
            workers=workers,
            total=total,
            description="scoring",
        )
    )
    return Scored(
        [row for scored in done for row in scored.plain],
        [row for scored in done for row in scored.processed],
    )


def _score(job: Job, rules: postprocessing.Rules, task: task_lib.Task) -> Scored:
    return score_case(job.case_id, job.load(), rules, task=task)


def score_case(
    case_id: str, masks: Masks, rules: postprocessing.Rules, *, task: task_lib.Task
) -> Scored:
    """Scores one case without and with post-processing.

    Raises:
        UserError: the grids differ, or a value is not a class.
    """
    plain = case_metrics.score_case(case_id, *masks, task=task)
    corrected = postprocessing.apply(masks.prediction, masks.spacing, rules, task=task)
    # Most cases are left as they are, and scoring one takes a while.
    if np.array_equal(corrected, masks.prediction):
        return Scored(plain, plain)
    changed = masks._replace(prediction=corrected)
    return Scored(plain, case_metrics.score_case(case_id, *changed, task=task))


def map_cases(
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    *,
    case_id: Callable[[_Item], str],
    workers: int,
    total: int,
    description: str,
    unit: str = "case",
) -> Iterator[_Result]:
    """Yields function(item) in the order of the items, from several processes, with a bar.

    One worker means this process. New processes are spawned: a fork of a process in which JAX has
    started its threads can hang.

    Raises:
        UserError: as `function` raises it, or a process was ended from outside.
        RuntimeError: `function` raised anything else; the case is named.
    """
    with console.bar(total=total, desc=description, unit=unit) as bar, _pool(workers) as submit:
        pending: collections.deque[tuple[str, futures.Future[_Result]]] = collections.deque()
        for item in items:
            pending.append((case_id(item), submit(function, item)))
            if len(pending) > workers * _WAITING_PER_WORKER:
                yield _result(*pending.popleft())
                bar.update()
        while pending:
            yield _result(*pending.popleft())
            bar.update()


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[Callable[..., futures.Future]]:
    """Yields `submit` of a pool or of this process; what still waits at an error is dropped."""
    if workers == 1:
        yield _submit_here
        return
    context = multiprocessing.get_context("spawn")
    pool = futures.ProcessPoolExecutor(workers, context, _leave_interrupts_to_parent)
    try:
        yield pool.submit
    finally:
        pool.shutdown(cancel_futures=True)


def _submit_here(function: Callable[..., object], *args: object) -> futures.Future:
    future: futures.Future = futures.Future()
    try:
        future.set_result(function(*args))
    except Exception as error:  # kept for `result()`, as a pool does
        future.set_exception(error)
    return future


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _result(case_id: str, future: futures.Future[_Result]) -> _Result:
    try:
        return future.result()
    except UserError as error:
        message = str(error)
        raise UserError(message if case_id in message else f"{case_id}: {message}") from error
    except process.BrokenProcessPool as error:
        raise UserError(
            f"{case_id}: a worker process was ended while this case or one of the next was at "
            "work, mostly because memory ran out. Use fewer with --workers"
        ) from error
    except Exception as error:
        raise RuntimeError(f"case {case_id}: {type(error).__name__}: {error}") from error
