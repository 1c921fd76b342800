"""Augmentation: one geometry for image and label, background kept, draws by key, distributions."""

import dataclasses
import itertools
import os
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdnet_jax import dataset_json
from kdnet_jax import task as task_lib
from kdnet_jax.augment import augment, draws, spatial
from kdnet_jax.errors import UserError
from tests.helpers import commands

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPE = (2, 3, 4)


def options(**values: Any) -> augment.AugmentOptions:
    return augment.AugmentOptions(**{"flip_axes": "", "scale": 0, "shift": 0, "noise": 0} | values)


def numbered(samples: int, modalities: int = 2) -> tuple[jax.Array, jax.Array]:
    """Every voxel's image is its own number in all modalities, its label the number mod 4."""
    numbers = np.arange(1, 1 + np.prod(SHAPE)).reshape(SHAPE)
    image = np.broadcast_to(numbers[None, ..., None], (samples, *SHAPE, modalities))
    label = np.broadcast_to(numbers % 4, (samples, *SHAPE))
    return jnp.asarray(image, jnp.float32), jnp.asarray(label, jnp.uint8)


def test_nothing_asked_for_changes_nothing() -> None:
    image, label = numbered(3)
    out, out_label = augment.augment(jax.random.key(0), image, label, options())
    np.testing.assert_array_equal(out, image)
    np.testing.assert_array_equal(out_label, label)
    assert out_label.dtype == label.dtype


def test_flips_move_all_sequences_and_the_label_together() -> None:
    image, label = numbered(64)
    out, out_label = augment.augment(jax.random.key(0), image, label, options(flip_axes="dhw"))
    np.testing.assert_array_equal(out[..., 0], out[..., 1])
    np.testing.assert_array_equal(out_label, out[..., 0] % 4)
    # Each sample is one of the eight mirror images, and all eight come up.
    mirrors = [
        np.flip(image[0], axes)
        for size in range(4)
        for axes in itertools.combinations(range(3), size)
    ]
    seen = [
        [index for index, mirror in enumerate(mirrors) if (sample == mirror).all()]
        for sample in np.asarray(out)
    ]
    assert all(len(matches) == 1 for matches in seen)
    assert {matches[0] for matches in seen} == set(range(8))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_only_the_axes_asked_for_are_flipped_and_half_of_the_time(axis: int) -> None:
    image, label = numbered(400, 1)
    out, _ = augment.augment(jax.random.key(1), image, label, options(flip_axes="dhw"[axis]))
    flipped = (np.asarray(out) == np.flip(image, 1 + axis)).all((1, 2, 3, 4))
    kept = (np.asarray(out) == np.asarray(image)).all((1, 2, 3, 4))
    assert (flipped ^ kept).all()
    # 400 fair draws: four standard deviations are 40.
    assert abs(flipped.sum() - 200) < 40


def test_background_stays_zero_and_the_brain_does_not_become_background() -> None:
    image, label = numbered(4)
    image = image.at[:, 0].set(0).at[:, 1, 0, 0, 1].set(0)
    strong = options(scale=0.5, shift=0.5, noise=0.5)
    out, out_label = augment.augment(jax.random.key(0), image, label, strong)
    np.testing.assert_array_equal(out == 0, image == 0)
    np.testing.assert_array_equal(out_label, label)


def test_the_background_moves_with_the_flip() -> None:
    image, label = numbered(32)
    image = jnp.where((label == 0)[..., None], 0, image)
    everything = augment.AugmentOptions(noise=0.1)
    out, out_label = augment.augment(jax.random.key(0), image, label, everything)
    np.testing.assert_array_equal(out[..., 0] == 0, out_label == 0)


