"""The loss of a run: which terms, how they are weighted, what they share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdnet_jax.losses import distillation, objective, output, segmentation
from kdnet_jax.models import heads
from tests.helpers import glioma

KD = distillation.DistillationOptions
# With a weight for each term that has one of its own.
EVERY = KD(kd_form="kl", **{f"{name}_weight": 1.0 for name in distillation.OF_OWN_WEIGHT})
SHAPE = (2, 4, 4, 4)


def make_output(head: heads.Head, seed: int) -> output.Output:
    """Of a network with two coarser levels and a bottleneck."""
    rng = np.random.default_rng(seed)

    def array(edge: int, channels: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(2, edge, edge, edge, channels)), jnp.float32)

    k = len(head.outputs)
    features = {"bottleneck": array(1, 5), "logits_2": array(1, k), "logits_1": array(2, k)}
    return output.Output(array(4, k), features | {"decoder_0": array(4, 3)}, head)


def random_labels() -> jax.Array:
    return jnp.asarray(np.random.default_rng(9).integers(0, 4, SHAPE))


@glioma.each_head
def test_maps_are_the_output_of_a_network_with_these_probabilities(head: heads.Head) -> None:
    network = make_output(head, 4)
    p = head.probabilities(network.logits)
    found = output.of_maps(p[..., head.foreground], head)
    for temperature in (1.0, 5.0):
        for ours, theirs in zip(
            found.softened(temperature).p, network.softened(temperature).p, strict=True
        ):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
    # Outside of a case all is 0: background, or no region.
    outside = output.of_maps(jnp.zeros((1, 1, 1, 1, 3)), head)
    background = [1.0, 0.0, 0.0, 0.0] if head.kind == "softmax" else [0.0] * 3
    found = head.probabilities(outside.logits)[0, 0, 0, 0]
    np.testing.assert_allclose(found, background, atol=1e-4)


@glioma.each_head
@pytest.mark.parametrize("form", ["dice_ce", "dice_bce"])
@pytest.mark.parametrize("kd", [None, KD(), KD(latent_weight=0.0, kd_weight=0.0)])
def test_the_terms_are_those_of_the_options(head: heads.Head, form: str, kd: KD | None) -> None:
    loss = objective.of_options(head, segmentation.LossOptions(form), kd)
    y = head.targets(random_labels())
    terms = loss.terms(make_output(head, 0), make_output(head, 1), y, None)
    softmax_entropy = form == "dice_ce" and head.kind == "softmax"
    expected = {"gt_dice", "gt_ce" if softmax_entropy else "gt_bce", "gt_coarse"}
    if kd:
        expected |= {"kd_dice", "kd_bce"} if kd.kd_weight else set()
        expected |= {"kl"} if kd.latent_weight else set()
    assert terms.keys() == expected
    assert {value.shape for value in terms.values()} == {(2,)}
    # None is left out of the sum.
    weighted = {role for role, weight in loss.weights.items() if weight}
    assert {objective.TERMS[name].role for name in terms} == weighted


def test_every_registered_term_is_chosen_by_some_options() -> None:
    outputs = [make_output(glioma.SOFTMAX, seed) for seed in (0, 1)]
    y = glioma.SOFTMAX.targets(random_labels())
    chosen: set[str] = set()
    for form, kd in (
        ("dice_ce", EVERY),
        ("dice_bce", KD()),
        *(("dice_ce", KD(unlabelled="soft", kd_form=each)) for each in ("dice_bce", "kl", "mse")),
    ):
        loss = objective.of_options(
            glioma.SOFTMAX, segmentation.LossOptions(form), kd, unlabelled=True
        )
        chosen |= loss.terms(*outputs, y, None, jnp.array([1.0, 0.0])).keys()
    chosen |= objective.of_options(
        glioma.SOFTMAX, segmentation.LossOptions("reconstruction")
    ).functions.keys()
    assert chosen == objective.TERMS.keys()


def test_the_total_is_the_paper_s_formula() -> None:
    terms = {
        "kd_dice": jnp.array([1.0, 0.0]),
        "kd_bce": jnp.array([3.0, 0.0]),
        "gt_dice": jnp.array([5.0, 8.0]),
        "gt_ce": jnp.array([7.0, 0.0]),
        "gt_coarse": jnp.array([0.0, 4.0]),
        "kl": jnp.array([0.5, 0.0]),
    }
    # 0.75 (1 + 3) + 0.25 (5 + 7) + 10 x 0.5, and 0.25 (8 + 4)
    loss = objective.of_options(glioma.SOFTMAX, kd=KD())
    np.testing.assert_allclose(loss.total(terms), [11.0, 3.0])
    loss = objective.of_options(glioma.SOFTMAX, kd=KD(kd_weight=0.5, latent_weight=0.0))
    np.testing.assert_allclose(loss.total(terms), [8.0, 6.0])
    # Without a teacher the reference's terms have weight 1.
    del terms["kd_dice"], terms["kd_bce"], terms["kl"]
    np.testing.assert_allclose(objective.of_options(glioma.SOFTMAX).total(terms), [12.0, 12.0])


def test_terms_share_what_they_read_of_an_output() -> None:
    out = make_output(glioma.SOFTMAX, 0)
    assert out.prediction is out.prediction
    assert out.softened(5.0) is out.softened(5.0)
    for temperature in (1.0, 5.0):
        for got, expected in zip(
            out.softened(temperature).p,
            jnp.moveaxis(glioma.SOFTMAX.probabilities(out.logits, temperature), -1, 0),
            strict=True,
        ):
            np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert list(out.coarse) == [1, 2]


@glioma.each_head
@pytest.mark.parametrize("scale", [0.0, 1e3])
def test_every_term_and_its_gradient_are_finite(head: heads.Head, scale: float) -> None:
    # Nothing is known of the second sample: 9 is no class.
    labels = random_labels().at[1].set(9)
    y, where = head.targets(labels), (labels < 9).astype(jnp.float32)
    student, teacher = make_output(head, 0), make_output(head, 1)
    loss = objective.of_options(head, kd=EVERY)

    def value(values: tuple[jax.Array, dict[str, jax.Array]]) -> tuple[jax.Array, objective.Values]:
        terms = loss.terms(output.Output(*values, head), teacher, y, where)
        return loss.total(terms).sum(), terms

    values = jax.tree.map(lambda x: scale * x, (student.logits, dict(student.features)))
    gradient, terms = jax.jit(jax.grad(value, has_aux=True))(values)
    assert set(distillation.OF_OWN_WEIGHT) < terms.keys()
    assert {value.shape for value in terms.values()} == {(2,)}
    for each in jax.tree.leaves((terms, gradient)):
        assert np.isfinite(each).all()
    # What compares with the reference has nothing to say where there is none.
    for name in ("prototype", "affinity", "masked"):
        assert terms[name][1] == 0
