"""The predictor: probabilities of whole prepared cases, by windows or in one pass."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special as jsp
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree
from scipy import special

from kdnet_jax.core import console
from kdnet_jax.data.scans import prepare
from kdnet_jax.errors import UserError
from kdnet_jax.models import heads, networks
from kdnet_jax.parallel import sharding
from kdnet_jax.runs import model as model_lib

# On the host, or on the device.
Volume = TypeVar("Volume", np.ndarray, jax.Array)
# (parameters, windows "b d h w m") -> probabilities "b d h w k"
Predict = Callable[[PyTree, ArrayLike], Array]
_FLIPS = np.array(list(itertools.product([False, True], repeat=3)))


@dataclasses.dataclass(frozen=True)
class Predictor:
    """Maps prepared cases to probabilities by one network or several, which are averaged.

    Validation, evaluation and prediction share it. Parameters are an argument: a program is
    compiled once for each form of network and window, of whole scans for each size.

    Attributes:
        models: the networks; they agree on sequences, outputs, window and overlap.
        mesh: the devices.
        mirror: average over the 8 mirror images.
        whole: no windows: a scan in one pass.
        window_batch: windows at once on each device (or on each group that shares their depth).
    """

    models: tuple[model_lib.Model, ...]
    mesh: Mesh
    mirror: bool
    whole: bool
    window_batch: int = 1

    def place(self, params: Sequence[PyTree]) -> list[PyTree]:
        """Returns the parameters of each network as `probabilities` takes them."""
        everywhere = sharding.replicated(self.mesh)
        return [jax.device_put(each, everywhere) for each in params]

    def image(self, case: prepare.PreparedCase) -> Float[np.ndarray, "d h w m"]:
        """Returns the sequences of a case that the networks see.

        Raises:
            UserError: the case lacks one.
        """
        needed = self.models[0].modalities
        if absent := [name for name in needed if name not in case.modalities]:
            raise UserError(
                f"{case.case_id}: has {', '.join(case.modalities)}, but the network needs "
                f"{', '.join(absent)}."
            )
        channels = [case.modalities.index(name) for name in needed]
        every = channels == [*range(case.image.shape[-1])]
        return case.image if every else case.image[..., channels]

    def probabilities(
        self,
        params: Sequence[PyTree],
        image: Float[np.ndarray, "d h w m"],
        *,
        entropies: bool = False,
        progress: bool = False,
    ) -> Float[np.ndarray, "d h w k"]:
        """Returns the mean over networks, mirror images and windows, in one pass over the volume.

        Args:
            params: of each network, from `place`.
            image: the sequences that they see.
            entropies: one more channel holds the mean of the single answers' `entropy`.
            progress: show a bar of windows on a terminal.
        """
        window = self.window(image.shape)
        programs = self._programs(params, entropies, window)

        def predict(windows: np.ndarray) -> Array:
            total = programs[0](params[0], windows)
            for program, each in zip(programs[1:], params[1:], strict=True):
                total = total + program(each, windows)
            return total / len(programs)

        return sliding_window(
            predict, image, window, self.models[0].overlap, batch=self._at_once, progress=progress
        )

    def window(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Returns the window that a volume is segmented by."""
        if not self.whole:
            return self.models[0].window
        every = [model.network.divisor for model in self.models]
        d, h, w = (math.lcm(*axis) for axis in zip(*every, strict=True))
        return whole_window(shape, (d, h, w), self.mesh.shape[sharding.SPACE])

    def compile(self, params: Sequence[PyTree], *, entropies: bool = False) -> None:
        """Compiles what `probabilities` needs for scans of any size; not for whole scans."""
        if not self.whole:
            self._programs(params, entropies, self.models[0].window)

    @property
    def _at_once(self) -> int:
        return self.window_batch * self.mesh.shape[sharding.DATA]

    @functools.cached_property
    def _compiled(self) -> dict[tuple[networks.Network, bool, tuple[int, int, int]], Predict]:
        return {}

    def _programs(
        self, params: Sequence[PyTree], entropies: bool, window: tuple[int, int, int]
    ) -> list[Predict]:
        """Returns the program of each network: those of one form share it."""
        shape = (self._at_once, *window, len(self.models[0].modalities))
        windows = jax.ShapeDtypeStruct(shape, np.float32)
        programs = []
        for model, each in zip(self.models, params, strict=True):
            key = (model.network, entropies, window)
            if key not in self._compiled:
                predict = make_predict(
                    networks.function(model.network), model.head, self.mirror, entropies, self.mesh
                )
                self._compiled[key] = predict.lower(each, windows).compile()
            programs.append(self._compiled[key])
        return programs