def test_intensities_are_one_line_per_sample_and_sequence() -> None:
    image, label = numbered(300)
    out, _ = augment.augment(jax.random.key(0), image, label, options(scale=0.2, shift=0.3))
    x, y = (np.asarray(a, np.float64).reshape(300, -1, 2) for a in (image, out))
    factor = (y[:, -1] - y[:, 0]) / (x[:, -1] - x[:, 0])
    offset = y[:, 0] - factor * x[:, 0]
    np.testing.assert_allclose(y, factor[:, None] * x + offset[:, None], rtol=1e-4, atol=1e-4)
    for values, middle, reach in ((factor, 1, 0.2), (offset, 0, 0.3)):
        # Uniform: the standard deviation is reach / sqrt(3); 600 draws.
        assert np.abs(values - middle).max() <= reach + 1e-4
        assert abs(values.mean() - middle) < 4 * reach / np.sqrt(3 * 600)
        assert values.std() == pytest.approx(reach / np.sqrt(3), rel=0.1)
    # The sequences are drawn apart, and so are factor and offset.
    assert abs(np.corrcoef(factor.T)[0, 1]) < 0.25
    assert abs(np.corrcoef(factor.ravel(), offset.ravel())[0, 1]) < 0.25


def test_noise_has_a_level_of_its_own_in_each_sample() -> None:
    image = jnp.ones((200, 8, 8, 8, 1))
    label = jnp.zeros(image.shape[:4], jnp.uint8)
    out, _ = augment.augment(jax.random.key(0), image, label, options(noise=0.4))
    levels = np.asarray(out - 1).std((1, 2, 3, 4))
    assert levels.max() < 0.4 * 1.1
    assert levels.mean() == pytest.approx(0.2, rel=0.15)
    assert abs(np.asarray(out - 1).mean()) < 0.01


def test_the_key_decides() -> None:
    image, label = numbered(8)
    everything = augment.AugmentOptions(noise=0.1)
    first, first_label = augment.augment(jax.random.key(7), image, label, everything)
    again, again_label = augment.augment(jax.random.key(7), image, label, everything)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first_label, again_label)
    other, _ = augment.augment(jax.random.key(8), image, label, everything)
    assert (other != first).mean() > 0.5


# --- nnU-Net's set, and what is drawn only for some samples -------------------------------------

PATCH = (12, 10, 14)
COSTLY = ("rotation", "zoom_out", "elastic", "blur", "contrast", "low_resolution", "gamma")


