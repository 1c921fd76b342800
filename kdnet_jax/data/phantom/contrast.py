"""From tissue and tumour to four MRI sequences: contrast, vessels, texture, bias field, noise."""

from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int16
from scipy import ndimage

from kdnet_jax.data.phantom import anatomy as anatomy_lib
from kdnet_jax.data.phantom import tumour as tumour_lib

# Signal of grey matter, white matter, fluid, solid core (no enhancement), necrosis, edema and
# enhancing tumour, in arbitrary units with white matter in T1 at 100. Edema is plain in T2 and
# FLAIR and hardly darker than its surroundings in T1 and T1ce; only T1ce shows enhancement.
_SIGNAL: Final[dict[str, tuple[float, ...]]] = {
    "t1": (72, 100, 30, 66, 48, 82, 74),
    "t1ce": (74, 100, 32, 68, 46, 83, 165),
    "t2": (95, 70, 190, 135, 175, 140, 120),
    "flair": (85, 72, 25, 125, 80, 150, 125),
}
# Scanner units differ by sequence and patient; see _SCALE_SPREAD.
_SCALE: Final = {"t1": 5.0, "t1ce": 6.0, "t2": 4.0, "flair": 3.5}
_SCALE_SPREAD: Final = 0.35
_TEXTURE, _BIAS, _NOISE = 0.055, 0.10, 4.5


def make_images(
    rng: np.random.Generator,
    anatomy: anatomy_lib.Anatomy,
    tumour: tumour_lib.Tumour,
    spacing: float,
) -> dict[str, Int16[np.ndarray, "x y z"]]:
    """Draws the four sequences; the background is exactly 0, as after skull-stripping."""
    shares = _shares(rng, anatomy, tumour, spacing)
    texture = anatomy_lib.smooth_noise(rng, anatomy.brain.shape, 3 / spacing)
    vessels = _vessels(rng, anatomy, spacing)
    return {
        name: _image(rng, name, shares, texture, vessels, anatomy.brain, spacing)
        for name in _SIGNAL
    }


def _shares(
    rng: np.random.Generator,
    anatomy: anatomy_lib.Anatomy,
    tumour: tumour_lib.Tumour,
    spacing: float,
) -> list[Float[np.ndarray, "x y z"]]:
    """Returns the share of each signal of `_SIGNAL` in every voxel; they add up to 1 in the brain.

    Borders of the tumour are soft: half a voxel of partial volume, and 2 mm for edema.
    """
    solid = (tumour.labels == tumour_lib.NCR) & ~tumour.necrosis
    hard = (solid, tumour.necrosis, tumour.labels == tumour_lib.ET)
    core = [ndimage.gaussian_filter(part.astype(np.float32), 0.4) for part in hard]
    edema = (tumour.labels == tumour_lib.ED).astype(np.float32)
    # Edema is no uniform fluid: its strength varies over a centimetre.
    strength = 1 + 0.22 * anatomy_lib.smooth_noise(rng, edema.shape, 8 / spacing)
    edema = ndimage.gaussian_filter(edema, 1.0 / spacing) * np.clip(strength, 0.4, 1.2)
    edema = np.minimum(edema, np.clip(1 - sum(core), 0, 1))
    normal = np.clip(1 - sum(core) - edema, 0, 1)
    tissue = [normal * share for share in (anatomy.grey, anatomy.white, anatomy.fluid)]
    return [*tissue, core[0], core[1], edema, core[2]]


def _vessels(
    rng: np.random.Generator, anatomy: anatomy_lib.Anatomy, spacing: float
) -> Float[np.ndarray, "x y z"]:
    """Returns where contrast agent shows outside of tumours: thin strands, dura, choroid plexus."""
    shape = anatomy.brain.shape
    strands = np.abs(anatomy_lib.smooth_noise(rng, shape, 9 / spacing)) + np.abs(
        anatomy_lib.smooth_noise(rng, shape, 9 / spacing)
    )
    thin = np.clip(1 - strands / 0.35, 0, 1) * (anatomy.white < 0.8)
    depth = np.asarray(ndimage.distance_transform_edt(anatomy.brain, sampling=spacing))
    dura = (depth < 3.5) * np.clip(anatomy_lib.smooth_noise(rng, shape, 12 / spacing), 0, 1)
    inside = ndimage.gaussian_filter(anatomy.fluid, 1.0) * (depth > 25)
    plexus = inside * np.clip(anatomy_lib.smooth_noise(rng, shape, 5 / spacing) - 0.6, 0, 1)
    return np.clip(0.8 * thin + 0.8 * dura + plexus, 0, 1).astype(np.float32)


def _image(
    rng: np.random.Generator,
    name: str,
    shares: list[Float[np.ndarray, "x y z"]],
    texture: Float[np.ndarray, "x y z"],
    vessels: Float[np.ndarray, "x y z"],
    brain: Bool[np.ndarray, "x y z"],
    spacing: float,
) -> Int16[np.ndarray, "x y z"]:
    # Every patient's tissue differs a little from the mean contrast.
    signals = np.asarray(_SIGNAL[name]) * rng.normal(1, 0.04, len(shares))
    image = sum(signal * share for signal, share in zip(signals, shares, strict=True))
    if name == "t1ce":
        image = image + 55 * vessels
    own = anatomy_lib.smooth_noise(rng, brain.shape, 4 / spacing)
    image = image * (1 + _TEXTURE * 0.7 * (texture + own))
    image = image * np.exp(_BIAS * anatomy_lib.smooth_noise(rng, brain.shape, 55 / spacing))
    noisy = np.hypot(image + rng.normal(0, _NOISE, brain.shape), rng.normal(0, _NOISE, brain.shape))
    scale = _SCALE[name] * np.exp(rng.normal(0, _SCALE_SPREAD))
    return np.where(brain, np.maximum(np.rint(noisy * scale), 1), 0).astype(np.int16)
