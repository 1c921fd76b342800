"""Strides and kernels of a U-Net's levels, as nnU-Net's own planner chooses them."""

import itertools

import pytest

pytest.importorskip("nnunetv2")

from nnunetv2.experiment_planning.experiment_planners import network_topology

from kdnet_jax.models import unet

SPACINGS = [(1.0, 1.0, 1.0), (6.0, 1.0, 1.0), (1.0, 0.5, 2.0), (0.8, 5.0, 0.79), (3.6, 0.62, 0.62)]
SPACINGS += [(2.5, 0.8, 1.1), (1.2, 1.0, 1.0), (2.0, 1.0, 1.0), (1.0, 4.0, 4.0), (1.0, 3.9, 16.0)]
PATCHES = [(16, 128, 128), (20, 320, 256), (128, 128, 128), (64, 24, 96), (12, 40, 130)]


@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_plan_is_nnunets_as_deep_as_it_goes(spacing: tuple[float, float, float]) -> None:
    for patch in PATCHES:
        _, strides, kernels, _, _ = network_topology.get_pool_and_conv_props(
            spacing, patch, min_feature_map_size=4, max_numpool=999
        )
        assert unet.plan(spacing, patch, len(strides)) == (strides[1:], kernels)
        # Of fewer levels the last has cubes, as nnU-Net's last.
        for levels in range(2, len(strides)):
            expected = strides[1:levels], (*kernels[: levels - 1], (3, 3, 3))
            assert unet.plan(spacing, patch, levels) == expected


def test_between_them_they_differ() -> None:
    found = {unet.plan(*each, 3) for each in itertools.product(SPACINGS, PATCHES)}
    assert len(found) > 5