def brains(samples: int, patch: tuple[int, ...], modalities: int = 2) -> tuple[Any, Any]:
    """Noise with a background at the bottom, and classes that are its thirds."""
    image = np.random.default_rng(0).normal(size=(samples, *patch, modalities)) + 1
    image[:, : patch[0] // 4] = 0
    label = np.digitize(image[..., 0], (0.01, 1, 2))
    return jnp.asarray(image, jnp.float32), jnp.asarray(label, jnp.uint8)


def draw(
    key: jax.Array, samples: int, sequences: int, chosen: augment.AugmentOptions
) -> draws.Draws:
    drawn = draws.draw(key, samples, sequences, PATCH, chosen.chances)
    return jax.tree.map(np.asarray, drawn._replace(keys=jax.random.key_data(drawn.keys)))


def everything(**changes: Any) -> augment.AugmentOptions:
    chances = {f"{name}_probability": 0.5 for name in (*COSTLY, "gamma_inverted", "noise")}
    return augment.choose("nnunet", **{**chances, "elastic": (0.0, 3.0), "shift": 0.1} | changes)


def test_the_draws_of_flips_and_brightness_are_those_of_the_first_version() -> None:
    # Published runs of the synthetic cohort rest on them.
    image, label = brains(3, PATCH)
    key = jax.random.key(5)
    flip_key, intensity_key, _ = jax.random.split(key, 3)
    scale_key, shift_key = jax.random.split(intensity_key)
    shape = (3, 1, 1, 1, 2)
    factor = 1 + jax.random.uniform(scale_key, shape, minval=-0.1, maxval=0.1)
    offset = jax.random.uniform(shift_key, shape, minval=-0.1, maxval=0.1)
    expected, classes = image, label
    for axis, drawn in enumerate(jax.random.bernoulli(flip_key, 0.5, (3, 3))):
        for sample in np.flatnonzero(drawn):
            expected = expected.at[sample].set(jnp.flip(expected[sample], axis))
            classes = classes.at[sample].set(jnp.flip(classes[sample], axis))
    expected = jnp.where(expected != 0, expected * factor + offset, 0)
    out, out_label = augment.augment(key, image, label, augment.PRESETS["plain"])
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(out_label, classes)


def test_nnunet_s_numbers() -> None:
    # nnunetv2/training/nnUNetTrainer/nnUNetTrainer.py, get_training_transforms.
    chosen = augment.choose("nnunet")
    probabilities = {
        name.removesuffix("_probability"): value
        for name, value in dataclasses.asdict(chosen).items()
        if name.endswith("_probability") and name != "shift_probability" and value
    }
    assert probabilities == {
        "rotation": 0.2,
        "zoom_out": 0.2,
        "noise": 0.1,
        "blur": 0.2,
        "scale": 0.15,
        "contrast": 0.15,
        "low_resolution": 0.25,
        "gamma_inverted": 0.1,
        "gamma": 0.3,
    }
    assert (chosen.rotation, chosen.zoom_out) == ((-30, 30), (0.7, 1.4))
    assert (chosen.noise, chosen.blur, chosen.scale, chosen.shift) == (0.1, (0.5, 1.0), 0.25, 0)
    assert (chosen.contrast, chosen.gamma) == ((0.75, 1.25), (0.7, 1.5))
    assert (chosen.low_resolution, chosen.flip_axes) == ((0.5, 1.0), "dhw")


def test_parts_are_drawn_as_often_as_asked_and_apart_from_each_other() -> None:
    samples = 2000
    drawn = draw(jax.random.key(0), samples, 3, augment.PRESETS["nnunet"])
    hits = {name: np.asarray(hit) for name, (hit, _) in drawn.parts.items() if hit is not None}
    expected = {
        "noise": 0.1,
        "blur": 0.2,
        "contrast": 0.15,
        "low_resolution": 0.25,
        "gamma_inverted": 0.1,
        "gamma": 0.3,
    }
    assert set(hits) == set(expected)
    for name, probability in expected.items():
        # Four standard deviations of a share of 2000 are at most 0.045.
        assert abs(hits[name].mean() - probability) < 0.045, name
    factor, offset = (np.asarray(value) for value in drawn.parts["brightness"][1])
    assert abs((factor != 1).all(1).mean() - 0.15) < 0.035
    assert ((factor != 1).all(1) == (factor != 1).any(1)).all()
    assert not offset.any()
    assert abs(np.mean(drawn.geometry.drawn) - (1 - 0.8**2)) < 0.045
    columns = [*hits.values(), drawn.geometry.drawn, factor[:, 0] != 1, *np.asarray(drawn.flips).T]
    together = np.corrcoef(np.array(columns, float)) - np.eye(len(columns))
    assert np.abs(together).max() < 0.1


def test_strengths_are_drawn_over_their_ranges() -> None:
    drawn = draw(jax.random.key(0), 2000, 3, augment.PRESETS["nnunet"])
    values = {
        name: np.asarray(value) for name, (hit, value) in drawn.parts.items() if hit is not None
    }
    assert values["noise"].shape == (2000,)
    assert (values["noise"].min(), values["noise"].max()) == pytest.approx((0, 0.1), abs=0.001)
    blur, kept = values["blur"], values["low_resolution"]
    # Half of the sequences are left out: of a blur in all axes.
    np.testing.assert_array_equal((blur > 0).all(2), (blur > 0).any(2))
    for taken, value, (low, high) in (
        ((blur > 0).all(2), blur[blur > 0], (0.5, 1.0)),
        (kept < 1, kept[kept < 1], (0.5, 1.0)),
    ):
        assert abs(taken.mean() - 0.5) < 0.03
        assert (value.min(), value.max()) == pytest.approx((low, high), abs=0.003)
        assert value.std() == pytest.approx((high - low) / np.sqrt(12), rel=0.1)
    for name, low, high in (("contrast", 0.75, 1.25), ("gamma", 0.7, 1.5)):
        # As often below 1 as above, whatever the two lengths.
        assert abs((values[name] < 1).mean() - 0.5) < 0.03
        assert (values[name].min(), values[name].max()) == pytest.approx((low, high), abs=0.003)
    assert abs(np.corrcoef(values["gamma"].T)[0, 1]) < 0.1
    assert abs(np.corrcoef(values["gamma"][:, 0], values["gamma_inverted"][:, 0])[0, 1]) < 0.1


def test_geometries_are_drawn_as_often_as_asked_and_over_their_ranges() -> None:
    chosen = augment.choose(
        "none", rotation_probability=0.3, zoom_out_probability=0.5, elastic_probability=0.2
    )
    matrix, bend = (geometry := draw(jax.random.key(0), 2000, 1, chosen).geometry)[1:]
    factor = np.cbrt(np.linalg.det(matrix))
    rotation = matrix / factor[:, None, None]
    rotated = np.abs(rotation - np.eye(3)).max((1, 2)) > 1e-4
    zoomed = np.abs(factor - 1) > 1e-4
    bent = np.abs(bend).max((1, 2, 3, 4)) > 0
    np.testing.assert_array_equal(geometry.drawn, rotated | zoomed | bent)
    for hits, probability in ((rotated, 0.3), (zoomed, 0.5), (bent, 0.2), (rotated & zoomed, 0.15)):
        assert abs(hits.mean() - probability) < 0.045
    assert (factor[zoomed].min(), factor[zoomed].max()) == pytest.approx((0.7, 1.4), abs=0.01)
    assert np.abs(bend).max() == pytest.approx(8, abs=0.2)
    np.testing.assert_allclose(rotation @ rotation.swapaxes(1, 2), [np.eye(3)] * 2000, atol=1e-5)
    # The last of the three angles turns within the plane of d and h.
    angle = np.degrees(np.arctan2(rotation[rotated, 1, 0], rotation[rotated, 0, 0]))
    assert (angle.min(), angle.max()) == pytest.approx((-30, 30), abs=0.5)
    assert angle.std() == pytest.approx(60 / np.sqrt(12), rel=0.1)


def test_a_range_that_is_never_drawn_is_refused() -> None:
    with pytest.raises(UserError, match=r"never draws it.*augment\.blur_probability=0\.2"):
        augment.choose("plain", blur=(1.0, 3.0))
    assert augment.choose("plain", blur=(1.0, 3.0), blur_probability=0.0).blur == (1.0, 3.0)
    assert augment.choose("plain", gamma=(0.9, 1.1), gamma_inverted_probability=0.1)
    assert augment.choose("nnunet", rotation=(-15.0, 15.0)).rotation == (-15.0, 15.0)


def test_one_sided_ranges_are_drawn_evenly() -> None:
    chosen = augment.choose("none", gamma=(1.2, 1.6), gamma_probability=1.0)
    value = draw(jax.random.key(0), 500, 2, chosen).parts["gamma"][1]
    assert (value.min(), value.max()) == pytest.approx((1.2, 1.6), abs=0.01)
    assert value.mean() == pytest.approx(1.4, abs=0.02)


@pytest.fixture(scope="module")
def augmented() -> tuple[Any, ...]:
    chosen = everything()
    source = augment.source_patch(PATCH, chosen)
    image, label = brains(24, source)
    run = jax.jit(lambda key, *batch: augment.augment(key, *batch, chosen, PATCH))
    return run, image, label, chosen


def test_of_a_larger_crop_the_middle_patch_comes_back(augmented: tuple[Any, ...]) -> None:
    run, image, label, chosen = augmented
    key = jax.random.key(0)
    out, out_label = run(key, image, label)
    assert out.shape == (24, *PATCH, 2)
    assert out.dtype == jnp.float32
    assert out_label.shape == (24, *PATCH)
    assert out_label.dtype == jnp.uint8
    drawn = draw(key, 24, 2, chosen)
    unmoved = np.flatnonzero(~np.asarray(drawn.geometry.drawn))
    assert 0 < len(unmoved) < 24
    for sample in unmoved:
        middle = spatial.middle(label[sample], PATCH)
        expected = spatial.flip(middle, drawn.flips[sample], "dhw")
        np.testing.assert_array_equal(out_label[sample], expected)
    assert set(np.unique(out_label)) <= {0, 1, 2, 3}
    assert bool(jnp.isfinite(out).all())


def test_jitted_is_eager_and_the_key_decides(augmented: tuple[Any, ...]) -> None:
    run, image, label, chosen = augmented
    key = jax.random.key(7)
    (first, first_label), (again, again_label) = (run(key, image, label) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first_label, again_label)
    eager, eager_label = augment.augment(key, image, label, chosen, PATCH)
    np.testing.assert_allclose(first, eager, atol=1e-4)
    # A coordinate between two voxels may be rounded to either.
    assert (first_label != eager_label).mean() < 1e-3
    assert (run(jax.random.key(8), image, label)[0] != first).mean() > 0.5


def test_maps_move_as_the_image_does_and_their_values_stay(augmented: tuple[Any, ...]) -> None:
    run, image, label, chosen = augmented
    key = jax.random.key(3)
    # As maps the image's own values, which are no background anywhere.
    maps = image[..., :1] + 1.0
    stack = jnp.concatenate([image, maps], axis=-1)
    moved, moved_label = augment.augment(key, stack, label, chosen, PATCH, maps=1)
    alone, alone_label = run(key, image, label)
    np.testing.assert_allclose(moved[..., :2], alone, atol=1e-4)
    assert (moved_label != alone_label).mean() < 1e-3
    # The geometry alone, of the same draws: an image of which 0 is no background.
    still = {f"{name}_probability": 0.0 for name in ("noise", "blur", "contrast", "gamma")}
    still |= {f"{name}_probability": 0.0 for name in ("low_resolution", "gamma_inverted")}
    geometric = dataclasses.replace(chosen, scale=0.0, shift=0.0, **still)
    plain = dataclasses.replace(geometric, zero_is_background=(False, False))
    expected, _ = augment.augment(key, jnp.concatenate([maps, maps], -1), label, plain, PATCH)
    np.testing.assert_allclose(moved[..., 2], expected[..., 0], atol=1e-5)
    assert float(jnp.abs(moved[..., 2] - 1 - alone[..., 0]).max()) > 0.1


def test_equal_samples_are_augmented_differently(augmented: tuple[Any, ...]) -> None:
    run, image, label, _ = augmented
    image, label = (jnp.broadcast_to(array[:1], array.shape) for array in (image, label))
    out, _ = run(jax.random.key(1), image, label)
    for left, right in itertools.combinations(np.asarray(out)[:8], 2):
        assert (left != right).mean() > 0.5


def test_the_noise_of_equal_samples_differs() -> None:
    image, label = brains(1, PATCH)
    image, label = (jnp.repeat(array, 3, 0) for array in (image, label))
    noisy, _ = augment.augment(jax.random.key(1), image, label, augment.choose("none", noise=0.1))
    noise = (np.asarray(noisy) - image)[np.asarray(image) != 0].reshape(3, -1)
    assert abs(np.corrcoef(noise) - np.eye(3)).max() < 0.1
    # Their levels differ too.
    assert np.ptp(noise.std(1)) > 0.005


@pytest.mark.parametrize("name", [*COSTLY, "gamma_inverted"])
def test_a_part_of_probability_1_changes_every_sample(name: str) -> None:
    image, label = brains(3, PATCH)
    chosen = augment.choose("none", **{f"{name}_probability": 1.0})
    out, out_label = augment.augment(jax.random.key(0), image, label, chosen)
    changed = [bool((a != b).any()) for a, b in zip(out, image, strict=True)]
    # Blur and low resolution leave out half of the sequences, so perhaps all of a sample.
    assert sum(changed) >= (1 if name in ("blur", "low_resolution") else 3)
    if name not in ("rotation", "zoom_out", "elastic"):
        np.testing.assert_array_equal(out == 0, image == 0)
        np.testing.assert_array_equal(out_label, label)


def test_a_half_precision_batch_is_computed_in_float32() -> None:
    chosen = augment.choose("none", rotation_probability=1.0)
    image, label = brains(3, PATCH)
    half = image.astype(jnp.float16)
    out, _ = augment.augment(jax.random.key(0), half, label, chosen)
    full, _ = augment.augment(jax.random.key(0), half.astype(jnp.float32), label, chosen)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, full, atol=1e-5)


