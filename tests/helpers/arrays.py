"""Small arrays to compute with, and their comparison."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def normal(*shape: int, seed: int = 0) -> jax.Array:
    """Standard normal float32 numbers."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def close(actual: Any, expected: Any, tolerance: float = 2e-5) -> None:
    """Asserts that two arrays are equal within a tolerance, relative or absolute."""
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def along_width(rows: Sequence[Sequence[float]]) -> jax.Array:
    """Returns "1 1 1 w c" of w voxels."""
    return jnp.asarray(rows, jnp.float32)[None, None, None]
