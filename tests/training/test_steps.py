"""The train step: a frozen teacher, a student on its own sequence, and randomness by step."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdnet_jax.augment import augment, masking
from kdnet_jax.losses import distillation, objective, segmentation
from kdnet_jax.models import heads, networks, unet
from kdnet_jax.parallel import sharding
from kdnet_jax.training import optimizers, steps
from tests.helpers import glioma, made_up_tasks

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = unet.UNetConfig(widths=(2, 3), blocks=1, last_blocks=1)
NO_AUGMENT = augment.AugmentOptions(flip_axes="", scale=0.0, shift=0.0)
STUDENT_CHANNEL = 1
ROOT = jax.random.key(5)


def network(channels: tuple[int, ...]) -> steps.Network:
    return steps.Network(unet.UNet(CONFIG).apply, glioma.SOFTMAX, channels)


def make_batch(seed: int = 0) -> steps.Batch:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, (2, 4, 4, 4)).astype(np.uint8)
    image = rng.normal(size=(2, 4, 4, 4, 2)) + label[..., None]
    return {"image": jnp.asarray(image, jnp.float32), "label": jnp.asarray(label)}


def optimizer() -> Any:
    chosen = optimizers.OptimizerOptions(learning_rate=0.02, schedule="constant")
    return optimizers.make_optimizer(chosen, 100, 10)


@functools.cache
def initial(modalities: int) -> Any:
    return jax.device_get(networks.init_params(CONFIG, modalities, jax.random.key(modalities)))


def fresh_state() -> steps.TrainState:
    # A copy each time, since a step donates its state.
    return steps.init_state(jax.tree.map(jnp.array, initial(1)), optimizer())


def fresh_teacher() -> Any:
    return jax.tree.map(jnp.array, initial(2))


def step_options(augment_options: augment.AugmentOptions) -> dict[str, Any]:
    return {
        "student": network((STUDENT_CHANNEL,)),
        "teacher": None,
        "loss": objective.of_options(glioma.SOFTMAX),
        "optimizer": optimizer(),
        "plan": steps.Plan(augment_options),
    }


def distillation_options() -> dict[str, Any]:
    return step_options(NO_AUGMENT) | {
        "teacher": network((0, 1)),
        "loss": objective.of_options(glioma.SOFTMAX, kd=distillation.DistillationOptions()),
    }


def supervised(options: dict[str, Any]) -> Callable[..., Any]:
    """The step without a teacher as a function of (state, batch, root)."""
    step = steps.jit_step(sharding.make_mesh(), **options)
    return lambda state, batch, root: step(state, (), batch, root)


@pytest.fixture(scope="module")
def distil() -> Callable[..., Any]:
    return steps.jit_step(sharding.make_mesh(), **distillation_options())


@pytest.fixture(scope="module")
def supervise() -> Callable[..., Any]:
    return supervised(step_options(augment.AugmentOptions()))


@pytest.fixture(scope="module")
def supervise_as_is() -> Callable[..., Any]:
    return supervised(step_options(NO_AUGMENT))


def equal(left: Any, right: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_the_teacher_is_bit_identical_after_many_steps_and_the_loss_falls(
    distil: Callable[..., Any],
) -> None:
    state, teacher, batch = fresh_state(), fresh_teacher(), make_batch()
    losses = []
    for _ in range(20):
        state, metrics = distil(state, teacher, batch, ROOT)
        losses.append(float(metrics["loss"]))
    equal(teacher, initial(2))
    assert losses[-1] < 0.9 * losses[0]
    assert int(state.step) == 20
    # The student did learn: none of its kernels is what it was.
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, initial(1))
    kernels = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(changed)
        if "kernel" in jax.tree_util.keystr(path)
    ]
    assert kernels
    assert all(kernels)


def test_the_state_holds_the_student_only_and_is_donated(distil: Callable[..., Any]) -> None:
    state, teacher, batch = fresh_state(), fresh_teacher(), make_batch()
    new, _ = distil(state, teacher, batch, ROOT)
    expected = fresh_state()
    assert jax.tree.structure(new) == jax.tree.structure(expected)
    assert [x.shape for x in jax.tree.leaves(new)] == [x.shape for x in jax.tree.leaves(expected)]
    # The teacher's first kernel sees two sequences; no leaf of the state does.
    teacher_shape = teacher["params"]["encoder_0_0"]["Conv_0"]["kernel"].shape
    assert teacher_shape == (3, 3, 3, 2, 2)
    assert new.params["params"]["encoder_0_0"]["Conv_0"]["kernel"].shape == (3, 3, 3, 1, 2)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((teacher, batch)))


def test_the_teacher_has_no_gradient_though_the_loss_depends_on_it() -> None:
    batch, state = make_batch(), fresh_state()

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(teacher: Any) -> tuple[Any, Any]:
        new, metrics = steps.train_step(state, teacher, batch, ROOT, **distillation_options())
        # Neither through the loss nor through the student's new parameters.
        moved = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(new.params))
        return metrics["loss"] + moved, metrics

    (_, metrics), gradient = loss(fresh_teacher())
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradient))
    (_, other), _ = loss(jax.tree.map(lambda leaf: 2 * leaf + 0.1, fresh_teacher()))
    for name in ("kd_dice", "kd_bce", "kl"):
        assert metrics[name] != other[name]


def test_the_metrics_are_the_terms_of_the_formula(distil: Callable[..., Any]) -> None:
    _, metrics = distil(fresh_state(), fresh_teacher(), make_batch(), ROOT)
    names = {"loss", "gt_dice", "gt_ce", "kd_dice", "kd_bce", "kl", "gradient_norm"}
    assert set(metrics) == names
    kd, gt = metrics["kd_dice"] + metrics["kd_bce"], metrics["gt_dice"] + metrics["gt_ce"]
    expected = 0.75 * kd + 0.25 * gt + 10 * metrics["kl"]
    assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_cached_probabilities_teach_as_their_network_does() -> None:
    kd = distillation.DistillationOptions(latent_weight=0.0)
    options = distillation_options() | {"loss": objective.of_options(glioma.SOFTMAX, kd=kd)}
    batch, teacher = make_batch(), fresh_teacher()
    online = steps.jit_step(sharding.make_mesh(), **options)
    _, of_network = online(fresh_state(), teacher, batch, ROOT)
    logits, _ = unet.UNet(CONFIG).apply(teacher, batch["image"])
    cached = steps.jit_step(
        sharding.make_mesh(), **options | {"teacher": steps.CachedTeacher(glioma.SOFTMAX)}
    )
    maps = jax.nn.softmax(logits)[..., 1:]
    _, metrics = cached(fresh_state(), (), {**batch, "teacher": maps}, ROOT)
    assert set(metrics) == set(of_network)
    for name, value in of_network.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
    _, other = cached(fresh_state(), (), {**batch, "teacher": maps[::-1]}, ROOT)
    assert other["kd_dice"] != metrics["kd_dice"]


def test_students_in_one_step_get_what_each_gets_alone(distil: Callable[..., Any]) -> None:
    traced = []

    def teach(params: Any, x: jax.Array) -> Any:
        traced.append(None)
        return unet.UNet(CONFIG).apply(params, x)

    options = distillation_options() | {"teacher": network((0, 1))._replace(apply=teach)}
    students = (network((STUDENT_CHANNEL,)), network((0,)))

    def trained(step: Callable[..., Any], state: Any) -> Any:
        for seed in range(3):
            state, metrics = step(state, fresh_teacher(), make_batch(seed), ROOT)
        return state, metrics

    joint, other = (
        steps.jit_step(sharding.make_mesh(), **options | {"student": each})
        for each in (students, students[1])
    )
    states, metrics = trained(joint, (fresh_state(), fresh_state()))
    evaluations = len(traced)
    for place, alone in enumerate((distil, other)):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
            (states[place], metrics[place]),
            trained(alone, fresh_state()),
        )
    # Of one teacher each.
    assert len(traced) == 2 * evaluations
    assert metrics[0]["loss"] != metrics[1]["loss"]


def test_dropped_sequences_are_those_of_the_step() -> None:
    options = step_options(NO_AUGMENT) | {"student": network((0, 1))}
    dropping = options | {"plan": steps.Plan(NO_AUGMENT, modality_dropout=0.9)}
    batch = make_batch()
    key = jax.random.fold_in(ROOT, 0)
    image = augment.drop_sequences(key, batch["image"], (0, 1), 0.9)
    assert (np.asarray(image).any(axis=(1, 2, 3)).sum(axis=1) == 1).all()
    found, expected = (
        supervised(chosen)(steps.init_state(fresh_teacher(), optimizer()), given, ROOT)[1]
        for chosen, given in ((dropping, batch), (options, {**batch, "image": image}))
    )
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_a_sequence_that_a_case_lacks_is_to_the_teacher_as_a_dropped_one(
    distil: Callable[..., Any],
) -> None:
    batch = make_batch()
    lacking = {**batch, "image": batch["image"].at[0, ..., 0].set(0.0)}
    # Of these channels no voxel is background: whatever is drawn would fill a gap.
    drawn = augment.AugmentOptions(flip_axes="d", shift=0.5, zero_is_background=(False, False))
    key = jax.random.fold_in(ROOT, 0)
    image, label = augment.augment(key, lacking["image"], lacking["label"], drawn)
    assert image[0, ..., 0].all()
    gaps = {"image": image.at[0, ..., 0].set(0.0), "label": label}
    _, expected = distil(fresh_state(), fresh_teacher(), gaps, ROOT)
    options = distillation_options() | {"plan": steps.Plan(drawn, incomplete=True)}
    step = steps.jit_step(sharding.make_mesh(), **options)
    _, found = step(fresh_state(), fresh_teacher(), lacking, ROOT)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
    _, filled = distil(fresh_state(), fresh_teacher(), {"image": image, "label": label}, ROOT)
    assert abs(filled["kl"] - expected["kl"]) > 1e-4 * expected["kl"]


def test_the_student_sees_its_own_sequence_only(
    distil: Callable[..., Any], supervise_as_is: Callable[..., Any]
) -> None:
    batch = make_batch()
    others = dict(batch, image=batch["image"].at[..., 1 - STUDENT_CHANNEL].add(3.0))
    own = dict(batch, image=batch["image"].at[..., STUDENT_CHANNEL].multiply(-1.0))
    _, metrics = distil(fresh_state(), fresh_teacher(), batch, ROOT)
    _, with_others = distil(fresh_state(), fresh_teacher(), others, ROOT)
    _, with_own = distil(fresh_state(), fresh_teacher(), own, ROOT)
    for name in ("gt_dice", "gt_ce"):
        assert metrics[name] == with_others[name]
        assert metrics[name] != with_own[name]
    # The teacher does see the others.
    assert metrics["kd_bce"] != with_others["kd_bce"]
    # The whole update of a one-sequence network is the same, to the bit.
    equal(supervise_as_is(fresh_state(), batch, ROOT), supervise_as_is(fresh_state(), others, ROOT))


def test_a_step_s_draws_are_those_of_its_number(supervise: Callable[..., Any]) -> None:
    batch = make_batch()
    first, again = (supervise(fresh_state(), batch, ROOT) for _ in range(2))
    equal(first, again)
    later = fresh_state()._replace(step=jnp.asarray(1, jnp.int32))
    _, other = supervise(later, batch, ROOT)
    _, other_root = supervise(fresh_state(), batch, jax.random.key(6))
    assert first[1]["loss"] != other["loss"]
    assert first[1]["loss"] != other_root["loss"]


def test_the_draws_are_the_root_folded_with_the_step(
    supervise: Callable[..., Any], supervise_as_is: Callable[..., Any]
) -> None:
    batch, state = make_batch(), fresh_state()._replace(step=jnp.asarray(7, jnp.int32))
    image, label = augment.augment(
        jax.random.fold_in(ROOT, 7), batch["image"], batch["label"], augment.AugmentOptions()
    )
    _, expected = supervise_as_is(fresh_state(), {"image": image, "label": label}, ROOT)
    _, actual = supervise(state, batch, ROOT)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-4, err_msg=name)


def test_mixtures_and_a_projector_that_is_trained(supervise_as_is: Callable[..., Any]) -> None:
    kd = distillation.DistillationOptions(latent_weight=0.0, hint_weight=1.0)
    options = distillation_options() | {
        "loss": objective.of_options(glioma.SOFTMAX, kd=kd),
        "plan": steps.Plan(NO_AUGMENT, mixup=8.0),
    }
    params = jax.tree.map(jnp.array, initial(1))
    with_projector = {**params, steps.PROJECTOR: {"kernel": jnp.eye(3)}}
    state, batch = steps.init_state(with_projector, optimizer()), make_batch()
    step = steps.jit_step(sharding.make_mesh(), **options)
    new, metrics = step(state, fresh_teacher(), batch, ROOT)
    assert (new.params[steps.PROJECTOR]["kernel"] != jnp.eye(3)).all()
    # The student sees the mixture; its cross-entropy is that of both references, by their shares.
    share = jax.random.beta(jax.random.fold_in(jax.random.fold_in(ROOT, 0), 1), 8.0, 8.0)
    image = share * batch["image"] + (1 - share) * batch["image"][::-1]
    both = [
        supervise_as_is(fresh_state(), {"image": image, "label": label}, ROOT)[1]["gt_ce"]
        for label in (batch["label"], batch["label"][::-1])
    ]
    expected = share * both[0] + (1 - share) * both[1]
    assert 0.05 < share < 0.95
    assert float(metrics["gt_ce"]) == pytest.approx(float(expected), rel=1e-5)
    assert metrics["hint"] > 0


def test_a_network_that_reconstructs_reads_no_reference() -> None:
    cubes = masking.Cubes(0.5, 2)
    options = step_options(NO_AUGMENT) | {
        "loss": objective.of_options(glioma.SOFTMAX, segmentation.LossOptions("reconstruction")),
        "plan": steps.Plan(NO_AUGMENT, accumulate=2, hidden=cubes),
    }
    step, batch, kernel = supervised(options), make_batch(), jnp.array([[1.0], [-1.0]])
    params = {**jax.tree.map(jnp.array, initial(1)), steps.PROJECTOR: {"kernel": kernel}}
    states = []
    for label in (batch["label"], 3 - batch["label"]):
        state = steps.init_state(jax.tree.map(jnp.copy, params), optimizer())
        states.append(step(state, {**batch, "label": label}, ROOT))
    equal(*states)
    new, metrics = states[0]
    # By hand: the network sees its sequence without the cubes.
    hidden = cubes.draw(jax.random.fold_in(jax.random.fold_in(ROOT, 0), 7), 2, (4, 4, 4))
    image = batch["image"][..., STUDENT_CHANNEL]
    _, found = unet.UNet(CONFIG).apply(initial(1), (image * (1 - hidden))[..., None])
    answer = found["decoder_0"][..., 0] - found["decoder_0"][..., 1]
    errors = hidden * (answer - image) ** 2
    expected = np.mean([each.sum() / 32 for each in errors])
    assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-4)
    assert (new.params[steps.PROJECTOR]["kernel"] != kernel).all()
    equal(new.params["params"]["head"], initial(1)["params"]["head"])


def test_a_resumed_run_is_the_uninterrupted_one(supervise: Callable[..., Any]) -> None:
    batches = [make_batch(seed) for seed in range(4)]
    state = fresh_state()
    for batch in batches:
        state, _ = supervise(state, batch, ROOT)
    half = fresh_state()
    for batch in batches[:2]:
        half, _ = supervise(half, batch, ROOT)
    half = jax.tree.map(jnp.asarray, jax.device_get(half))
    for batch in batches[2:]:
        half, _ = supervise(half, batch, ROOT)
    equal(state, half)


def test_supervised_steps_lower_the_loss(supervise_as_is: Callable[..., Any]) -> None:
    state, batch, losses = fresh_state(), make_batch(), []
    for _ in range(20):
        state, metrics = supervise_as_is(state, batch, ROOT)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.9 * losses[0]
    assert set(metrics) == {"loss", "gt_dice", "gt_ce", "gradient_norm"}


def test_a_batch_that_nobody_labelled_teaches_nothing() -> None:
    head = heads.Head(made_up_tasks.HEART)
    options = step_options(NO_AUGMENT) | {
        "student": network((STUDENT_CHANNEL,))._replace(head=head)
    }
    step = supervised(options)
    batch = make_batch()
    for value, teaches in ((made_up_tasks.HEART.ignore, False), (1, True)):
        labelled = dict(batch, label=jnp.full_like(batch["label"], value))
        _, metrics = step(fresh_state(), labelled, ROOT)
        assert bool(metrics["loss"]) == bool(metrics["gradient_norm"]) == teaches
    first = batch["label"].at[:, 2:].set(made_up_tasks.HEART.ignore)
    _, metrics = step(fresh_state(), dict(batch, label=first), ROOT)
    assert np.isfinite(metrics["loss"])
    assert metrics["gradient_norm"] > 0


def test_the_average_of_the_weights_by_hand_and_without_a_broken_batch() -> None:
    # Decay min(0.15, (1 + t) / (10 + t)): 0.1 at the first step, 0.15 after it.
    plan = steps.Plan(NO_AUGMENT, skip_nonfinite=True, average=0.15)
    step = supervised(step_options(NO_AUGMENT) | {"plan": plan})
    weights = jax.tree.map(jnp.array, initial(1))
    state = steps.init_state(weights, optimizer(), averaged=True)
    first, _ = step(state, make_batch(), ROOT)
    seen = jax.device_get(first)
    expected = jax.tree.map(lambda old, new: 0.1 * old + 0.9 * new, initial(1), seen.params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-7), seen.used, expected)

    broken = make_batch() | {"image": jnp.full((2, 4, 4, 4, 2), jnp.nan)}
    second, _ = step(first, broken, ROOT)
    assert int(second.step) == 2
    equal(jax.device_get(second)._replace(step=seen.step), seen)

    third = jax.device_get(step(second, make_batch(1), ROOT)[0])
    expected = jax.tree.map(lambda old, new: 0.15 * old + 0.85 * new, seen.average, third.params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-7), third.used, expected)


def test_without_an_average_the_state_is_as_ever() -> None:
    state = fresh_state()
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(tuple(state)[:3]))
    assert state.used is state.params
