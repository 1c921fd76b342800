"""A student starts from its teacher as far as their arrays agree."""

import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from kdnet_jax import task as task_lib
from kdnet_jax.errors import UserError
from kdnet_jax.models import unet
from kdnet_jax.runs import model, trained, transfer


def _params(value: float, inputs: int, width: int) -> dict[str, Any]:
    first = value + jnp.arange(inputs, dtype=jnp.float32)[:, None] * jnp.ones((3, 3, 3, 1, width))
    return {
        "first": {"kernel": first, "bias": jnp.full(width, value)},
        "second": {"kernel": jnp.full((3, 3, 3, width, 5), value)},
        "head": {"bias": jnp.full(4, value)},
    }


def _first(
    params: dict[str, Any], own: tuple[str, ...], head: str = "softmax", **run: Any
) -> dict[str, Any]:
    """Starts a network on `own` sequences from one on T1, T1ce and FLAIR."""
    kinds = (unet.UNetConfig(widths=(2, 4), head=each) for each in (head, "softmax"))
    models = [
        model.Model(task_lib.GLIOMA, "baseline", network, names, 1.5, (8, 8, 8))
        for network, names in zip(kinds, (own, ("t1", "t1ce", "flair")), strict=True)
    ]
    start = trained.Run(pathlib.Path("there"), models[1], _params(10, 3, 2), 0, "", **run)
    return transfer.from_start(params, models[0], start)


def test_a_network_starts_from_all_of_another() -> None:
    started = _first(_params(0, 1, 2), ("flair",))
    np.testing.assert_array_equal(started["first"]["kernel"], jnp.full((3, 3, 3, 1, 2), 12.0))
    assert (started["second"]["kernel"] == 10).all()
    assert (started["head"]["bias"] == 10).all()


@pytest.mark.parametrize(
    ("head", "pretrained"), [("regions", False), ("softmax", True)], ids=["outputs", "untrained"]
)
def test_a_head_that_says_something_else_stays_as_it_was_drawn(head: str, pretrained: bool) -> None:
    started = _first(_params(0, 3, 2), ("t1", "t1ce", "flair"), head, pretrained=pretrained)
    assert (started["first"]["kernel"] >= 10).all()
    assert (started["head"]["bias"] == 0).all()


@pytest.mark.parametrize(
    ("width", "own", "words"),
    [
        (3, ("flair",), r"on flair, cannot start from it \(\['first'\]\['bias'\] is the first"),
        (2, ("t2",), "a unet on t1, t1ce, flair; this network, a unet on t2, cannot"),
    ],
)
def test_what_does_not_fit_is_no_start(width: int, own: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        _first(_params(0, len(own), width), own)


def _start(student: tuple[str, ...], width: int) -> dict[str, Any]:
    network, teacher = unet.UNetConfig(widths=(2, 4)), ("t1", "t1ce", "flair")
    models = [
        model.Model(task_lib.GLIOMA, "student", network, names, 1.5, (8, 8, 8))
        for names in (student, teacher)
    ]
    run = trained.Run(pathlib.Path("nowhere"), models[1], _params(10, 3, 2), 0, "")
    return transfer.from_teacher(_params(0, len(student), width), models[0], run)


def test_the_first_convolution_is_that_of_the_student_s_sequences() -> None:
    started = _start(("flair",), 2)
    np.testing.assert_array_equal(started["first"]["kernel"], jnp.full((3, 3, 3, 1, 2), 12.0))
    assert (started["first"]["bias"] == 10).all()
    assert (started["second"]["kernel"] == 10).all()
    started = _start(("flair", "t1"), 2)
    np.testing.assert_array_equal(started["first"]["kernel"][0, 0, 0, :, 0], [12, 10])


def test_what_has_another_shape_stays() -> None:
    started = _start(("t1ce",), 3)
    for layer in ("first", "second"):
        assert not (started[layer]["kernel"] >= 10).any()
    assert (started["head"]["bias"] == 10).all()
    # A sequence that the teacher has never seen.
    assert not _start(("t2",), 2)["first"]["kernel"].any()
