"""Pure train steps, and their jitting over a mesh.

A step is a function of (state, [teacher parameters,] batch, root key) to (state, metrics). The
root key is never advanced: the step's own randomness is `fold_in(root, step)`, so a resumed run
draws what an uninterrupted one draws.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Integer, UInt8

from kdnet_jax import sharding
from kdnet_jax.data import augment
from kdnet_jax.losses import distillation, segmentation
from kdnet_jax.models import heads

# (parameters, image "b d h w m") -> (logits "b d h w k", named features)
Apply = Callable[[Any, Array], tuple[Array, dict[str, Array]]]
Metrics = dict[str, Float[Array, ""]]


class Batch(TypedDict):
    """A batch of patches: all the modalities of the data, and the class of each voxel."""

    image: Float[Array, "b d h w m"]
    label: UInt8[Array, "b d h w"]


class TrainState(NamedTuple):
    """All that training changes."""

    step: Integer[Array, ""]
    params: Any
    opt_state: Any


class Network(NamedTuple):
    """A network as a step sees it.

    Attributes:
        apply: its function.
        head: what its output channels are.
        channels: positions of its input sequences among those of the batch.
    """

    apply: Apply
    head: heads.Head
    channels: tuple[int, ...]


class LossOptions(NamedTuple):
    """The loss against the reference; see `segmentation.supervised_terms`."""

    form: str = "dice_ce"
    over_batch: bool = False


def init_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def _select(image: Array, channels: tuple[int, ...]) -> Array:
    # A static slice per channel: a gather would not fuse.
    return jnp.concatenate([image[..., c : c + 1] for c in channels], axis=-1)


def _augmented(
    batch: Batch,
    state: TrainState,
    root: jax.Array,
    options: augment.AugmentOptions,
    patch: tuple[int, int, int] | None,
    mesh: Mesh | None,
) -> tuple[Array, Array]:
    key = jax.random.fold_in(root, state.step)
    return augment.augment(key, batch["image"], batch["label"], options, patch, mesh)


def _reference_loss(
    logits: Array, features: dict[str, Array], y: Array, head: heads.Head, options: LossOptions
) -> dict[str, Array]:
    chosen = {"head": head, **options._asdict()}
    terms = segmentation.supervised_terms(logits, y, **chosen)
    coarse = segmentation.deep_supervision_loss(features, y, **chosen)
    return terms if coarse is None else terms | {"gt_coarse": coarse}


def _update(
    state: TrainState, optimizer: optax.GradientTransformation, loss: Array, grads: Any
) -> TrainState:
    # `value` is read by the plateau schedule and ignored by the other transformations.
    updates, opt_state = optax.with_extra_args_support(optimizer).update(
        grads, state.opt_state, state.params, value=loss
    )
    return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)


def supervised_step(
    state: TrainState,
    batch: Batch,
    root: jax.Array,
    *,
    network: Network,
    optimizer: optax.GradientTransformation,
    loss_options: LossOptions,
    augment_options: augment.AugmentOptions,
    patch: tuple[int, int, int] | None = None,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics]:
    """One step of a teacher or a baseline: the network against the reference.

    Args:
        state: what training changes.
        batch: crops of `augment.source_patch` voxels.
        root: the key of the run.
        network: what is trained.
        optimizer: its rule.
        loss_options: of the loss against the reference.
        augment_options: what is drawn for each crop.
        patch: size of the patches that the network sees; None: of the crops.
        mesh: over which the batch is spread; None: one device.
    """
    image, label = _augmented(batch, state, root, augment_options, patch, mesh)
    y = heads.targets(label, network.head)

    def loss_fn(params: Any) -> tuple[Array, dict[str, Array]]:
        logits, features = network.apply(params, _select(image, network.channels))
        terms = _reference_loss(logits, features, y, network.head, loss_options)
        return sum(terms.values()).mean(), terms

    (loss, terms), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    return _update(state, optimizer, loss, grads), _metrics(loss, terms, grads)


def distillation_step(
    state: TrainState,
    teacher_params: Any,
    batch: Batch,
    root: jax.Array,
    *,
    network: Network,
    teacher: Network,
    optimizer: optax.GradientTransformation,
    loss_options: LossOptions,
    options: distillation.DistillationOptions,
    augment_options: augment.AugmentOptions,
    patch: tuple[int, int, int] | None = None,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics]:
    """One step of a student: the frozen teacher on all its sequences, the student on its own.

    The augmentation is drawn once, before the split, so both see the same patch. The teacher's
    forward pass lies before the gradient and behind `stop_gradient`.
    """
    image, label = _augmented(batch, state, root, augment_options, patch, mesh)
    y = heads.targets(label, network.head)
    teacher_logits, teacher_features = jax.lax.stop_gradient(
        teacher.apply(teacher_params, _select(image, teacher.channels))
    )

    def loss_fn(params: Any) -> tuple[Array, dict[str, Array]]:
        logits, features = network.apply(params, _select(image, network.channels))
        terms = _reference_loss(logits, features, y, network.head, loss_options)
        terms |= distillation.distillation_terms(
            logits, teacher_logits, y, head=network.head, options=options
        )
        terms["kl"] = distillation.latent_divergence(
            features["bottleneck"], teacher_features["bottleneck"], options
        )
        return distillation.total(terms, options).mean(), terms

    (loss, terms), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    return _update(state, optimizer, loss, grads), _metrics(loss, terms, grads)


def _metrics(loss: Array, terms: dict[str, Array], grads: Any) -> Metrics:
    means = {name: value.mean() for name, value in terms.items()}
    return {"loss": loss, **means, "gradient_norm": optax.global_norm(grads)}


def jit_supervised(mesh: Mesh, **options: Any) -> Callable[..., tuple[TrainState, Metrics]]:
    """Jits `supervised_step` over `mesh`: (state [donated], batch, root)."""
    whole, batch = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    return jax.jit(
        functools.partial(supervised_step, mesh=mesh, **options),
        in_shardings=(whole, batch, whole),
        out_shardings=(whole, whole),
        donate_argnums=0,
    )


def jit_distillation(mesh: Mesh, **options: Any) -> Callable[..., tuple[TrainState, Metrics]]:
    """Jits `distillation_step` over `mesh`: (state [donated], teacher_params, batch, root).

    The teacher's parameters are an argument and are not donated: closed over, they would become
    constants of the program.
    """
    whole, batch = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    return jax.jit(
        functools.partial(distillation_step, mesh=mesh, **options),
        in_shardings=(whole, whole, batch, whole),
        out_shardings=(whole, whole),
        donate_argnums=0,
    )
