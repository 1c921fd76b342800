"""The train step of every role, and its jitting over a mesh.

The step is a pure function of (state, teacher's parameters, batch, root key) to (state, metrics):

    augment -> frozen teacher -> student -> loss -> gradient -> optimizer -> new state

What the loss is made of stands in `losses/`. The root key is never advanced: the step's own
randomness is `fold_in(root, step)`, so a resumed run draws what an uninterrupted one draws.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, NotRequired, TypedDict

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Integer, PyTree, UInt8

from kdnet_jax import task as task_lib
from kdnet_jax.augment import augment, masking
from kdnet_jax.losses import objective, output
from kdnet_jax.models import heads
from kdnet_jax.parallel import sharding

Metrics = dict[str, Float[Array, ""]]
# What is trained and kept beside "params", and read by no prediction: the 1x1x1 kernel "c e" that
# takes a student's bottleneck to the width of its teacher's, or "c m" that takes the features under
# the head of a network that reconstructs to its sequences.
PROJECTOR = "projector"
# Folded into a step's key for what `augment` does not draw.
_MIXUP, _HIDDEN = 1, 7
# Names of parts of a step in a profile (`profiling`).
AUGMENT, TEACHER, NETWORK, UPDATE = "augment", "teacher", "network", "update"


class Batch(TypedDict):
    """A batch of patches: all the modalities of the data, and the class of each voxel.

    All voxels of a sample without a reference are `task.NO_LABEL`.
    With a `CachedTeacher` its probabilities too, as `output.of_maps` takes them.
    """

    image: Float[Array, "b d h w m"]
    label: UInt8[Array, "b d h w"]
    teacher: NotRequired[Float[Array, "b d h w j"]]


class BatchShapes(TypedDict):
    """The shapes and types of a `Batch`."""

    image: jax.ShapeDtypeStruct
    label: jax.ShapeDtypeStruct
    teacher: NotRequired[jax.ShapeDtypeStruct]


def batch_shapes(
    batch: int, crop: tuple[int, int, int], modalities: int, maps: int = 0
) -> BatchShapes:
    """Returns the shapes and types of a batch of crops, to compile a step before there is one.

    Args:
        batch: samples.
        crop: "d h w".
        modalities: channels of the image.
        maps: channels of a cached teacher's probabilities.
    """
    shapes: BatchShapes = {
        "image": jax.ShapeDtypeStruct((batch, *crop, modalities), jnp.float32),
        "label": jax.ShapeDtypeStruct((batch, *crop), jnp.uint8),
    }
    if maps:
        shapes["teacher"] = jax.ShapeDtypeStruct((batch, *crop, maps), jnp.float32)
    return shapes


class TrainState(NamedTuple):
    """All that training changes.

    Attributes:
        step: steps done.
        params: the parameters that the gradient is taken at.
        opt_state: the optimizer's.
        average: the moving average of `params` (`Plan.average`); `None` where there is none.
    """

    step: Integer[Array, ""]
    params: PyTree
    opt_state: PyTree
    average: PyTree = None

    @property
    def used(self) -> PyTree:
        """The parameters that are validated, kept and exported: the average, where there is one."""
        return self.params if self.average is None else self.average


class Network(NamedTuple):
    """A network as a step sees it.

    Attributes:
        apply: its function.
        head: what its output channels are.
        channels: positions of its input sequences among those of the batch.
    """

    apply: sharding.Apply
    head: heads.Head
    channels: tuple[int, ...]


class CachedTeacher(NamedTuple):
    """A teacher whose probabilities come with each batch.

    Attributes:
        head: what they are.
    """

    head: heads.Head

    @property
    def maps(self) -> int:
        """Channels of a batch's probabilities: the head's outputs but for the background."""
        return len(self.head.outputs[self.head.foreground])


def init_state(
    params: PyTree, optimizer: optax.GradientTransformation, *, averaged: bool = False
) -> TrainState:
    """Returns the state before the first step; `averaged`: with a moving average (`Plan`)."""
    # A copy: a step donates its state, and no array can be donated twice.
    average = jax.tree.map(jnp.copy, params) if averaged else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), average)


class Plan(NamedTuple):
    """How a step works through its batch.

    Attributes:
        augment: what is drawn for each crop.
        patch: size of the patches that the network sees, "d h w"; None: of the crops.
        accumulate: number of parts that the batch is worked through in, one after another.
        modality_dropout: probability with which a sequence is dropped (`augment.drop_sequences`).
        skip_nonfinite: leave out the update of a batch whose loss or gradient is not finite.
        average: decay of the moving average of the parameters; 0: the state has none.
        mixup: a of Beta(a, a), from which the share of each sample in its mixture with the one
            before it is drawn; 0: none is mixed.
        incomplete: samples may lack sequences, of which the whole crop is 0: they are as dropped
            ones.
        hidden: the network does not see these cubes, and is to reconstruct them; None: it sees all,
            and learns from the reference.
        mesh: over which the batch is spread (set by `jit_step`); None: one device.
    """

    augment: augment.AugmentOptions
    patch: tuple[int, int, int] | None = None
    accumulate: int = 1
    modality_dropout: float = 0.0
    skip_nonfinite: bool = False
    average: float = 0.0
    mixup: float = 0.0
    incomplete: bool = False
    hidden: masking.Cubes | None = None
    mesh: Mesh | None = None


def train_step(
    state: TrainState,
    teacher_params: PyTree,
    batch: Batch,
    root: jax.Array,
    *,
    student: Network,
    teacher: Network | CachedTeacher | None,
    loss: objective.Loss,
    optimizer: optax.GradientTransformation,
    plan: Plan,
) -> tuple[TrainState, Metrics]:
    """One step of any role: the student against the reference and, where there is one, a teacher.

    The teacher is frozen: its parameters are an argument that no gradient reaches. The augmentation
    is drawn once, on the full stack of sequences, so student and teacher see the same patch.

    Args:
        state: what training changes.
        teacher_params: the teacher's parameters; () without one, and of a cached one.
        batch: crops of `augment.source_patch` voxels.
        root: the key of the run.
        student: what is trained: the network of a teacher's or a baseline's run too.
        teacher: the frozen network, or what comes with the batch; None: the reference alone
            teaches.
        loss: the weighted sum of terms.
        optimizer: its rule.
        plan: augmentation, patch and accumulation.

    Returns:
        The new state, and the metrics: "loss", each term of it and "gradient_norm".
    """
    (new,), (metrics,) = joint_step(
        (state,),
        teacher_params,
        batch,
        root,
        students=(student,),
        teacher=teacher,
        loss=loss,
        optimizer=optimizer,
        plan=plan,
    )
    return new, metrics


def joint_step(
    states: tuple[TrainState, ...],
    teacher_params: PyTree,
    batch: Batch,
    root: jax.Array,
    *,
    students: tuple[Network, ...],
    teacher: Network | CachedTeacher | None,
    loss: objective.Loss,
    optimizer: optax.GradientTransformation,
    plan: Plan,
) -> tuple[tuple[TrainState, ...], tuple[Metrics, ...]]:
    """The `train_step` of several students that share batch, augmentation and teacher.

    Each gets what its own `train_step` would give it; the teacher is evaluated once.

    Args:
        states: of each student, all after as many steps.
        teacher_params: see `train_step`.
        batch: likewise.
        root: likewise.
        students: their networks, with heads of one kind.
        teacher: see `train_step`.
        loss: likewise.
        optimizer: likewise; each student has its own state of it.
        plan: likewise.

    Returns:
        The new states and the metrics of each.
    """
    # -- Augment: crops "b D H W m" and "b D H W" to patches "b d h w m" and "b d h w" -----------
    # The whole batch at once: the draws do not depend on `accumulate`.
    key = jax.random.fold_in(root, states[0].step)
    image, maps = batch["image"], 0
    with jax.named_scope(AUGMENT):
        if isinstance(teacher, CachedTeacher):
            assert "teacher" in batch
            # They move as the image does: "b D H W m" and "b D H W j" to "b D H W m+j".
            image, maps = jnp.concatenate([image, batch["teacher"]], axis=-1), teacher.maps
        image, label = augment.augment(
            key, image, batch["label"], plan.augment, plan.patch, plan.mesh, maps=maps
        )
        share = None
        if plan.mixup:
            # Student and teacher see the same mixture: "b d h w m", labels of both "b d h w 2".
            share = jax.random.beta(jax.random.fold_in(key, _MIXUP), plan.mixup, plan.mixup)
            image = share * image + (1 - share) * jnp.roll(image, 1, axis=0)
            label = jnp.stack([label, jnp.roll(label, 1, axis=0)], axis=-1)
        channels, there = tuple(dict.fromkeys(c for each in students for c in each.channels)), None
        if plan.incomplete:
            # Sequences of which there is something, "b m"; of a mixture, in both samples.
            there = (batch["image"] != 0).any(axis=(1, 2, 3))
            if share is not None:
                there &= jnp.roll(there, 1, axis=0)
            if isinstance(teacher, Network):
                channels = teacher.channels  # the students' are among them
        if plan.modality_dropout or plan.incomplete:
            image = augment.drop_sequences(key, image, channels, plan.modality_dropout, there)

    if plan.hidden:
        # In the place of the reference, which is not read: 1 where the image is hidden, "b d h w".
        label = plan.hidden.draw(jax.random.fold_in(key, _HIDDEN), image.shape[0], image.shape[1:4])
    arrays = [image, label]
    if loss.labels:
        # -- Samples without a reference, before a border is added: 0 in "b", the others 1 --------
        known = (batch["label"] != task_lib.NO_LABEL).all(axis=(1, 2, 3))
        if share is not None:  # of a mixture, where both have one
            known &= jnp.roll(known, 1, axis=0)
        arrays.append(known.astype(jnp.float32))

    def gradients(image: Array, label: Array, labelled: Array | None = None) -> Found:
        # -- Reference: classes "b d h w" to channels "b d h w k"; voxels with a label "b d h w" --
        # Or the sequences "b d h w m", and the voxels that are hidden.
        if plan.hidden:
            y, where = _select(image, students[0].channels), label
            image = image * (1 - label[..., None])
        else:
            y, where = _reference(students[0].head, label, share)

        # -- Teacher: its sequences "b d h w m" to logits "b d h w k" and features ---------------
        taught = None
        if isinstance(teacher, CachedTeacher):
            taught = output.of_maps(image[..., -maps:], teacher.head)
        elif teacher:
            teach = sharding.spread(teacher.apply, plan.mesh)
            with jax.named_scope(TEACHER):
                answer = jax.lax.stop_gradient(
                    teach(teacher_params, _select(image, teacher.channels))
                )
            taught = output.Output(*answer, teacher.head)

        # -- Students: likewise from their own sequences; then terms "b", and their mean over b ---
        def loss_fn(params: PyTree, student: Network) -> tuple[Array, Metrics]:
            learn = sharding.spread(student.apply, plan.mesh)
            with jax.named_scope(NETWORK):
                answer = learn(params, _select(image, student.channels))
            projector = params.get(PROJECTOR, {}).get("kernel")
            seen = output.Output(*answer, student.head, projector)
            terms = loss.terms(seen, taught, y, where, labelled)
            return loss.total(terms).mean(), {name: each.mean() for name, each in terms.items()}

        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        each = zip(states, students, strict=True)
        return tuple(gradient(state.params, student) for state, student in each)

    if plan.accumulate == 1:
        found = gradients(*arrays)
    else:
        found = _mean_over_parts(gradients, arrays, plan)
    updated = [
        _update(state, optimizer, value, terms, grads, plan)
        for state, ((value, terms), grads) in zip(states, found, strict=True)
    ]
    return tuple(new for new, _ in updated), tuple(metrics for _, metrics in updated)


def jit_step(
    mesh: Mesh,
    *,
    student: Network | tuple[Network, ...],
    teacher: Network | CachedTeacher | None = None,
    loss: objective.Loss,
    optimizer: optax.GradientTransformation,
    plan: Plan,
    state_sharding: PyTree = None,
) -> jax.stages.Wrapped:
    """Jits `train_step` over `mesh`: (state [donated], teacher_params, batch, root).

    The teacher's parameters are an argument, replicated and not donated: closed over, they would
    become constants of the program.

    Args:
        mesh: the devices.
        student: see `train_step`; a tuple of them: `joint_step`, whose states are a tuple too.
        teacher: likewise.
        loss: likewise.
        optimizer: likewise.
        plan: likewise; its mesh is set here.
        state_sharding: how the state lies (`sharding.state_sharding`); None: replicated.
    """
    whole, batch = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    state = state_sharding or whole
    whose = (
        functools.partial(train_step, student=student)
        if isinstance(student, Network)
        else functools.partial(joint_step, students=student)
    )
    step = functools.partial(
        whose,
        teacher=teacher,
        loss=loss,
        optimizer=optimizer,
        plan=plan._replace(mesh=mesh),
    )
    return jax.jit(
        step,
        in_shardings=(state, whole, batch, whole),
        out_shardings=(state, whole),
        donate_argnums=0,
    )


def _reference(
    head: heads.Head, label: Integer[Array, "b d h w *two"], share: Float[Array, ""] | None
) -> tuple[Float[Array, "b d h w k"], Float[Array, "b d h w"] | None]:
    """Returns the reference by channel, and the voxels with a label: in a mixture, in both samples.

    Zhang et al., "mixup: beyond empirical risk minimization", ICLR 2018.
    """
    y, known = head.targets(label), head.known(label)
    if share is None:
        return y, known
    mixed = share * y[..., 0, :] + (1 - share) * y[..., 1, :]
    return mixed, None if known is None else known.prod(axis=-1)


def _select(
    image: Float[Array, "b d h w m"], channels: tuple[int, ...]
) -> Float[Array, "b d h w c"]:
    # A static slice per channel: a gather would not fuse.
    return jnp.concatenate([image[..., c : c + 1] for c in channels], axis=-1)


def _update(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    loss: Float[Array, ""],
    terms: Metrics,
    grads: PyTree,
    plan: Plan,
) -> tuple[TrainState, Metrics]:
    with jax.named_scope(UPDATE):
        # `value` is read by the plateau schedule and ignored by the other transformations.
        updates, opt_state = optax.with_extra_args_support(optimizer).update(
            grads, state.opt_state, state.params, value=loss
        )
        params = optax.apply_updates(state.params, updates)
        new = TrainState(state.step + 1, params, opt_state, _averaged(state, params, plan.average))
        norm = optax.tree.norm(grads)
        if plan.skip_nonfinite:
            finite = jnp.isfinite(loss) & jnp.isfinite(norm)
            kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
            new = kept._replace(step=new.step)
    return new, {"loss": loss, **terms, "gradient_norm": norm}


def _averaged(state: TrainState, params: PyTree, decay: float) -> PyTree:
    """Returns the moving average after a step: a = d a + (1 - d) w; `None` where decay is 0.

    d = min(decay, (1 + t) / (10 + t)) after t steps, so that the random initial weights are soon
    forgotten. Averages of the iterates: Polyak & Juditsky, "Acceleration of Stochastic
    Approximation by Averaging", 1992; exponential, as a better network than the last iterate:
    Tarvainen & Valpola, "Mean teachers are better role models", NeurIPS 2017.
    """
    if not decay:
        return None
    warm = jnp.minimum(decay, (1 + state.step) / (10 + state.step))
    return optax.incremental_update(params, state.average, 1 - warm)


# Of each student ((loss, terms), gradients), a mean over the samples.
Found = tuple[tuple[tuple[Array, Metrics], PyTree], ...]
# (image, label, perhaps labelled) -> `Found`
Gradients = Callable[..., Found]


def _mean_over_parts(gradients: Gradients, arrays: list[Array], plan: Plan) -> Found:
    """Returns the mean of `gradients` over equal parts of the batch, one after another.

    Only one part's activations exist at a time. Each device works through its own samples.
    """
    # "b ..." to "accumulate part ..."
    parts = [_in_parts(x, plan) for x in arrays]

    def add(total: PyTree, part: list[Array]) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, gradients(*part)), None

    like = jax.eval_shape(gradients, *(part[0] for part in parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    total, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda x: x / plan.accumulate, total)


def _in_parts(x: Array, plan: Plan) -> Array:
    """Cuts "b ..." so that part i holds the i-th share of every device's samples."""
    n, devices = plan.accumulate, plan.mesh.shape["data"] if plan.mesh else 1
    share = x.shape[0] // (devices * n)
    parts = x.reshape(devices, n, share, *x.shape[1:]).swapaxes(0, 1)
    parts = parts.reshape(n, devices * share, *x.shape[1:])
    if plan.mesh is None:
        return parts
    # Without it the samples might be gathered on every device.
    own = sharding.batch_sharding(plan.mesh).spec[: x.ndim]
    spec = jax.sharding.PartitionSpec(None, *own)
    return jax.lax.with_sharding_constraint(parts, jax.sharding.NamedSharding(plan.mesh, spec))
