"""A student starts from its teacher as far as their arrays agree."""

import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from kdnet_jax import task as task_lib
from kdnet_jax.models import unet
from kdnet_jax.runs import model, trained, transfer


def _params(value: float, inputs: int, width: int) -> dict[str, Any]:
    first = value + jnp.arange(inputs, dtype=jnp.float32)[:, None] * jnp.ones((3, 3, 3, 1, width))
    return {
        "first": {"kernel": first, "bias": jnp.full(width, value)},
        "second": {"kernel": jnp.full((3, 3, 3, width, 5), value)},
        "head": {"bias": jnp.full(4, value)},
    }


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
