"""Score of a network that reconstructs what is hidden of its input, on validation cases."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from kdnet_jax.augment import masking
from kdnet_jax.data.loading import patches
from kdnet_jax.data.scans import prepare
from kdnet_jax.losses import features, reconstruction
from kdnet_jax.parallel import sharding
from kdnet_jax.training import steps

# Of each sequence: the sum of the squared errors, and of the squares.
Sums = dict[str, tuple[float, float]]


def summer(
    apply: sharding.Apply,
    channels: dict[str, int],
    patch: tuple[int, int, int],
    cubes: masking.Cubes,
) -> Callable[[PyTree, Iterable[tuple[int, prepare.PreparedCase]]], Iterator[tuple[int, Sums]]]:
    """Returns what sums over the hidden voxels of cases, given by their places, with parameters.

    Of each case the middle is taken, "d h w" of `patch`, and what is hidden of it follows from its
    place: at every validation it is the same.

    Args:
        apply: the network.
        channels: sequence -> position among the data's, of those that it sees.
        patch: edges in voxels.
        cubes: what is hidden.
    """

    @jax.jit
    def sums(
        params: PyTree, image: Float[Array, "1 d h w m"], key: jax.Array
    ) -> Float[Array, "2 m"]:
        hidden = cubes.draw(key, 1, patch)
        _, found = apply(params, image * (1 - hidden[..., None]))
        kernel = params[steps.PROJECTOR]["kernel"]
        errors, counts = reconstruction.squared_errors(found[features.LAST], kernel, image, hidden)
        return jnp.stack([each.sum(axis=(0, 1, 2, 3)) for each in (errors, counts * image**2)])

    def over_cases(
        params: PyTree, cases: Iterable[tuple[int, prepare.PreparedCase]]
    ) -> Iterator[tuple[int, Sums]]:
        params = jax.device_put(params, jax.local_devices()[0])
        for place, case in cases:
            size = case.image.shape[:3]
            start = [(size[axis] - patch[axis]) // 2 for axis in range(3)]
            image = patches.crop(case.image, start, patch)[None, ..., list(channels.values())]
            pairs = sums(params, image.astype("float32"), jax.random.key(place)).T.tolist()
            yield place, dict(zip(channels, pairs, strict=True))

    return over_cases


def explained(found: Sequence[Sums]) -> dict[str, float]:
    """Returns 1 - (sum of squared errors) / (sum of squares) of each sequence, over all cases.

    0 is the answer of a network that says 0, the mean of a z-scored sequence; 1 is the image.
    """
    return {
        name: 1 - sum(each[name][0] for each in found) / max(sum(e[name][1] for e in found), 1e-6)
        for name in found[0]
    }
