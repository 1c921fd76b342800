"""Labels of a teacher where there is no reference: by hand, and that each counts where due."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from configs.methods import patient
from kdnet_jax.losses import distillation, objective, output, pseudo_labels, segmentation
from kdnet_jax.models import heads
from tests.helpers import glioma

KD = distillation.DistillationOptions
SHAPE = (2, 4, 4, 4)
# The first sample has a reference, the second has none.
LABELLED = jnp.array([1.0, 0.0])


def of_probabilities(p: Any, head: heads.Head, **features: Any) -> output.Output:
    """The output of one voxel "b k" whose probabilities are known."""
    p = np.asarray(p, np.float32)[:, None, None, None]
    logits = np.log(p) if head.kind == "softmax" else np.log(p / (1 - p))
    return output.Output(jnp.asarray(logits), features, head)


def make_output(head: heads.Head, seed: int) -> output.Output:
    rng = np.random.default_rng(seed)
    k = len(head.outputs)
    features = {"bottleneck": (1, 5), "logits_1": (2, k)}
    arrays = {
        name: jnp.asarray(rng.normal(size=(2, edge, edge, edge, c)), jnp.float32)
        for name, (edge, c) in features.items()
    }
    return output.Output(jnp.asarray(rng.normal(size=(*SHAPE, k)), jnp.float32), arrays, head)


def sample(out: output.Output, number: int) -> output.Output:
    part = slice(number, number + 1)
    features = {name: value[part] for name, value in out.features.items()}
    return output.Output(out.logits[part], features, out.head)


def test_decisions_and_confidence_by_hand() -> None:
    classes = of_probabilities([[0.1, 0.2, 0.6, 0.1], [0.7, 0.1, 0.1, 0.1]], glioma.SOFTMAX)
    decided = np.asarray(classes.decided).reshape(2, 4)
    assert decided.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]
    sure = np.asarray(pseudo_labels.confidence(classes)).ravel()
    np.testing.assert_allclose(sure, [0.6, 0.7], rtol=1e-6)
    tied = of_probabilities([[0.1, 0.4, 0.4, 0.1]], glioma.SOFTMAX)
    assert np.asarray(tied.decided).ravel().tolist() == [0, 1, 0, 0]
    # ET, TC, WT: the least sure of the three decides, 0.6 of "not ET" and 0.75 of "TC".
    regions = of_probabilities([[0.4, 0.8, 0.9], [0.01, 0.75, 0.99]], glioma.REGIONS)
    decided = np.asarray(regions.decided).reshape(2, 3)
    assert decided.tolist() == [[0, 1, 1], [0, 1, 1]]
    sure = np.asarray(pseudo_labels.confidence(regions)).ravel()
    np.testing.assert_allclose(sure, [0.6, 0.75], rtol=1e-5)


@pytest.mark.parametrize(
    ("form", "weights"),
    [("probability", [1, 0.7]), ("threshold", [1, 0]), ("agreement", [1, 0.3]), ("none", None)],
)
def test_voxels_count_by_confidence_where_there_is_no_reference(
    form: str, weights: list[float] | None
) -> None:
    p, agreement = [[0.1, 0.2, 0.6, 0.1], [0.7, 0.1, 0.1, 0.1]], jnp.array([0.2, 0.3])
    teacher = of_probabilities(p, glioma.SOFTMAX, agreement=agreement.reshape(2, 1, 1, 1, 1))
    y = jnp.zeros((2, 1, 1, 1, 4)).at[0, ..., 3].set(1)
    labels = pseudo_labels.Labels("hard", form, 0.8)
    y, where = pseudo_labels.complete(labels, teacher, y, None, LABELLED)
    assert np.asarray(y).reshape(2, 4).tolist() == [[0, 0, 0, 1], [1, 0, 0, 0]]
    if weights is None:
        assert where is None
    else:
        np.testing.assert_allclose(np.asarray(where).ravel(), weights, rtol=1e-6)


def test_sharpening_by_hand() -> None:
    # p^2, normalised: 0.36 and 0.16 of 0.52, for a p of 0.6, 0.4.
    teacher = of_probabilities([[0.6, 0.4, 1e-12, 1e-12]], glioma.SOFTMAX)
    np.testing.assert_allclose(
        [float(p.squeeze()) for p in teacher.softened(0.5).p[:2]], [0.36 / 0.52, 0.16 / 0.52], 1e-5
    )


@glioma.each_head
@pytest.mark.parametrize("form", ["dice_ce", "dice_bce"])
def test_hard_labels_are_a_reference_in_the_form_of_the_loss(head: heads.Head, form: str) -> None:
    student, teacher, y = make_output(head, 0), make_output(head, 1), glioma.targets(head, SHAPE)
    options = segmentation.LossOptions(form)
    kd = KD(kd_weight=0.75, latent_weight=10.0, unlabelled_weight=3.0)
    loss = objective.of_options(head, options, kd, unlabelled=True)
    terms = loss.terms(student, teacher, y, None, LABELLED)

    # Each sample by itself, in losses that know of no other kind.
    both = objective.of_options(head, options, kd)
    alone = both.terms(sample(student, 0), sample(teacher, 0), y[:1], None)
    plain = objective.of_options(head, options)
    decided = sample(teacher, 1).decided.astype(jnp.float32)
    taught = plain.terms(sample(student, 1), None, decided, None)
    latent = both.terms(sample(student, 1), sample(teacher, 1), y[1:], None)["kl"]
    for name, value in alone.items():
        assert float(terms[name][0]) == pytest.approx(float(value[0]), rel=1e-5)
        assert name == "kl" or terms[name][1] == 0
    for name, value in taught.items():
        assert terms[name.replace("gt", "pl")].tolist() == [0, pytest.approx(float(value[0]))]
    expected = [both.total(alone)[0], 3 * plain.total(taught)[0] + 10 * latent[0]]
    np.testing.assert_allclose(loss.total(terms), expected, rtol=1e-5)


@pytest.mark.parametrize(("form", "ours", "theirs"), [("soft", 2.0, 2.0), ("sharp", 1.0, 0.5)])
def test_soft_labels_are_the_terms_of_kd(form: str, ours: float, theirs: float) -> None:
    head = glioma.SOFTMAX
    student, teacher, y = make_output(head, 0), make_output(head, 1), glioma.targets(head, SHAPE)
    kd = KD(unlabelled=form, unlabelled_temperature=2.0, sharpening=0.5, latent_weight=0.0)
    loss = objective.of_options(head, kd=kd, unlabelled=True)
    terms = loss.terms(student, teacher, y, None, LABELLED)
    soft = {"teacher_temperature": theirs, "student_temperature": ours}
    pair = sample(student, 1), sample(teacher, 1), y[1:], None
    dice = distillation.softened_dice_loss(*pair, **soft)
    entropy = distillation.softened_cross_entropy_loss(*pair, **soft)
    assert terms["pl_soft_dice"].tolist() == [0, pytest.approx(float(dice[0]), rel=1e-5)]
    assert terms["pl_soft_bce"].tolist() == [0, pytest.approx(float(entropy[0]), rel=1e-5)]
    assert float(loss.total(terms)[1]) == pytest.approx(float(dice[0] + entropy[0]), rel=1e-5)
    # The form of L_KD is theirs too.
    for name, function in (
        ("kl", distillation.softened_divergence),
        ("mse", distillation.squared_difference),
    ):
        other = objective.of_options(
            head, kd=dataclasses.replace(kd, kd_form=name), unlabelled=True
        )
        terms = other.terms(student, teacher, y, None, LABELLED)
        (value,) = function(*pair, **soft)
        assert terms[f"pl_soft_{name}"].tolist() == [0, pytest.approx(float(value), rel=1e-5)]
        assert float(other.total(terms)[1]) == pytest.approx(float(value), rel=1e-5)
        _check_weights(other, student, teacher, y)
    _check_weights(loss, student, teacher, y)


def test_a_patient_teacher_asks_the_same_of_scans_with_and_without_a_reference() -> None:
    config = patient.get_config("fewlabels")
    kd = KD(**config.distillation.to_dict())
    student, teacher = (make_output(glioma.SOFTMAX, seed) for seed in (0, 1))
    y = glioma.targets(glioma.SOFTMAX, SHAPE)
    loss = objective.of_options(glioma.SOFTMAX, kd=kd, unlabelled=True)
    plain = objective.of_options(glioma.SOFTMAX, kd=kd)
    np.testing.assert_allclose(
        loss.total(loss.terms(student, teacher, y, None, LABELLED)),
        plain.total(plain.terms(student, teacher, y, None)),
        rtol=1e-6,
    )


def _check_weights(
    loss: objective.Loss, student: output.Output, teacher: output.Output, y: Any
) -> None:
    """A voxel without weight changes nothing."""
    where = jnp.ones(SHAPE).at[1, 0].set(0)
    far = output.Output(student.logits.at[1, 0, ..., 1].add(7.0), {}, student.head)
    for name, term in loss.functions.items():
        if name.startswith("pl"):
            ours, theirs = (term(out, teacher, y, where) for out in (student, far))
            np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-6)
            assert term(far, teacher, y, None)[1] != pytest.approx(float(theirs[1]), rel=1e-3)


@pytest.mark.parametrize("form", ["soft", "sharp", "hard"])
def test_a_hidden_reference_is_not_read(form: str) -> None:
    student, teacher = (make_output(glioma.SOFTMAX, seed) for seed in (0, 1))
    kd = KD(unlabelled=form, confidence="probability", kd_voxels="balanced")
    loss = objective.of_options(glioma.SOFTMAX, kd=kd, unlabelled=True)
    y, other = glioma.targets(glioma.SOFTMAX, SHAPE), glioma.targets(glioma.SOFTMAX, SHAPE, 3)
    ours, theirs = (
        loss.terms(student, teacher, each, None, LABELLED) for each in (y, y.at[1].set(other[1]))
    )
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
