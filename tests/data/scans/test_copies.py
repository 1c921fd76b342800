"""Two sequences that are one image, whatever was done to the copy."""

import itertools
import pathlib

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from kdnet_jax.data.records import building
from kdnet_jax.data.scans import copies, intensities, prepare
from kdnet_jax.data.sources import cases
from kdnet_jax.errors import UserError

SHAPE = (40, 36, 32)
BRAIN = np.zeros(SHAPE, bool)
BRAIN[5:35, 5:31, 5:27] = True
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


def sequences() -> dict[str, np.ndarray]:
    """A T1 and a T1ce of one anatomy, alike but for 10 % of noise each, and a FLAIR."""
    rng = np.random.default_rng(0)
    anatomy, other = (ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.2) * 10 for _ in range(2))
    looks = {"t1": anatomy, "t1ce": 0.9 * anatomy + 0.3 * other, "flair": 0.5 * other - anatomy}
    return {
        name: np.where(BRAIN, 500 + 100 * look + rng.normal(0, 20, SHAPE), 0).astype(np.float32)
        for name, look in looks.items()
    }


def _halved(volume: np.ndarray) -> np.ndarray:
    small = ndimage.zoom(volume, 0.5, order=1)
    return ndimage.zoom(small, 2, order=1)


CHANGES = {
    "none": lambda v: v,
    "scaled": lambda v: np.where(v != 0, 0.37 * v + 11, 0),
    "8 bits": lambda v: np.round(v / v.max() * 255).astype(np.uint8),
    "inverted": lambda v: np.where(v != 0, 1500 - v, 0),
    "gamma 0.6": lambda v: v.clip(0) ** 0.6,
    "gamma 1.8": lambda v: v.clip(0) ** 1.8,
    "shifted by half a voxel": lambda v: ndimage.shift(v, (0.5, 0.5, 0.5), order=1),
    "shifted by splines": lambda v: ndimage.shift(v, (0.3, -0.6, 0.5), order=3),
    "blurred": lambda v: ndimage.gaussian_filter(v, 0.8),
    "noise of 2 %": lambda v: np.where(
        v != 0, v + np.random.default_rng(1).normal(0, 0.02 * v[v != 0].std(), v.shape), 0
    ),
}


def prepared(images: dict[str, np.ndarray]) -> prepare.PreparedCase:
    return prepare.prepare_arrays(
        images, AFFINE, None, spacing=None, case_id="anna", patient_id="anna"
    )


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_refused_by_name(change: str) -> None:
    images = sequences()
    images["t1ce"] = CHANGES[change](images["flair"])
    with pytest.raises(UserError) as raised:
        prepared(images)
    message = str(raised.value)
    assert message.startswith("anna, flair: flair repeats t1ce (anna, t1ce)")
    assert "Replace the one that is a copy" in message


def test_true_sequences_are_taken() -> None:
    images = sequences()
    both = BRAIN & (images["t1"] != 0)
    assert np.corrcoef(images["t1"][both], images["t1ce"][both])[0, 1] > 0.85
    assert prepared(images).modalities == ("t1", "t1ce", "flair")


def test_three_of_a_kind_are_named_once_each() -> None:
    image = sequences()["t1"]
    scores = intensities.z_score(image, BRAIN, "scan")
    sample = copies.sample(scores, copies.places(BRAIN))
    names = dict.fromkeys(("t1", "t1ce", "flair"), "scan")
    found = copies.repeated(dict.fromkeys(names, sample), names)
    assert {name: str(error)[6:24] for name, error in found.items()} == {
        "t1ce": "t1ce repeats t1 (s",
        "flair": "flair repeats t1 (",
    }


def test_air_around_heads_makes_no_copies() -> None:
    """Two heads that have nothing in common but where they are."""
    rng = np.random.default_rng(3)
    heads = {}
    for name in ("t1", "flair"):
        air = rng.uniform(1, 3, SHAPE)
        tissue = 100 + 3 * rng.normal(size=SHAPE)
        heads[name] = intensities.z_score(np.where(BRAIN, tissue, air), air > 0, name)
    everywhere = np.ones(SHAPE, bool)
    assert np.corrcoef(heads["t1"].ravel(), heads["flair"].ravel())[0, 1] > 0.99
    samples = [copies.sample(head, copies.places(everywhere)) for head in heads.values()]
    assert copies.likeness(*samples) < 0.3


def test_brains_that_do_not_overlap_are_no_copies() -> None:
    scores = intensities.z_score(sequences()["t1"], BRAIN, "scan")
    halves = [scores * (np.arange(32) < 16), scores * (np.arange(32) >= 16)]
    voxels = copies.places(BRAIN)
    assert copies.likeness(*(copies.sample(half, voxels) for half in halves)) == 0


def test_a_slab_of_three_slices() -> None:
    images = {name: image[:, :, 12:15] for name, image in sequences().items()}
    prepared(images)
    images["flair"] = 3 * images["t1"]
    with pytest.raises(UserError, match="flair repeats t1 "):
        prepared(images)


def write_cohort(root: pathlib.Path) -> None:
    """Three cases of BraTS 2021; the second has its FLAIR in the place of the T1ce."""
    for number in range(3):
        images = sequences()
        images["t2"] = images["flair"][::-1]
        if number == 1:
            images["t1ce"] = ndimage.shift(images["flair"], (0.5, 0, 0), order=1)
        name = f"BraTS2021_{number:05}"
        (root / name).mkdir(parents=True)
        label = np.zeros(SHAPE, np.uint8)
        label[10 + number : 16, 10:16, 10:16] = 4
        for sequence, data in {**images, "seg": label}.items():
            path = root / name / f"{name}_{sequence}.nii.gz"
            nib.save(nib.Nifti1Image(data, AFFINE), path)


@pytest.mark.once
def test_a_build_names_the_case_and_can_leave_it_out(tmp_path: pathlib.Path) -> None:
    write_cohort(tmp_path / "scans")

    def build(**options: bool) -> object:
        return building.build_scans(
            tmp_path / "built", tmp_path / "scans", spacing=2.0, progress=False, **options
        )

    with pytest.raises(UserError) as raised:
        build()
    for word in ("00001_flair.nii.gz: flair repeats t1ce", "00001_t1ce.nii.gz)", "skip_bad_cases"):
        assert word in str(raised.value)
    built = build(skip_bad_cases=True)
    assert [summary.case_id[-1] for summary in built.summaries] == ["0", "2"]


@pytest.mark.once
def test_real_cases(sample_dir: pathlib.Path) -> None:
    case = cases.find_cases(sample_dir).cases[0]
    images = {name: volume.data for name, volume in prepare.read_images(case.images).items()}
    masks = {name: volume != 0 for name, volume in images.items()}
    images["t1"] = ndimage.shift(images["t1ce"].astype(np.float32), (0.5, 0.5, 0.5), order=1)
    masks["t1"] = images["t1"] != 0
    voxels = copies.places(masks["flair"])
    samples = {
        name: copies.sample(intensities.z_score(volume, masks[name], name), voxels)
        for name, volume in images.items()
    }
    for one, other in itertools.combinations(samples, 2):
        copied = {one, other} == {"t1", "t1ce"}
        assert (copies.likeness(samples[one], samples[other]) >= copies.COPIED) == copied