def test_what_cannot_be_drawn_is_not_in_the_program() -> None:
    image, label = brains(2, PATCH)

    def program(chosen: augment.AugmentOptions) -> str:
        return str(
            jax.make_jaxpr(lambda k: augment.augment(k, image, label, chosen))(jax.random.key(0))
        )

    plain = program(augment.PRESETS["plain"])
    assert "scan" not in plain
    assert "cond" not in plain
    only_blur = program(augment.choose("none", blur_probability=0.5))
    assert only_blur.count("cond[") == 1
    assert "gather" not in only_blur


def test_a_preset_gives_what_is_not_set() -> None:
    assert augment.choose() == augment.AugmentOptions()
    assert augment.choose("nnunet", rotation=None, blur=None) == augment.PRESETS["nnunet"]
    chosen = augment.choose("nnunet", rotation=(-15, 15), scale=0.1)
    expected = dataclasses.replace(augment.PRESETS["nnunet"], rotation=(-15, 15), scale=0.1)
    assert chosen == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"flip_axes": "xw"}, "augment.flip_axes is 'xw'"),
        ({"preset": "nnu-net"}, r"augment.preset is 'nnu-net': .*nnunet.*did you mean 'nnunet'"),
        ({"zoom_out": (1.4, 0.7)}, r"augment.zoom_out is \(1.4, 0.7\).*smaller one first"),
        ({"blur": (-1.0, 1.0)}, r"augment.blur is \(-1.0, 1.0\)"),
        ({"contrast": (0.5,)}, r"augment.contrast is \(0.5,\): give two numbers"),
        ({"elastic": (0.0, 20.0)}, r"augment.elastic is \(0.0, 20.0\).*from 0 to 12.8"),
        ({"low_resolution": (0.5, 1.5)}, r"augment.low_resolution is \(0.5, 1.5\)"),
        ({"rotation": (-30.0, float("nan"))}, r"augment.rotation is"),
        ({"gamma": (0.0, 1.5)}, r"--config.augment.gamma='0.7,1.5'"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        augment.choose(**values)


# --- Several devices ----------------------------------------------------------------------------


def test_a_batch_over_four_devices_is_augmented_as_on_one(tmp_path: pathlib.Path) -> None:
    # The device count is fixed when JAX starts: this file is run as a script.
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "4",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        # Without the older emitters (conftest.py), which round otherwise on a mesh.
        "XLA_FLAGS": "",
    }
    done = commands.python(__file__, tmp_path / "out.npz", env=environment)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out.npz") as saved:
        np.testing.assert_array_equal(saved["2x2/label"], saved["none/label"])
        np.testing.assert_allclose(saved["2x2/image"], saved["none/image"], atol=1e-6)


