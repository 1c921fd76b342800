import pathlib

import nibabel as nib
import numpy as np
import pytest

from kdnet_jax import dataset_json
from kdnet_jax.data.records import building
from kdnet_jax.data.scans import nifti, nifti_header
from kdnet_jax.data.sources import cases
from kdnet_jax.errors import UserError
from tests.helpers import made_tasks

itk = pytest.importorskip("SimpleITK")
ENDINGS = nifti_header.ITK_SUFFIXES
# Turned about the axis of the body; oblique, as scans are.
COS, SIN = np.cos(0.2), np.sin(0.2)
AFFINE = np.array(
    [[-1.5 * COS, 2 * SIN, 0, 10], [1.5 * SIN, 2 * COS, 0, 20], [0, 0, 3, -5], [0, 0, 0, 1]]
)


def write(path: pathlib.Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> pathlib.Path:
    """Writes voxels "x y z" where ITK, whose axes are LPS, has those of a RAS affine."""
    image = itk.GetImageFromArray(array.transpose(*reversed(range(array.ndim))), isVector=False)
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    if array.ndim == 3:
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    itk.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_image_lies_where_its_nifti_copy_lies(tmp_path: pathlib.Path, ending: str) -> None:
    array = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    nib.save(nib.Nifti1Image(array, AFFINE), tmp_path / "a.nii.gz")
    found = nifti.read_volume(write(tmp_path / f"a{ending}", array))
    expected = nifti.read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(found.data, expected.data)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)
    assert found.space.is_known
    header = nifti.read_header(found.path)
    assert header.shape == (5, 6, 7)
    np.testing.assert_array_equal(header.space.affine, found.affine)


@pytest.mark.parametrize("ending", ENDINGS)
def test_channels_are_the_last_axis(tmp_path: pathlib.Path, ending: str) -> None:
    array = np.random.default_rng(0).normal(size=(5, 6, 7, 2))
    path = write(tmp_path / f"a{ending}", array)
    np.testing.assert_allclose(nifti.read_volume(path, channels=True).data, array, rtol=1e-6)
    with pytest.raises(UserError, match="3 dimensions"):
        nifti.read_volume(path)
    vector = itk.GetImageFromArray(array.transpose(2, 1, 0, 3), isVector=True)
    itk.WriteImage(vector, str(path))
    found = nifti.read_volume(path, channels=True)
    np.testing.assert_allclose(found.data, array, rtol=1e-6)
    assert not found.space.is_known  # spacing 1, origin 0: the header says nothing


@pytest.mark.parametrize("ending", ENDINGS)
def test_labels_keep_their_type(tmp_path: pathlib.Path, ending: str) -> None:
    array = np.random.default_rng(0).integers(0, 3, (5, 6, 7)).astype(np.uint8)
    found = nifti.read_labels(write(tmp_path / f"a{ending}", array))
    assert found.data.dtype == np.uint8
    np.testing.assert_array_equal(found.data, array)


@pytest.mark.parametrize("ending", ENDINGS)
def test_damaged_files_are_refused(tmp_path: pathlib.Path, ending: str) -> None:
    path = write(tmp_path / f"a{ending}", np.arange(210, dtype=np.float32).reshape(5, 6, 7))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="damaged or cut off"):
        nifti.read_volume(path)
    path.write_bytes(b"none")
    with pytest.raises(UserError, match="damaged or cut off"):
        nifti.read_volume(path)
    with pytest.raises(UserError, match="every voxel is 1"):
        nifti.read_volume(write(path, np.ones((5, 6, 7), np.float32)))


def test_without_the_library_the_message_says_what_to_install(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.nrrd", np.arange(210.0).reshape(5, 6, 7))
    monkeypatch.setitem(__import__("sys").modules, "SimpleITK", None)
    with pytest.raises(UserError, match="pip install SimpleITK"):
        nifti.read_volume(path)


def test_a_dataset_of_nrrd_files_is_that_of_its_nifti_copies(tmp_path: pathlib.Path) -> None:
    folder = made_tasks.write_plain(tmp_path / "scans", 1)
    plain = dataset_json.parse(made_tasks.PLAIN, "p/dataset.json")
    expected = building.build_scans(
        tmp_path / "root", folder, task=plain, spacing=2.0, progress=False
    )[0]
    for path in folder.rglob("*.nii.gz"):
        volume = nifti.read_labels(path)
        write(path.with_name(path.name.replace(".nii.gz", ".nrrd")), volume.data, volume.affine)
        path.unlink()
    document = {**made_tasks.PLAIN, "file_ending": ".nrrd"}
    task = dataset_json.parse(document, "p/dataset.json")
    found = building.build_scans(tmp_path / "root", folder, task=task, spacing=2.0, progress=False)
    np.testing.assert_array_equal(found[0].image, expected.image)
    np.testing.assert_array_equal(found[0].label, expected.label)
    with pytest.raises(UserError, match=r"no \.mha file is in it"):
        cases.find_cases(
            folder, task=dataset_json.parse({**document, "file_ending": ".mha"}, "p/d")
        )