def make_predict(
    apply: sharding.Apply,
    head: heads.Head,
    mirror: bool,
    entropies: bool = False,
    mesh: Mesh | None = None,
) -> Predict:
    """Jits the network's probabilities, averaged over the 8 mirror images if `mirror`.

    Args:
        apply: the network.
        head: what its outputs are.
        mirror: average over mirror images.
        entropies: one more channel holds the mean of the images' `entropy`.
        mesh: the devices that share the windows, and the depth of each; None: one device. The
            parameters must lie on all of them.
    """
    apply = sharding.spread(apply, mesh)

    def answer(params: PyTree, windows: Array) -> Array:
        probs = head.probabilities(apply(params, windows)[0])
        if not entropies:
            return probs
        return jnp.concatenate([probs, entropy(probs, head, jsp.entr)[..., None]], axis=-1)

    def predict(params: PyTree, windows: Array) -> Array:
        if not mirror:
            return answer(params, windows)

        # A scan, and the flips as data: the network is compiled once and not eight times, and one
        # image's activations are gone before the next begins.
        def add(total: Array, flips: Array) -> tuple[Array, None]:
            return total + _flip(answer(params, _flip(windows, flips)), flips), None

        zeros = jnp.zeros(jax.eval_shape(answer, params, windows).shape)
        return jax.lax.scan(add, zeros, jnp.asarray(_FLIPS))[0] / len(_FLIPS)

    if mesh is None:
        return jax.jit(predict)
    windows = sharding.batch_sharding(mesh)
    return jax.jit(
        predict, in_shardings=(sharding.replicated(mesh), windows), out_shardings=windows
    )


def _flip(windows: Array, flips: Array) -> Array:
    for axis in range(3):
        windows = jnp.where(flips[axis], jnp.flip(windows, axis + 1), windows)
    return windows


def entropy(
    probs: Float[Volume, "*grid k"],
    head: heads.Head,
    entr: Callable[[Volume], Volume] = special.entr,
) -> Float[Volume, "*grid"]:
    """Returns the entropy in nats of the k classes (at most ln k), or summed over the regions.

    Each region is a yes or no of its own, of at most ln 2. Channel by channel: one volume at a
    time besides the result.

    Args:
        probs: probabilities of the classes, or of the regions.
        head: which of the two.
        entr: -p ln p, 0 at 0; of SciPy, or of `jax.scipy.special` on the device.
    """
    total = 0.0
    for channel in range(probs.shape[-1]):
        share = probs[..., channel]
        total = total + entr(share) + (entr(1 - share) if head.kind == "regions" else 0.0)
    # NumPy types every such sum as float64.
    return cast(Volume, total)


@functools.lru_cache(maxsize=4)
def gaussian_window(patch: tuple[int, ...]) -> Float[np.ndarray, "d h w"]:
    """Weights that fall from 1 at the centre, sigma = edge / 8, never below 1e-3.

    They are those of MONAI's "gaussian" mode; nnU-Net has this sigma and no such floor.
    """
    axes = [np.arange(edge) - (edge - 1) / 2 for edge in patch]
    grids = np.meshgrid(*axes, indexing="ij", sparse=True)
    exponent = sum((grid / (edge / 8)) ** 2 for grid, edge in zip(grids, patch, strict=True))
    return np.maximum(np.exp(-0.5 * exponent), 1e-3).astype(np.float32)


def window_starts(size: int, edge: int, overlap: float) -> list[int]:
    """Starts of windows of length `edge` that cover 0..size evenly.

    Neighbours share at least the share `overlap` (0 to below 1) of a window, to a voxel.
    """
    if size <= edge:
        return [0]
    count = int(np.ceil((size - edge) / max(edge * (1 - overlap), 1))) + 1
    return [int(start) for start in np.round(np.linspace(0, size - edge, count))]


