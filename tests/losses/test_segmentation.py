"""Losses against the reference: values by hand and by slow NumPy, extremes, gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdnet_jax.losses import channels, objective, output, segmentation
from kdnet_jax.models import heads
from tests.helpers import glioma, made_up_tasks

SHAPE = (2, 2, 3, 2)
SMOOTH = 1e-5


def supervised_terms(
    logits: jax.Array,
    y: jax.Array,
    *,
    head: heads.Head,
    known: jax.Array | None = None,
    form: str = "dice_ce",
    over_batch: bool = False,
    features: dict[str, jax.Array] | None = None,
) -> dict[str, jax.Array]:
    """The terms of a run without a teacher."""
    loss = objective.of_options(head, segmentation.LossOptions(form, over_batch))
    return loss.terms(output.Output(logits, features or {}, head), None, y, known)


def deep_supervision_loss(
    features: dict[str, jax.Array], y: jax.Array, *, head: heads.Head, **chosen: Any
) -> jax.Array | None:
    """The term of the coarser levels; None where there are none."""
    terms = supervised_terms(jnp.zeros_like(y), y, head=head, features=features, **chosen)
    return terms.get("gt_coarse")


def random_logits(channels: int, seed: int = 0) -> jax.Array:
    values = np.random.default_rng(seed).normal(size=(*SHAPE, channels)) * 2
    return jnp.asarray(values, jnp.float32)


def volume(*values: float) -> channels.Volumes:
    """One sample, one channel, a row of voxels."""
    return (jnp.array(values, jnp.float32).reshape(1, 1, 1, -1),)


def test_soft_dice_by_hand() -> None:
    p, y = volume(0.5, 0.5, 0.0), volume(1.0, 0.0, 1.0)
    # overlap 0.5; squares 0.25 + 0.25 + 2
    assert segmentation.soft_dice(p, y)[0, 0] == pytest.approx(1 / 2.5, rel=1e-4)


def test_soft_dice_of_equal_and_of_empty_is_one() -> None:
    empty, soft = volume(0, 0), volume(0.3, 0.8)
    assert segmentation.soft_dice(empty, empty)[0, 0] == pytest.approx(1)
    assert segmentation.soft_dice(soft, soft)[0, 0] == pytest.approx(1)
    assert segmentation.soft_dice(volume(1, 1), empty)[0, 0] == pytest.approx(0, abs=1e-4)


def test_soft_dice_rows_and_batch_against_numpy() -> None:
    p, y = np.random.default_rng(0).random((2, 3, 2, 2, 2, 4)).astype(np.float32)
    per_sample = np.array(
        [
            [
                2
                * (p[b, ..., k] * y[b, ..., k]).sum()
                / ((p[b, ..., k] ** 2).sum() + (y[b, ..., k] ** 2).sum())
                for k in range(4)
            ]
            for b in range(3)
        ]
    )
    split = channels.split(jnp.asarray(p)), channels.split(jnp.asarray(y))
    np.testing.assert_allclose(segmentation.soft_dice(*split), per_sample, rtol=1e-4)
    pooled = 2 * (p * y).sum((0, 1, 2, 3)) / ((p**2).sum((0, 1, 2, 3)) + (y**2).sum((0, 1, 2, 3)))
    batch = segmentation.soft_dice(*split, over_batch=True)
    np.testing.assert_allclose(batch, np.tile(pooled, (3, 1)), rtol=1e-4)


def test_weighted_mean_by_hand() -> None:
    values = jnp.array([1.0, 2.0, 6.0]).reshape(1, 1, 1, 3)
    weights = jnp.array([1.0, 1.0, 2.0]).reshape(1, 1, 1, 3)
    assert segmentation.weighted_mean(values, None)[0] == 3
    assert segmentation.weighted_mean(values, weights)[0] == 15 / 4


def test_cross_entropy_by_hand() -> None:
    logits = jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4])).reshape(1, 1, 1, 1, 4) + 7
    log_p = channels.predict(channels.split(logits), glioma.SOFTMAX).log_p
    hard = channels.split(jnp.array([0.0, 0, 0, 1]).reshape(logits.shape))
    soft = channels.split(jnp.array([0.5, 0, 0, 0.5]).reshape(logits.shape))
    assert segmentation.cross_entropy(log_p, hard).item() == pytest.approx(-np.log(0.4))
    expected = -0.5 * np.log(0.1) - 0.5 * np.log(0.4)
    assert segmentation.cross_entropy(log_p, soft).item() == pytest.approx(expected)


def binary_cross_entropy(logits: jax.Array, y: jax.Array, head: heads.Head) -> jax.Array:
    prediction = channels.predict(channels.split(logits), head)
    return segmentation.binary_cross_entropy(prediction, channels.split(y))


@glioma.each_head
def test_binary_cross_entropy_against_numpy(head: heads.Head) -> None:
    logits = random_logits(len(head.outputs))
    y = np.random.default_rng(2).random(logits.shape)
    exact = np.exp(np.asarray(logits, np.float64))
    p = exact / exact.sum(-1, keepdims=True) if head.kind == "softmax" else exact / (1 + exact)
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(-1)
    actual = binary_cross_entropy(logits, jnp.asarray(y, jnp.float32), head)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_log_of_one_minus_p_is_exact_where_p_rounds_to_one() -> None:
    # 1 - p_0 = 3 exp(-50) / (1 + 3 exp(-50)): 0 in float32 if subtracted.
    logits = jnp.array([50.0, 0, 0, 0]).reshape(1, 1, 1, 1, 4)
    y = jnp.zeros_like(logits)
    # channels: -log q_0 = 50 - log 3, the others' q are 1 to rounding
    actual = binary_cross_entropy(logits, y, glioma.SOFTMAX).item()
    assert actual == pytest.approx((50 - np.log(3)) / 4, rel=1e-6)
    region = jnp.full((1, 1, 1, 1, 3), 50.0)
    actual = binary_cross_entropy(region, jnp.zeros_like(region), glioma.REGIONS).item()
    assert actual == pytest.approx(50, rel=1e-6)


@glioma.each_head
def test_prediction_and_its_gradients_equal_jax(head: heads.Head) -> None:
    logits = random_logits(4)
    weights = [random_logits(4, seed) for seed in (1, 2, 3)]

    def plain(logits: jax.Array) -> jax.Array:
        p = head.probabilities(logits)
        values = (p, jnp.log(p), jnp.log1p(-p))
        return sum((w * v).sum() for w, v in zip(weights, values, strict=True))

    def ours(logits: jax.Array) -> jax.Array:
        values = [jnp.stack(v, axis=-1) for v in channels.predict(channels.split(logits), head)]
        return sum((w * v).sum() for w, v in zip(weights, values, strict=True))

    for function in (ours, jax.jit(ours)):
        actual, gradient = jax.value_and_grad(function)(logits)
        expected, expected_gradient = jax.value_and_grad(plain)(logits)
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-5)


@glioma.each_head
@pytest.mark.parametrize("form", ["dice_ce", "dice_bce"])
@pytest.mark.parametrize("size", [0.0, 100.0, 1e4])
def test_extreme_logits_have_finite_values_and_gradients(
    head: heads.Head, form: str, size: float
) -> None:
    y = glioma.targets(head, SHAPE)
    logits = size * jnp.sign(random_logits(y.shape[-1]))

    def loss(logits: jax.Array) -> jax.Array:
        terms = supervised_terms(logits, y, head=head, form=form)
        return sum(terms.values()).sum()

    value, gradient = jax.value_and_grad(loss)(logits)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_supervised_terms_by_name_and_value() -> None:
    logits, y = random_logits(4), glioma.targets(glioma.SOFTMAX, SHAPE)
    p = np.asarray(glioma.SOFTMAX.probabilities(logits))
    flat_p, flat_y = p.reshape(2, -1, 4), np.asarray(y).reshape(2, -1, 4)
    dice = (2 * (flat_p * flat_y).sum(1) + SMOOTH) / ((flat_p**2 + flat_y**2).sum(1) + SMOOTH)
    terms = supervised_terms(logits, y, head=glioma.SOFTMAX)
    assert set(terms) == {"gt_dice", "gt_ce"}
    np.testing.assert_allclose(terms["gt_dice"], 1 - dice[:, 1:].mean(1), rtol=1e-4)
    entropy = -(flat_y * np.log(flat_p)).sum(-1).mean(1)
    np.testing.assert_allclose(terms["gt_ce"], entropy, rtol=1e-4)
    # KD-Net's form counts the background too.
    terms = supervised_terms(logits, y, head=glioma.SOFTMAX, form="dice_bce")
    assert set(terms) == {"gt_dice", "gt_bce"}
    np.testing.assert_allclose(terms["gt_dice"], 1 - dice.mean(1), rtol=1e-4)


@pytest.mark.parametrize("form", ["dice_ce", "dice_bce"])
def test_a_regions_head_has_binary_entropies_in_both_forms(form: str) -> None:
    logits, y = random_logits(3), glioma.targets(glioma.REGIONS, SHAPE)
    terms = supervised_terms(logits, y, head=glioma.REGIONS, form=form)
    assert set(terms) == {"gt_dice", "gt_bce"}
    expected = binary_cross_entropy(logits, y, glioma.REGIONS).mean((1, 2, 3))
    np.testing.assert_allclose(terms["gt_bce"], expected, rtol=1e-6)


@glioma.each_head
def test_a_sure_right_answer_costs_nothing_and_a_wrong_one_much(head: heads.Head) -> None:
    y = glioma.targets(head, SHAPE)
    right = supervised_terms(40 * (2 * y - 1), y, head=head)
    wrong = supervised_terms(-40 * (2 * y - 1), y, head=head)
    np.testing.assert_allclose(sum(right.values()), 0, atol=1e-5)
    assert (sum(wrong.values()) > 10).all()


def test_deep_supervision_halves_the_weight_at_each_level() -> None:
    labels = jnp.asarray(np.random.default_rng(0).integers(0, 4, (2, 4, 4, 8)))
    y = glioma.SOFTMAX.targets(labels)
    rng = np.random.default_rng(1)
    coarse = {
        level: jnp.asarray(rng.normal(size=(2, *(s // 2**level for s in (4, 4, 8)), 4)))
        for level in (1, 2)
    }
    features = {f"logits_{level}": value for level, value in coarse.items()}
    actual = deep_supervision_loss(
        features | {"bottleneck": y}, y, head=glioma.SOFTMAX, form="dice_ce"
    )

    def loss(level: int) -> jax.Array:
        stride = 2**level
        centre = slice(stride // 2, None, stride)
        nearest = glioma.SOFTMAX.targets(labels[:, centre, centre, centre])
        terms = supervised_terms(coarse[level], nearest, head=glioma.SOFTMAX)
        return sum(terms.values())

    np.testing.assert_allclose(actual, loss(1) / 2 + loss(2) / 4, rtol=1e-5)


def deep_supervision_loss_of_sure_logits(y: jax.Array, level: int, target: jax.Array) -> float:
    """The loss of logits that are sure of `target` at a level: 0 if that is the level's target."""
    features = {f"logits_{level}": 40 * (2 * target - 1)}
    loss = deep_supervision_loss(features, y, head=glioma.SOFTMAX, form="dice_ce")
    return float(loss[0])


