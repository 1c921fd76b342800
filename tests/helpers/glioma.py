"""The two heads of the glioma's task, and references for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdnet_jax import task as task_lib
from kdnet_jax.models import heads

SOFTMAX, REGIONS = (heads.Head(task_lib.GLIOMA, kind) for kind in ("softmax", "regions"))
each_head = pytest.mark.parametrize("head", [SOFTMAX, REGIONS], ids=lambda head: head.kind)


def targets(head: heads.Head, shape: tuple[int, ...], seed: int = 9) -> jax.Array:
    """Returns the channels of random classes of this shape, "b d h w k"."""
    return head.targets(jnp.asarray(np.random.default_rng(seed).integers(0, 4, shape)))