def _augment_on_meshes(output: str) -> None:
    from kdnet_jax.parallel import sharding

    chosen = everything()
    batch = brains(4, augment.source_patch((8, 8, 8), chosen))
    arrays = {}
    for name in ("none", "2x2"):
        mesh = None if name == "none" else sharding.make_mesh(*map(int, name.split("x")))
        placed = batch if mesh is None else sharding.to_global(batch, mesh)
        run = jax.jit(augment.augment, static_argnames=("options", "patch", "mesh"))
        done = run(jax.random.key(0), *placed, options=chosen, patch=(8, 8, 8), mesh=mesh)
        if mesh is not None:
            assert all(array.sharding.spec[0] == "data" for array in done)
        arrays |= {f"{name}/image": done[0], f"{name}/label": done[1]}
    np.savez(output, **arrays)


if __name__ == "__main__":
    _augment_on_meshes(sys.argv[1])


# --- Channels without a background, and voxels that are no cubes ---------------------------------

MIXED = dataset_json.parse(
    {
        "name": "mixed",
        "channel_names": {"0": "stripped", "1": "CT"},
        "labels": {"background": 0, "lesion": 1},
        "kdnet": {
            "normalisation": {"stripped": "zscore_nonzero"},
            "statistics": {"ct": [-100, 300, 50, 80]},
        },
    },
    "dataset.json",
)