@pytest.mark.parametrize(
    ("level", "voxels"), [(1, [1, 3, 5, 7, 9, 11, 13, 15]), (2, [2, 6, 10, 14]), (3, [4, 12])]
)
def test_deep_supervision_looks_at_the_centre_of_each_block(level: int, voxels: list[int]) -> None:
    labels = jnp.asarray(np.random.default_rng(0).integers(0, 4, (1, 16, 16, 16)))
    y = glioma.SOFTMAX.targets(labels)
    centres = y[:, voxels][:, :, voxels][:, :, :, voxels]
    assert deep_supervision_loss_of_sure_logits(y, level, centres) == pytest.approx(0, abs=1e-4)
    stride = 2**level
    corners = y[:, ::stride, ::stride, ::stride]
    assert deep_supervision_loss_of_sure_logits(y, level, corners) > 1


@pytest.mark.parametrize("strides", [(2, 2, 2), (8, 4, 2), (1, 2, 4), (3, 1, 6)])
def test_deep_supervision_s_targets_are_pytorch_s_nearest_exact(strides: tuple[int, ...]) -> None:
    """Strides that differ between the axes, as in nnU-Net's plans for thick slices, too."""
    torch = pytest.importorskip("torch")
    labels = np.random.default_rng(0).integers(0, 4, (1, 24, 16, 24))
    shape = [size // stride for size, stride in zip(labels.shape[1:], strides, strict=True)]
    coarse = torch.nn.functional.interpolate(
        torch.from_numpy(labels[None].astype(np.float32)), shape, mode="nearest-exact"
    )[0]
    y = glioma.SOFTMAX.targets(jnp.asarray(labels))
    target = glioma.SOFTMAX.targets(jnp.asarray(coarse.numpy().astype(int)))
    assert deep_supervision_loss_of_sure_logits(y, 1, target) == pytest.approx(0, abs=1e-4)


def test_deep_supervision_of_a_network_without_it_is_none() -> None:
    y = glioma.targets(glioma.SOFTMAX, SHAPE)
    features = {"bottleneck": y, "decoder_0": y}
    loss = deep_supervision_loss(features, y, head=glioma.SOFTMAX, form="dice_ce")
    assert loss is None


# -------------------------------------------------------------------------- voxels without a label


def heart(kind: heads.Kind) -> heads.Head:
    """Four classes or three regions, and 4 for what nobody labelled."""
    return heads.Head(made_up_tasks.HEART, kind)


def half_known() -> np.ndarray:
    """Two samples of which the first four slices are labelled."""
    labels = np.random.default_rng(3).integers(0, 4, (2, 8, 4, 4))
    labels[:, 4:] = made_up_tasks.HEART.ignore
    return labels


EACH_FORM = [
    (kind, form, over_batch)
    for kind in ("softmax", "regions")
    for form in ("dice_ce", "dice_bce")
    for over_batch in (False, True)
]


@pytest.mark.parametrize(("kind", "form", "over_batch"), EACH_FORM)
def test_what_is_unknown_is_in_no_sum(kind: heads.Kind, form: str, over_batch: bool) -> None:
    head, labels = heart(kind), jnp.asarray(half_known())
    shape = (*labels.shape, len(head.outputs))
    logits = jnp.asarray(np.random.default_rng(4).normal(size=shape) * 2, jnp.float32)
    chosen = {"head": head, "form": form, "over_batch": over_batch}
    y = head.targets(labels)
    part = supervised_terms(logits[:, :4], y[:, :4], **chosen)

    def loss(logits: jax.Array) -> jax.Array:
        terms = supervised_terms(logits, y, known=head.known(labels), **chosen)
        return sum(terms.values()).sum()

    for unknown in (logits, logits.at[:, 4:].multiply(-1e4)):
        terms = supervised_terms(unknown, y, known=head.known(labels), **chosen)
        assert terms.keys() == part.keys()
        for name, value in part.items():
            np.testing.assert_allclose(terms[name], value, rtol=1e-5)
        gradient = jax.grad(loss)(unknown)
        assert gradient[:, :4].any()
        assert not gradient[:, 4:].any()


@pytest.mark.parametrize(("kind", "form", "over_batch"), EACH_FORM)
def test_a_patch_that_nobody_labelled_costs_nothing(
    kind: heads.Kind, form: str, over_batch: bool
) -> None:
    head, labels = heart(kind), jnp.full(SHAPE, made_up_tasks.HEART.ignore)

    def terms(logits: jax.Array) -> dict[str, jax.Array]:
        return supervised_terms(
            logits,
            head.targets(labels),
            head=head,
            known=head.known(labels),
            form=form,
            over_batch=over_batch,
        )

    for size in (1.0, 1e4):
        logits = size * random_logits(len(head.outputs))
        assert all((value == 0).all() for value in terms(logits).values())
        gradient = jax.grad(lambda logits: sum(terms(logits).values()).sum())(logits)
        assert not gradient.any()


@pytest.mark.parametrize("kind", ["softmax", "regions"])
def test_deep_supervision_looks_at_known_voxels_alone(kind: heads.Kind) -> None:
    head, labels = heart(kind), jnp.asarray(half_known())
    rng = np.random.default_rng(1)
    features = {
        f"logits_{level}": jnp.asarray(
            rng.normal(size=(2, *(size // 2**level for size in (8, 4, 4)), len(head.outputs)))
        )
        for level in (1, 2)
    }

    def loss(labels: jax.Array, features: dict[str, jax.Array]) -> jax.Array:
        return deep_supervision_loss(
            features, head.targets(labels), head=head, known=head.known(labels), form="dice_ce"
        )

    # Half of the slices of each level are of the labelled half.
    part = {name: value[:, : value.shape[1] // 2] for name, value in features.items()}
    np.testing.assert_allclose(loss(labels, features), loss(labels[:, :4], part), rtol=1e-5)
    nothing = jnp.full_like(labels, made_up_tasks.HEART.ignore)
    np.testing.assert_array_equal(loss(nothing, features), 0)
