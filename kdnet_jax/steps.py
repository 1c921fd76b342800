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
# Names of parts of a step in a profile (`profiling`).
AUGMENT, TEACHER, NETWORK, UPDATE = "augment", "teacher", "network", "update"


class Batch(TypedDict):
    """A batch of patches: all the modalities of the data, and the class of each voxel."""

    image: Float[Array, "b d h w m"]
    label: UInt8[Array, "b d h w"]


def batch_shapes(batch: int, crop: tuple[int, int, int], modalities: int) -> Batch:
    """Returns the shapes and types of a batch of crops, to compile a step before there is one."""
    return {
        "image": jax.ShapeDtypeStruct((batch, *crop, modalities), jnp.float32),
        "label": jax.ShapeDtypeStruct((batch, *crop), jnp.uint8),
    }


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


def _reference_loss(
    answer: tuple[Array, dict[str, Array]],
    label: Array,
    y: Array,
    head: heads.Head,
    options: LossOptions,
) -> dict[str, Array]:
    logits, features = answer
    chosen = {"head": head, "known": head.known(label), **options._asdict()}
    terms = segmentation.supervised_terms(logits, y, **chosen)
    coarse = segmentation.deep_supervision_loss(features, y, **chosen)
    return terms if coarse is None else terms | {"gt_coarse": coarse}


def _update(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    values: tuple[Array, Metrics],
    grads: Any,
    skip_nonfinite: bool,
) -> tuple[TrainState, Metrics]:
    loss, terms = values
    with jax.named_scope(UPDATE):
        # `value` is read by the plateau schedule and ignored by the other transformations.
        updates, opt_state = optax.with_extra_args_support(optimizer).update(
            grads, state.opt_state, state.params, value=loss
        )
        params = optax.apply_updates(state.params, updates)
        norm = optax.tree.norm(grads)
        if skip_nonfinite:
            finite = jnp.isfinite(loss) & jnp.isfinite(norm)
            params, opt_state = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old),
                (params, opt_state),
                (state.params, state.opt_state),
            )
    new = TrainState(state.step + 1, params, opt_state)
    return new, {"loss": loss, **terms, "gradient_norm": norm}


class BatchOptions(NamedTuple):
    """How a step works through its batch.

    Attributes:
        augment: what is drawn for each crop.
        patch: size of the patches that the network sees, "d h w"; None: of the crops.
        accumulate: parts that the batch is worked through in, one after another.
        skip_nonfinite: leave out the update of a batch whose loss or gradient is not finite.
        mesh: over which the batch is spread; None: one device.
    """

    augment: augment.AugmentOptions
    patch: tuple[int, int, int] | None = None
    accumulate: int = 1
    skip_nonfinite: bool = False
    mesh: Mesh | None = None


def _augmented(batch: Batch, state: TrainState, root: jax.Array, options: BatchOptions) -> Any:
    # The whole batch at once: the draws do not depend on `accumulate`.
    key = jax.random.fold_in(root, state.step)
    with jax.named_scope(AUGMENT):
        return augment.augment(
            key, batch["image"], batch["label"], options.augment, options.patch, options.mesh
        )


# (image, label) -> ((loss, terms), gradients), each a mean over the samples
Gradients = Callable[[Array, Array], tuple[tuple[Array, Metrics], Any]]