def test_options_are_fitted_to_channels_and_voxels() -> None:
    chosen = augment.choose("nnunet")
    assert augment.fitted(chosen, task_lib.GLIOMA, ("t1", "t2"), 2.0) is chosen
    assert augment.fitted(chosen, task_lib.GLIOMA, ("t1", "t2"), None) is chosen
    both = augment.fitted(chosen, MIXED, ("stripped", "ct"), (4.0, 2.0, 2.0))
    assert (both.zero_is_background, both.spacing) == ((True, False), (4.0, 2.0, 2.0))
    assert augment.fitted(chosen, MIXED, ("ct",), 1.0).zero_is_background == (False,)
    assert both.chances == chosen.chances
    image, label = brains(1, (8, 8, 8), 3)
    with pytest.raises(ValueError, match="3 channels"):
        augment.augment(jax.random.key(0), image, label, both)


def test_zero_is_background_only_where_the_channel_is_stripped() -> None:
    image, label = brains(3, PATCH)
    image = image.at[..., 1].set(image[..., 0])
    chosen = augment.fitted(
        everything(
            rotation_probability=0.0,
            zoom_out_probability=0.0,
            elastic_probability=0.0,
            flip_axes="",
        ),
        MIXED,
        ("stripped", "ct"),
        1.0,
    )
    out, _ = augment.augment(jax.random.key(2), image, label, chosen)
    background = np.asarray(image[..., 0] == 0)
    assert (np.asarray(out[..., 0]) == 0)[background].all()
    # Noise is everywhere in the other one, and its mean and range are those of all voxels.
    assert (np.asarray(out[..., 1]) != 0)[background].mean() > 0.99
    plain = augment.augment(
        jax.random.key(2),
        image,
        label,
        everything(
            rotation_probability=0.0,
            zoom_out_probability=0.0,
            elastic_probability=0.0,
            flip_axes="",
        ),
    )
    np.testing.assert_array_equal(out[..., 0], plain[0][..., 0])


