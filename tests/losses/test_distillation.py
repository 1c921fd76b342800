"""KD-Net's terms by hand and by slow NumPy, their weights, and that the teacher is frozen."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdnet_jax.losses import distillation, objective, output
from kdnet_jax.models import heads
from tests.helpers import glioma

SHAPE = (2, 2, 3, 2)


def options(**values: Any) -> distillation.DistillationOptions:
    return distillation.DistillationOptions(**values)


def kd_terms(
    student: jax.Array,
    teacher: jax.Array,
    y: jax.Array,
    *,
    head: heads.Head,
    options: distillation.DistillationOptions,
) -> dict[str, jax.Array]:
    """The terms of L_KD."""
    functions = objective.of_options(head, kd=options).functions
    outputs = [output.Output(logits, {}, head) for logits in (student, teacher)]
    return {
        name: function(*outputs, y, None)
        for name, function in functions.items()
        if name.startswith("kd_")
    }


def latent_divergence(
    student: jax.Array, teacher: jax.Array, options: distillation.DistillationOptions
) -> jax.Array:
    """L_KL of two bottlenecks."""
    term = objective.of_options(glioma.SOFTMAX, kd=options).functions["kl"]
    outputs = [
        output.Output(latent, {"bottleneck": latent}, glioma.SOFTMAX)
        for latent in (student, teacher)
    ]
    return term(*outputs, jnp.zeros((len(student), *SHAPE[1:], 1)), None)


def random_logits(head: heads.Head, seed: int) -> jax.Array:
    values = np.random.default_rng(seed).normal(size=(*SHAPE, len(head.outputs))) * 3
    return jnp.asarray(values, jnp.float32)


def numpy_probabilities(logits: jax.Array, head: heads.Head, t: float) -> np.ndarray:
    exact = np.exp(np.asarray(logits, np.float64) / t)
    return exact / exact.sum(-1, keepdims=True) if head.kind == "softmax" else exact / (1 + exact)


@glioma.each_head
@pytest.mark.parametrize("tempered", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_kd_terms_against_numpy(head: heads.Head, tempered: bool, scaled: bool) -> None:
    student, teacher = random_logits(head, 0), random_logits(head, 1)
    chosen = options(temperature=3.0, temper_student=tempered, scale_by_temperature=scaled)
    actual = kd_terms(student, teacher, glioma.targets(head, SHAPE), head=head, options=chosen)
    s = numpy_probabilities(teacher, head, 3.0)
    p = numpy_probabilities(student, head, 3.0 if tempered else 1.0)
    axes, scale = (1, 2, 3), 9.0 if scaled else 1.0
    dice = 2 * (p * s).sum(axes) / ((p**2).sum(axes) + (s**2).sum(axes))
    entropy = -(s * np.log(p) + (1 - s) * np.log(1 - p)).mean((1, 2, 3, 4))
    assert set(actual) == {"kd_dice", "kd_bce"}
    np.testing.assert_allclose(actual["kd_dice"], scale * (1 - dice.mean(-1)), rtol=1e-4)
    np.testing.assert_allclose(actual["kd_bce"], scale * entropy, rtol=1e-4)


@glioma.each_head
@pytest.mark.parametrize("voxels", ["uniform", "boundary"])
def test_other_forms_against_numpy(head: heads.Head, voxels: str) -> None:
    student, teacher = random_logits(head, 0), random_logits(head, 1)
    y = glioma.targets(head, SHAPE)
    # In the first sample the teacher decides the same everywhere but in one corner.
    teacher = teacher.at[0].set(jnp.where(jnp.arange(teacher.shape[-1]) == 1, 2.0, -1.0))
    teacher = teacher.at[0, 0, 0, 0].multiply(-1)
    s, p = (numpy_probabilities(x, head, 2.0) for x in (teacher, student))
    divergence = s * np.log(s / p)
    if head.kind == "regions":
        divergence = (divergence + (1 - s) * np.log((1 - s) / (1 - p))) / 3
    maps = {"kl": divergence.sum(-1), "mse": ((s - p) ** 2).mean(-1)}
    for form, each in maps.items():
        expected = each.mean((1, 2, 3))
        if voxels == "boundary":  # the corner and its three neighbours
            beside = np.zeros(SHAPE[1:], bool)
            beside[(0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)] = True
            expected = (each[0][beside].mean() + each[0][~beside].mean()) / 2
        chosen = options(temperature=2.0, kd_form=form, kd_voxels=voxels, scale_by_temperature=True)
        actual = kd_terms(student, teacher, y, head=head, options=chosen)
        assert actual.keys() == {f"kd_{form}"}
        actual = actual[f"kd_{form}"]
        if voxels == "boundary":
            actual = actual[0]
        np.testing.assert_allclose(actual, 4 * expected, rtol=2e-4)


def test_standardized_logits_are_compared_whatever_their_shift_and_scale() -> None:
    student, y = random_logits(glioma.SOFTMAX, 0), glioma.targets(glioma.SOFTMAX, SHAPE)
    chosen = options(kd_form="kl", standardize_logits=True, temperature=1.0)
    for teacher in (2.5 * student + 7, 0.1 * student):
        actual = kd_terms(student, teacher, y, head=glioma.SOFTMAX, options=chosen)
        np.testing.assert_allclose(actual["kd_kl"], 0, atol=1e-5)
    # By hand: (3, -1, -1, -1) has mean 0 and deviation sqrt(3); its negative, the other way.
    student = jnp.broadcast_to(jnp.array([3.0, -1, -1, -1]), (*SHAPE, 4))
    s, p = (np.exp(sign * np.array([3, -1, -1, -1]) / np.sqrt(3)) for sign in (-1, 1))
    s, p = s / s.sum(), p / p.sum()
    actual = kd_terms(student, -9 * student + 1, y, head=glioma.SOFTMAX, options=chosen)
    np.testing.assert_allclose(actual["kd_kl"], (s * np.log(s / p)).sum(), rtol=1e-4)


def kd_loss(student: jax.Array, teacher: jax.Array, head: heads.Head, **values: Any) -> jax.Array:
    y = glioma.targets(head, SHAPE)
    terms = kd_terms(student, teacher, y, head=head, options=options(**values))
    return sum(terms.values()).sum()


@glioma.each_head
@pytest.mark.parametrize("form", ["dice_bce", "kl", "mse"])
@pytest.mark.parametrize("voxels", ["uniform", "balanced", "boundary"])
def test_a_tempered_student_is_best_where_it_equals_its_teacher(
    head: heads.Head, form: str, voxels: str
) -> None:
    teacher, chosen = random_logits(head, 1), {"kd_form": form, "kd_voxels": voxels}
    at_teacher, gradient = jax.value_and_grad(kd_loss)(teacher, teacher, head, **chosen)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    for seed in range(2, 4):
        other = teacher + 0.3 * random_logits(head, seed)
        assert kd_loss(other, teacher, head, **chosen) > at_teacher


def test_an_untempered_student_that_equals_its_teacher_is_pulled_away() -> None:
    # Why tempering is the default: the teacher's own sure answer does not match its soft targets.
    teacher = random_logits(glioma.SOFTMAX, 1)
    gradient = jax.grad(kd_loss)(teacher, teacher, glioma.SOFTMAX, temper_student=False)
    assert np.abs(gradient).max() > 1e-2


@glioma.each_head
def test_no_gradient_flows_into_the_teacher(head: heads.Head) -> None:
    student, teacher = random_logits(head, 0), random_logits(head, 1)
    gradient = jax.grad(kd_loss, argnums=1)(student, teacher, head)
    assert not gradient.any()
    assert jax.grad(kd_loss)(student, teacher, head).any()
    for direction in ("teacher_student", "student_teacher"):
        chosen = options(kl_direction=direction)

        def divergence(s: jax.Array, t: jax.Array, chosen: Any = chosen) -> jax.Array:
            return latent_divergence(s, t, chosen).sum()

        to_student, to_teacher = jax.grad(divergence, argnums=(0, 1))(student, teacher)
        assert to_student.any()
        assert not to_teacher.any()


@glioma.each_head
def test_extreme_logits_stay_finite(head: heads.Head) -> None:
    student = 1e3 * jnp.sign(random_logits(head, 0))
    value, gradient = jax.value_and_grad(kd_loss)(student, -student, head, temperature=1.0)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@glioma.each_head
def test_balance_gives_half_of_the_weight_to_the_tumour(head: heads.Head) -> None:
    labels = jnp.array([[3, 0, 0, 0], [0, 0, 0, 0], [1, 2, 3, 1]]).reshape(3, 1, 2, 2)
    weights = distillation.balance_weights(head.targets(labels), head).reshape(3, 4)
    # One voxel of four: 4/2 for it, 4/(2 x 3) for each of the others.
    expected = [[2, 2 / 3, 2 / 3, 2 / 3], [1, 1, 1, 1], [1, 1, 1, 1]]
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_balanced_entropy_is_the_mean_of_inside_and_outside() -> None:
    student, teacher = random_logits(glioma.SOFTMAX, 0), random_logits(glioma.SOFTMAX, 1)
    labels = jnp.zeros(SHAPE, jnp.int32).at[:, 0, 0, 0].set(2)
    y = glioma.SOFTMAX.targets(labels)
    terms = kd_terms(
        student, teacher, y, head=glioma.SOFTMAX, options=options(kd_voxels="balanced")
    )
    s, p = (numpy_probabilities(x, glioma.SOFTMAX, 5.0) for x in (teacher, student))
    entropy = -(s * np.log(p) + (1 - s) * np.log(1 - p)).mean(-1)
    inside = np.asarray(labels) > 0
    expected = [(entropy[b][inside[b]].mean() + entropy[b][~inside[b]].mean()) / 2 for b in (0, 1)]
    np.testing.assert_allclose(terms["kd_bce"], expected, rtol=1e-4)


def test_divergence_by_hand() -> None:
    # One voxel, two channels: student 1/2 1/2, teacher 3/4 1/4.
    student = jnp.zeros((1, 1, 1, 1, 2))
    teacher = jnp.log(jnp.array([3.0, 1.0])).reshape(student.shape)
    forward = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
    backward = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)
    actual = latent_divergence(student, teacher, options())
    assert actual.item() == pytest.approx(forward, rel=1e-5)
    chosen = options(kl_direction="student_teacher")
    actual = latent_divergence(student, teacher, chosen)
    assert actual.item() == pytest.approx(backward, rel=1e-5)


@pytest.mark.parametrize("over", ["channels", "voxels"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_divergence_against_numpy(over: str, reduction: str) -> None:
    student, teacher = random_logits(glioma.SOFTMAX, 0), random_logits(glioma.SOFTMAX, 1)
    actual = latent_divergence(
        student, teacher, options(latent_softmax=over, latent_reduction=reduction)
    )
    flat = [np.exp(np.asarray(x, np.float64).reshape(2, -1, 4)) for x in (student, teacher)]
    axis = 2 if over == "channels" else 1
    s, t = (x / x.sum(axis, keepdims=True) for x in flat)
    rows = (t * np.log(t / s)).sum(axis)
    expected = rows.mean(1) if reduction == "mean" else rows.sum(1)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_divergence_of_equals_is_zero_and_of_bfloat16_is_float32() -> None:
    latent = random_logits(glioma.SOFTMAX, 0).astype(jnp.bfloat16)
    actual = latent_divergence(latent, latent, options())
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, 0, atol=1e-6)


def test_the_defaults_are_the_paper_s_weights() -> None:
    values = dataclasses.asdict(options())
    weights = {key: values[key] for key in ("kd_weight", "latent_weight", "temperature")}
    assert weights == {"kd_weight": 0.75, "latent_weight": 10.0, "temperature": 5.0}