def _accumulated(gradients: Gradients, image: Array, label: Array, options: BatchOptions) -> Any:
    """Returns the mean of `gradients` over equal parts of the batch, one after another.

    Only one part's activations exist at a time. Each device works through its own samples.
    """
    if options.accumulate == 1:
        return gradients(image, label)
    devices = options.mesh.shape["data"] if options.mesh else 1
    parts = [_in_parts(x, devices, options) for x in (image, label)]

    def add(total: Any, part: list[Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradients(*part)), None

    like = jax.eval_shape(gradients, *(part[0] for part in parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    total, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda x: x / options.accumulate, total)


def _in_parts(x: Array, devices: int, options: BatchOptions) -> Float[Array, "n part ..."]:
    """Cuts "b ..." so that part i holds the i-th share of every device's samples."""
    n = options.accumulate
    share = x.shape[0] // (devices * n)
    parts = x.reshape(devices, n, share, *x.shape[1:]).swapaxes(0, 1)
    parts = parts.reshape(n, devices * share, *x.shape[1:])
    if options.mesh is None:
        return parts
    # Without it the samples might be gathered on every device.
    spec = jax.sharding.PartitionSpec(None, *sharding.batch_sharding(options.mesh).spec)
    return jax.lax.with_sharding_constraint(parts, jax.sharding.NamedSharding(options.mesh, spec))


def supervised_step(
    state: TrainState,
    batch: Batch,
    root: jax.Array,
    *,
    network: Network,
    optimizer: optax.GradientTransformation,
    loss_options: LossOptions,
    batch_options: BatchOptions,
) -> tuple[TrainState, Metrics]:
    """One step of a teacher or a baseline: the network against the reference.

    Args:
        state: what training changes.
        batch: crops of `augment.source_patch` voxels.
        root: the key of the run.
        network: what is trained.
        optimizer: its rule.
        loss_options: of the loss against the reference.
        batch_options: augmentation, patch and accumulation.
    """
    apply = sharding.spread(network.apply, batch_options.mesh)

    def gradients(image: Array, label: Array) -> tuple[tuple[Array, Metrics], Any]:
        y = network.head.targets(label)

        def loss_fn(params: Any) -> tuple[Array, Metrics]:
            with jax.named_scope(NETWORK):
                answer = apply(params, _select(image, network.channels))
            terms = _reference_loss(answer, label, y, network.head, loss_options)
            return sum(terms.values()).mean(), _means(terms)

        return jax.value_and_grad(loss_fn, has_aux=True)(state.params)

    image, label = _augmented(batch, state, root, batch_options)
    accumulated = _accumulated(gradients, image, label, batch_options)
    return _update(state, optimizer, *accumulated, batch_options.skip_nonfinite)


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
    batch_options: BatchOptions,
) -> tuple[TrainState, Metrics]:
    """One step of a student: the frozen teacher on all its sequences, the student on its own.

    The augmentation is drawn once, before the split, so both see the same patch. The teacher's
    forward pass lies before the gradient and behind `stop_gradient`.
    """
    apply, teach = (sharding.spread(each.apply, batch_options.mesh) for each in (network, teacher))

    def gradients(image: Array, label: Array) -> tuple[tuple[Array, Metrics], Any]:
        y = network.head.targets(label)
        with jax.named_scope(TEACHER):
            teacher_logits, teacher_features = jax.lax.stop_gradient(
                teach(teacher_params, _select(image, teacher.channels))
            )

        def loss_fn(params: Any) -> tuple[Array, Metrics]:
            with jax.named_scope(NETWORK):
                logits, features = answer = apply(params, _select(image, network.channels))
            terms = _reference_loss(answer, label, y, network.head, loss_options)
            terms |= distillation.distillation_terms(
                logits, teacher_logits, y, head=network.head, options=options
            )
            if options.latent_weight:  # else the bottlenecks need not be comparable
                terms["kl"] = distillation.latent_divergence(
                    features["bottleneck"], teacher_features["bottleneck"], options
                )
            return distillation.total(terms, options).mean(), _means(terms)

        return jax.value_and_grad(loss_fn, has_aux=True)(state.params)

    image, label = _augmented(batch, state, root, batch_options)
    accumulated = _accumulated(gradients, image, label, batch_options)
    return _update(state, optimizer, *accumulated, batch_options.skip_nonfinite)


def _means(terms: dict[str, Array]) -> Metrics:
    return {name: value.mean() for name, value in terms.items()}


def jit_supervised(
    mesh: Mesh,
    *,
    augment_options: augment.AugmentOptions,
    patch: tuple[int, int, int] | None = None,
    accumulate: int = 1,
    skip_nonfinite: bool = False,
    state_sharding: Any = None,
    **options: Any,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Jits `supervised_step` over `mesh`: (state [donated], batch, root).

    `state_sharding` says how the state lies (`sharding.state_sharding`); None: replicated.
    """
    whole, batch = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    state = state_sharding or whole
    batch_options = BatchOptions(augment_options, patch, accumulate, skip_nonfinite, mesh)
    return jax.jit(
        functools.partial(supervised_step, batch_options=batch_options, **options),
        in_shardings=(state, batch, whole),
        out_shardings=(state, whole),
        donate_argnums=0,
    )


def jit_distillation(
    mesh: Mesh,
    *,
    augment_options: augment.AugmentOptions,
    patch: tuple[int, int, int] | None = None,
    accumulate: int = 1,
    skip_nonfinite: bool = False,
    state_sharding: Any = None,
    **options: Any,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Jits `distillation_step` over `mesh`: (state [donated], teacher_params, batch, root).

    The teacher's parameters are an argument and are not donated: closed over, they would become
    constants of the program. `state_sharding` as for `jit_supervised`; the teacher is replicated.
    """
    whole, batch = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    state = state_sharding or whole
    batch_options = BatchOptions(augment_options, patch, accumulate, skip_nonfinite, mesh)
    return jax.jit(
        functools.partial(distillation_step, batch_options=batch_options, **options),
        in_shardings=(state, whole, batch, whole),
        out_shardings=(state, whole),
        donate_argnums=0,
    )
