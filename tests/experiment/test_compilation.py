"""The step is compiled and weighed before anything is trained; what its operations are."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from kdnet_jax.config import experiment as experiment_lib
from kdnet_jax.config import reading
from kdnet_jax.core import memory
from kdnet_jax.errors import UserError
from kdnet_jax.experiment import compilation, runner
from kdnet_jax.models import networks, unet
from kdnet_jax.parallel import sharding
from kdnet_jax.runs import model
from kdnet_jax.training import steps
from tests.helpers import jaxprs

pytestmark = pytest.mark.usefixtures("quick_compilation")

CASES = 4


def _compile(asked: experiment_lib.Experiment, teacher: model.Model | None = None) -> Any:
    return compilation.compile_step([asked], sharding.make_mesh(), CASES, teacher)


# --- Compiled and weighed ------------------------------------------------------------------------


def test_a_step_takes_its_batch_and_more_with_a_larger_one() -> None:
    needs = {}
    for batch in (1, 2):
        config = common.base_config("baseline", "smoke")
        config.loader.batch = batch
        step, sentence = _compile(reading.read(config))
        needs[batch] = memory.step_bytes(step)
        arguments = step.memory_analysis().argument_size_in_bytes
        # Four sequences and a class of each of 16^3 voxels.
        assert needs[batch] > arguments > batch * 16**3 * (4 * 4 + 1)
        assert "The network computes in float32, convolutions " in sentence
        assert "One training step takes " in sentence
    assert needs[2] > 1.3 * needs[1]


def test_the_compiled_step_of_a_student_is_the_step_of_a_run() -> None:
    student = reading.read(common.base_config("student", "smoke"))
    teacher = model.of_experiment(student.teacher.to_train)
    step, _ = _compile(student, teacher)
    parameters = [
        networks.init_params(each.network, len(each.modalities), jax.random.key(0))
        for each in (student, teacher)
    ]
    state = steps.init_state(parameters[0], compilation.optimizer(student, CASES))
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.normal(size=(1, 16, 16, 16, 4)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 4, (1, 16, 16, 16)), jnp.uint8),
    }
    (new,), (metrics,) = step((state,), parameters[1], batch, jax.random.key(1))
    assert int(new.step) == 1
    assert {"kd_dice", "kd_bce", "kl"} < set(metrics)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(parameters[1]))


@pytest.mark.once
@pytest.mark.parametrize("role", ["baseline", "student"])
def test_a_run_whose_step_cannot_fit_is_refused_before_any_step(
    tiny_cohort: pathlib.Path, built: pathlib.Path, tmp_path: pathlib.Path, role: str
) -> None:
    config = common.base_config(role, "smoke")
    config.data.data_dir, config.data.root = str(tiny_cohort), str(built)
    # Patches of 7 GB, and the activations of 100 000 networks: nothing of it is ever made.
    config.loader.batch = 100_000
    if role == "student":
        config.teacher.widths = (2, 8)
    with pytest.raises(UserError, match=r"one training step needs \d+\.\d GiB on the CPU"):
        runner.run(reading.read(config), tmp_path / "run")
    for folder in ("run", "run/teacher"):
        assert not (tmp_path / folder / "checkpoints").exists()
        assert not (tmp_path / folder / "metrics.jsonl").exists()


def _too_much(*unused: object, **unused_too: object) -> Any:
    """Asks XLA for a petabyte."""
    return jax.block_until_ready(jnp.zeros(10**15, jnp.int8))


@pytest.mark.parametrize(
    "place",
    ["kdnet_jax.experiment.compilation.compile_step", "kdnet_jax.experiment.run_data.open_batches"],
    ids=["compiler", "data"],
)
def test_a_full_device_is_told_in_plain_words_wherever_it_shows(
    tiny_cohort: pathlib.Path,
    built: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    config = common.base_config("baseline", "smoke")
    config.data.data_dir, config.data.root = str(tiny_cohort), str(built)
    monkeypatch.setattr(place, _too_much)
    with pytest.raises(UserError, match="the memory of the CPU is used up") as error:
        runner.run(reading.read(config), tmp_path / "run")
    assert "--config.train.accumulate=2" in str(error.value)


def test_another_error_of_the_device_is_not_taken_for_that() -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match="shapes"), compilation.explain_if_full():
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: shapes differ.")


# --- What its operations are ---------------------------------------------------------------------


@pytest.mark.parametrize("form", ["native", "planes", "blocks"])
@pytest.mark.parametrize("remat", [False, True])
def test_no_convolution_is_strided_or_dilated(form: str, remat: bool) -> None:
    # XLA runs them many times slower, and so it does the gradients of strided ones.
    paper = unet.UNetConfig(widths=(2, 3, 4), convolutions=form, remat=remat)
    for config in (paper, dataclasses.replace(paper, down="strided", up="learned")):
        net, x = unet.UNet(config), jnp.zeros((1, 16, 16, 16, 2))

        def loss(params: Any, net: unet.UNet = net, x: jax.Array = x) -> jax.Array:
            return net.apply(params, x)[0].sum()

        params = jax.eval_shape(net.init, jax.random.key(0), x)
        trace = jax.make_jaxpr(jax.value_and_grad(loss))(params)
        found = jaxprs.named(trace, "conv_general_dilated")
        # Forward, and backward to the weights and (but the first's) to the input.
        assert len(found) > 2 * 10
        for operation in found:
            given = operation.params
            for key in ("window_strides", "lhs_dilation", "rhs_dilation"):
                assert set(given[key]) == {1}, (key, given[key])


def test_a_strided_convolution_would_be_seen() -> None:
    def strided(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME").sum()

    shapes = (jnp.zeros((1, 1, 8, 8)), jnp.zeros((1, 1, 3, 3)))
    trace = jax.make_jaxpr(jax.jit(jax.grad(strided, argnums=(0, 1))))(*shapes)
    dilated = [
        {*found.params["lhs_dilation"], *found.params["rhs_dilation"]}
        for found in jaxprs.named(trace, "conv_general_dilated")
    ]
    assert dilated.count({1, 2}) == 2