def test_resampling_keeps_the_values_between_zero_and_others_without_a_background() -> None:
    # Half of the voxels are 0, the others 1; a move by a quarter of a voxel.
    image = jnp.asarray(np.indices((8, 8, 8))[0] >= 4, jnp.float32)[None].repeat(2, 0)
    label = jnp.zeros((8, 8, 8), jnp.uint8)
    bend = jnp.zeros((4, 4, 4, 3)).at[..., 0].set(0.25)
    out, _ = spatial.resample(image, label, jnp.eye(3), bend, (6, 6, 6), (True, False))
    np.testing.assert_allclose(out[0, :, 3, 3], [0, 0, 0, 1, 1, 1], atol=1e-6)
    np.testing.assert_allclose(out[1, :, 3, 3], [0, 0, 0.25, 1, 1, 1], atol=1e-6)


@pytest.mark.parametrize("spacing", [(4.0, 2.0, 2.0), (1.0, 3.0, 0.5)])
def test_rotations_are_rotations_in_space(spacing: tuple[float, float, float]) -> None:
    # An image that is linear in millimetres is resampled exactly.
    slopes, size, patch = np.array([0.3, -0.2, 0.7]), (30, 34, 36), (6, 8, 8)
    angles = jnp.array([[0.3, -0.2, 0.4]])
    drawn = spatial.Geometry(jnp.bool_(True), spatial.rotation_matrix(angles)[0], None)

    def places(shape: tuple[int, ...]) -> np.ndarray:
        axes = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, spacing, strict=True)]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)

    image = jnp.asarray(places(size) @ slopes, jnp.float32)[..., None]
    out, _ = spatial.place(
        image,
        jnp.zeros(size, jnp.uint8),
        spatial.in_voxels(drawn, spacing),
        patch,
        (False,),
    )
    rotated = places(patch) @ np.asarray(drawn.matrix, np.float64).T
    within = np.abs(rotated / spacing) < (np.array(size) - 1) / 2 - 1e-3
    assert within.all()
    np.testing.assert_allclose(out[0], rotated @ slopes, atol=1e-3)


