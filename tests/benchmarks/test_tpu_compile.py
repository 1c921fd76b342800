"""What `benchmarks.tpu_compile` lowers, on the mesh at hand, and its refusal without libtpu."""

import importlib.util

import jax
import pytest

from benchmarks import tpu_programs
from kdnet_jax import errors
from kdnet_jax.parallel import sharding

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("program", "channels"), [("supervised", 4), ("distillation", 4), ("prediction", 1)]
)
def test_programs_have_the_sizes_of_the_preset(program: str, channels: int) -> None:
    lowered = tpu_programs.lower(program, "smoke", "blocks", 3, sharding.make_mesh())
    shapes = {each.shape for each in jax.tree.leaves(lowered.args_info)}
    edge = 32 if program == "prediction" else 16
    assert (3, edge, edge, edge, channels) in shapes


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_libtpu_it_says_what_to_install() -> None:
    with pytest.raises(errors.UserError, match=r"cannot be compiled for .*pip install libtpu"):
        tpu_programs.mesh_of("v5e:2x2")