def whole_window(
    shape: Sequence[int], divisor: tuple[int, int, int], space: int
) -> tuple[int, int, int]:
    """Returns the smallest window that covers a volume in one pass, its depth split evenly.

    Args:
        shape: "d h w" of the volume.
        divisor: what the network needs each edge, and each device's depth, to be divisible by.
        space: devices that share the depth.
    """
    units = (space * divisor[0], *divisor[1:])
    d, h, w = (-(-edge // unit) * unit for edge, unit in zip(shape[:3], units, strict=True))
    return d, h, w


def sliding_window(
    predict: Callable[[np.ndarray], ArrayLike],
    image: Float[np.ndarray, "d h w m"],
    patch: Sequence[int],
    overlap: float = 0.5,
    *,
    batch: int = 1,
    progress: bool = False,
) -> Float[np.ndarray, "d h w k"]:
    """Returns the probabilities of a whole volume of any size.

    Windows are blended by Gaussian weights. `predict` sees one shape only: the last batch is filled
    up with windows of 0. A volume smaller than the window is padded with 0 (background), split
    evenly on both sides; a window that covers the volume gives exactly one forward pass.

    The sums are held on the host, k + 1 float32 volumes whatever the number of windows: on the
    device they would be compiled anew for each size of scan, which takes longer than it saves
    (`docs/prediction.md`).

    Args:
        predict: "b d h w m" of `batch` windows to probabilities "b d h w k".
        image: the prepared case, its sequences already chosen.
        patch: the window's edges in voxels.
        overlap: share of a window that its neighbour covers too, 0 to below 1.
        batch: windows at once.
        progress: show a bar on a terminal.
    """
    missing = [max(edge - size, 0) for edge, size in zip(patch, image.shape[:3], strict=True)]
    before = [gap // 2 for gap in missing]
    if any(missing):
        width = [(b, gap - b) for b, gap in zip(before, missing, strict=True)]
        padded = np.pad(image, [*width, (0, 0)])
    else:
        padded = image
    blended = _blend(predict, padded, tuple(patch), overlap, batch, progress)
    return blended[_box(before, image.shape[:3])]


def _box(corner: Sequence[int], edges: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(start, start + edge) for start, edge in zip(corner, edges, strict=True))


def _blend(
    predict: Callable[[np.ndarray], ArrayLike],
    image: Float[np.ndarray, "d h w m"],
    patch: tuple[int, ...],
    overlap: float,
    batch: int,
    progress: bool,
) -> Float[np.ndarray, "d h w k"]:
    axes = zip(image.shape[:3], patch, strict=True)
    corners = list(itertools.product(*(window_starts(size, edge, overlap) for size, edge in axes)))
    weight = gaussian_window(patch)[..., None]
    weights = np.zeros((*image.shape[:3], 1), np.float32)
    total: np.ndarray | None = None

    def add(boxes: Sequence[tuple[slice, ...]], probs: ArrayLike) -> None:
        nonlocal total
        found = np.asarray(probs)
        if total is None:
            total = np.zeros((*image.shape[:3], found.shape[-1]), np.float32)
        for row, box in enumerate(boxes):
            total[box] += found[row] * weight
            weights[box] += weight
        bar.update(len(boxes))

    # `None`: no bar where standard error is no terminal.
    bar = console.bar(total=len(corners), unit="window", leave=False, disable=not progress or None)
    with bar:
        # The device computes a batch while the host adds the one before.
        before: tuple[Sequence[tuple[slice, ...]], ArrayLike] | None = None
        for first in range(0, len(corners), batch):
            boxes = [_box(corner, patch) for corner in corners[first : first + batch]]
            windows = np.zeros((batch, *patch, image.shape[-1]), np.float32)
            for row, box in enumerate(boxes):
                windows[row] = image[box]
            now = boxes, predict(windows)
            if before is not None:
                add(*before)
            before = now
        assert before is not None  # there is a window at least
        add(*before)
    assert total is not None  # made by the first of them
    total /= weights
    return total
