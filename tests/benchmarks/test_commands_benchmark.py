"""The commands of `benchmarks.commands`: their scan, their masks, and mistakes in the flags."""

import numpy as np
import pytest

from benchmarks import command_sides
from kdnet_jax import errors
from tests.helpers import commands

pytestmark = pytest.mark.once


def test_a_volume_is_placed_about_its_centre() -> None:
    data = np.arange(1, 7).reshape(6, 1, 1)
    placed = command_sides._placed(data, (4, 3, 2))
    assert placed.shape == (4, 3, 2)
    np.testing.assert_array_equal(placed[:, 1, 0], [2, 3, 4, 5])
    assert placed.sum() == 14


def test_masks_have_every_class_of_brats_2021() -> None:
    mask = command_sides._mask(np.random.default_rng(0))
    values, counts = np.unique(mask, return_counts=True)
    assert mask.shape == command_sides.MASK
    assert values.tolist() == [0, 1, 2, 4]
    assert counts[1:] / mask.size == pytest.approx([0.01, 0.02, 0.01], abs=1e-4)


def test_a_commit_that_is_not_there(tmp_path) -> None:
    with pytest.raises(errors.UserError, match="0000000 cannot be taken out of"):
        command_sides.Side("0000000", tmp_path / "side")


def test_an_unknown_row_is_told_at_the_start() -> None:
    done = commands.python("-m", "benchmarks.commands", "--only=predct", timeout=60)
    assert done.returncode == 2
    assert "did you mean 'predict'?" in done.stderr
