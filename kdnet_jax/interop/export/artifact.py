"""A network as one file that JAX alone runs, on any of cpu, cuda and tpu.

    from jax import export
    network = export.deserialize(open("model.jaxexport", "rb").read())
    probabilities = network.call(windows)  # "b d h w m" float32 -> "b d h w k" float32

What the channels m and k are, "modalities" and "outputs" of the `model.json` beside it say.

The parameters are constants of the program; batch and edges are symbols, so one file serves any
number of windows of any size that the network can take. It runs with the JAX that wrote it, and by
JAX's guarantee with those of the next six months and, for what the older one knew, of the last
three weeks (https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees).
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, Float, PyTree

from kdnet_jax.core import files
from kdnet_jax.models import heads, networks
from kdnet_jax.prediction import inference

PLATFORMS = ("cpu", "cuda", "tpu")


def write(
    path: pathlib.Path,
    network: networks.Network,
    params: PyTree,
    *,
    head: heads.Head,
    modalities: int,
) -> None:
    """Writes a network as a `jax.export` artifact in float32, atomically.

    Args:
        path: the file.
        network: its form.
        params: its parameters.
        head: what its outputs are.
        modalities: sequences that it sees.

    Raises:
        OSError: it cannot be written.
    """
    network = networks.portable(network)
    predict = inference.make_predict(networks.function(network), head, mirror=False)
    d, h, w = network.divisor
    shape = export.symbolic_shape(f"b, {d}*d, {h}*h, {w}*w, {modalities}")
    windows = jax.ShapeDtypeStruct(shape, jnp.float32)
    constants = jax.tree.map(np.asarray, params)
    with _without_source_paths():
        exported = export.export(
            jax.jit(lambda windows: predict(constants, windows)), platforms=PLATFORMS
        )(windows)
    with files.replacing(path) as beside:
        beside.write_bytes(exported.serialize())


@contextlib.contextmanager
def _without_source_paths() -> Iterator[None]:
    """Keeps out of the program where the code lay: names of users and folders of this machine."""
    limit = jax.config.values["jax_traceback_in_locations_limit"]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)


def run(
    path: str | os.PathLike[str], windows: Float[Array, "b d h w m"]
) -> Float[Array, "b d h w k"]:
    """Returns the probabilities of windows by an artifact."""
    return export.deserialize(bytearray(pathlib.Path(path).read_bytes())).call(windows)