def test_crops_of_flat_voxels_hold_what_is_rotated() -> None:
    chosen = augment.choose("none", rotation=(-90.0, 90.0), rotation_probability=1.0)
    flat = augment.fitted(chosen, task_lib.GLIOMA, ("t1",), (4.0, 1.0, 1.0))
    # Of 16 x 64 x 64 voxels of 4 x 1 x 1 mm, a cube of 64 mm: its diagonals, in steps of 8.
    assert augment.source_patch((16, 64, 64), flat) == (24, 96, 96)
    assert augment.source_patch((64, 64, 64), chosen) == (96, 96, 96)


def test_sequences_are_dropped_and_one_always_stays() -> None:
    image = jnp.ones((4000, 1, 1, 1, 4))
    out = augment.drop_sequences(jax.random.key(0), image, (0, 1, 3), 0.5)
    kept = np.asarray(out[:, 0, 0, 0])
    assert (kept[:, 2] == 1).all()  # not a sequence of the network
    kept = kept[:, [0, 1, 3]]
    assert set(np.unique(kept)) == {0, 1}
    assert kept.any(axis=1).all()
    # 1/2, and a third of the 1/8 in which all would have gone.
    np.testing.assert_allclose(kept.mean(axis=0), 1 / 2 + 1 / 24, atol=0.03)
    several = (kept.sum(axis=1) == 1).mean()
    assert several == pytest.approx(3 / 8 + 1 / 8, abs=0.03)


def test_what_a_sample_lacks_is_dropped_and_one_of_the_others_stays() -> None:
    image = jnp.ones((4000, 1, 1, 1, 4))
    there = jnp.tile(jnp.array([[True, False, True, True], [False, False, True, True]]), (2000, 1))
    key = jax.random.key(0)
    kept = np.asarray(augment.drop_sequences(key, image, (0, 1, 3), 0.5, there)[:, 0, 0, 0])
    assert (kept[:, 2] == 1).all()  # not a sequence of the network
    assert not kept[:, 1].any()
    # Of two sequences each stays in 1/2, and in half of the 1/4 in which both would have gone.
    np.testing.assert_allclose(kept[::2, [0, 3]].mean(axis=0), 1 / 2 + 1 / 8, atol=0.03)
    assert kept[::2, [0, 3]].any(axis=1).all()
    np.testing.assert_array_equal(kept[1::2, [0, 3]], np.tile([0, 1], (2000, 1)))
    # None is dropped but what is lacking.
    kept = augment.drop_sequences(key, image, (0, 1, 2, 3), 0.0, there)[:, 0, 0, 0]
    np.testing.assert_array_equal(kept, there)
