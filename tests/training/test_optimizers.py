"""Schedules at points worked out by hand, update rules, clipping, the plateau, refusals."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdnet_jax.training import optimizers


def options(**values: Any) -> optimizers.OptimizerOptions:
    defaults = {"schedule": "constant", "learning_rate": 0.1, "clip": 0.0}
    return optimizers.OptimizerOptions(**defaults | values)


def updates(
    chosen: optimizers.OptimizerOptions,
    gradients: list[float],
    losses: list[float] | None = None,
    start: float = 0.0,
    epoch: int = 1,
) -> list[float]:
    """What each gradient does to a parameter that stays at `start`."""
    optimizer = optimizers.make_optimizer(chosen, 100, epoch)
    params = {"w": jnp.full((1,), start)}
    state = optimizer.init(params)
    step = jax.jit(optimizer.update)
    changes = []
    for gradient, loss in zip(gradients, losses or [1.0] * len(gradients), strict=True):
        change, state = step({"w": jnp.full((1,), gradient)}, state, params, value=loss)
        changes.append(float(change["w"][0]))
    return changes


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        ("constant", {0: 0.2, 50: 0.2, 100: 0.2}),
        ("plateau", {0: 0.2, 100: 0.2}),
        ("cosine", {0: 0.2, 25: 0.1 * (1 + np.cos(np.pi / 4)), 50: 0.1, 100: 0.0}),
        ("poly", {0: 0.2, 50: 0.2 * 0.5**0.9, 90: 0.2 * 0.1**0.9, 100: 0.0}),
    ],
)
def test_schedules_at_points(schedule: str, points: dict[int, float]) -> None:
    rate = optimizers.learning_rate(options(schedule=schedule, learning_rate=0.2), 100)
    for step, expected in points.items():
        assert float(rate(step)) == pytest.approx(expected, abs=1e-7)


def test_warmup_rises_to_the_peak_and_the_rest_falls_from_there() -> None:
    chosen = options(schedule="cosine", warmup=10)
    rate = optimizers.learning_rate(chosen, 110)
    actual = [float(rate(step)) for step in (0, 5, 10, 60, 110)]
    np.testing.assert_allclose(actual, [0, 0.05, 0.1, 0.05, 0], atol=1e-7)


def test_a_warmup_as_long_as_the_run_still_is_a_schedule() -> None:
    rate = optimizers.learning_rate(options(schedule="poly", warmup=10), 10)
    np.testing.assert_allclose([float(rate(step)) for step in (5, 10)], [0.05, 0.1], atol=1e-7)


def test_sgd_has_nesterov_momentum() -> None:
    # m1 = g, step g + .99 m1; m2 = g + .99 g, step g + .99 m2
    actual = updates(options(name="sgd"), [2.0, 2.0])
    np.testing.assert_allclose(actual, [-0.2 * 1.99, -0.2 * (1 + 0.99 * 1.99)], rtol=1e-5)


def test_adam_s_first_step_is_the_learning_rate() -> None:
    assert updates(options(), [3.0, 3.0]) == pytest.approx([-0.1, -0.1], rel=1e-4)


def test_weight_decay_pulls_to_zero() -> None:
    decayed = updates(options(name="adamw", weight_decay=0.5), [3.0], start=2.0)
    assert decayed == pytest.approx([-0.1 * (1 + 0.5 * 2)], rel=1e-4)
    decayed = updates(options(name="sgd", weight_decay=0.5), [0.0], start=2.0)
    assert decayed == pytest.approx([-0.1 * 1.99 * 0.5 * 2], rel=1e-4)


def test_the_global_norm_is_clipped() -> None:
    chosen = options(name="sgd", clip=5.0)
    optimizer = optimizers.make_optimizer(chosen, 10, 1)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    # Norm 50 over both leaves: a tenth is left.
    change, _ = optimizer.update(
        {"a": jnp.array([30.0]), "b": jnp.array([40.0])}, optimizer.init(params), params, value=1.0
    )
    np.testing.assert_allclose([change["a"][0], change["b"][0]], [-0.597, -0.796], rtol=1e-5)
    assert updates(chosen, [3.0]) == pytest.approx([-0.1 * 1.99 * 3], rel=1e-5)


def test_the_plateau_lowers_the_rate_after_its_epochs_without_improvement() -> None:
    chosen = options(schedule="plateau", plateau_factor=0.2, plateau_epochs=3)
    # Epochs of two steps with means 1 (the best), 1, 1, 1: lowered from the eighth step on.
    losses = [0.5, 1.5] * 4 + [1.0]
    actual = updates(chosen, [1.0] * 9, losses, epoch=2)
    np.testing.assert_allclose(actual, [-0.1] * 7 + [-0.02] * 2, rtol=1e-4)


def test_the_plateau_does_not_lower_while_the_loss_falls() -> None:
    chosen = options(schedule="plateau", plateau_epochs=2)
    actual = updates(chosen, [1.0] * 8, [1.0 - 0.1 * step for step in range(8)])
    np.testing.assert_allclose(actual, -0.1, rtol=1e-4)


def test_the_plateau_s_count_starts_anew_at_an_improvement() -> None:
    chosen = options(schedule="plateau", plateau_epochs=2)
    actual = updates(chosen, [1.0] * 5, [1.0, 1.0, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(actual, [-0.1] * 4 + [-0.02], rtol=1e-4)


@pytest.mark.parametrize("schedule", ["constant", "plateau"])
def test_the_loss_may_be_given_to_every_optimizer(schedule: str) -> None:
    assert len(updates(options(schedule=schedule, clip=1.0), [1.0])) == 1
