"""Cubes that a network does not see."""

import jax
import numpy as np

from kdnet_jax.augment import masking


def test_the_same_number_of_whole_cubes_is_hidden_in_each_sample() -> None:
    cubes, patch = masking.Cubes(0.75, 2), (4, 5, 2)
    # 2 x 3 x 1, of which the last along the second axis are cut to one voxel.
    assert cubes.counts(patch) == (6, 4)
    hidden = np.asarray(cubes.draw(jax.random.key(0), 40, patch))
    assert hidden.shape == (40, *patch)
    corners = hidden[:, ::2, ::2, ::2]
    assert (corners.sum(axis=(1, 2, 3)) == 4).all()
    whole = corners.repeat(2, 1).repeat(2, 2).repeat(2, 3)[:, :, :5]
    np.testing.assert_array_equal(hidden, whole)
    # Each is drawn for itself, and no place is left out.
    assert len({each.tobytes() for each in corners}) > 1
    assert corners.any(axis=0).all()
    assert not corners.all(axis=0).any()
