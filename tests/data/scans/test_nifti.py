"""Files that can be read, and a plain message for each that cannot."""

import errno
import gzip
import os
import pathlib
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest

from kdnet_jax.data.scans import label_table, nifti
from kdnet_jax.errors import UserError

AFFINE = np.array([[-1.0, 0, 0, 90], [0, -1, 0, 126], [0, 0, 1, -72], [0, 0, 0, 1]])


def _save(path: pathlib.Path, data: np.ndarray, affine: np.ndarray | None = AFFINE) -> pathlib.Path:
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def _scan(dtype: type = np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 99, (5, 6, 7)).astype(dtype)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII", "A.NII.GZ", "a b.Nii.gz", "a.nII"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
def test_reads_every_name_and_type(tmp_path: pathlib.Path, name: str, dtype: type) -> None:
    saved = _save(
        tmp_path / ("saved.nii.gz" if name.lower().endswith("gz") else "saved.nii"), _scan(dtype)
    )
    volume = nifti.read_volume(saved.rename(tmp_path / name))
    assert volume.data.dtype == np.float32
    np.testing.assert_array_equal(volume.data, _scan())
    np.testing.assert_array_equal(volume.affine, AFFINE)


def test_scaling_of_the_header_is_applied(tmp_path: pathlib.Path) -> None:
    image = nib.Nifti1Image(_scan(), AFFINE)
    image.header.set_slope_inter(0.5, 10)
    # set_slope_inter on save divides the data, so the values read are those given
    nib.save(image, tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    header = nib.Nifti1Header(bytes(raw[:348]))
    header["scl_slope"], header["scl_inter"] = 2.0, -5.0
    raw[:348] = header.binaryblock
    (tmp_path / "a.nii").write_bytes(bytes(raw))
    stored = np.frombuffer(bytes(raw[352:]), np.int16).reshape((5, 6, 7), order="F")
    np.testing.assert_allclose(nifti.read_volume(tmp_path / "a.nii").data, stored * 2.0 - 5.0)


@pytest.mark.parametrize("peak", [32767.0, 1e7, -500.0])
def test_large_and_negative_intensities_are_read(tmp_path: pathlib.Path, peak: float) -> None:
    data = _scan(np.float32)
    data[0, 0, 0] = peak
    assert nifti.read_volume(_save(tmp_path / "a.nii.gz", data)).data[0, 0, 0] == peak


def test_trailing_axes_of_length_one_are_dropped(tmp_path: pathlib.Path) -> None:
    path = _save(tmp_path / "a.nii", _scan()[..., None, None])
    assert nifti.read_volume(path).data.shape == (5, 6, 7)
    assert nifti.read_labels(path).data.shape == (5, 6, 7)


def test_four_dimensions_where_they_are_allowed(tmp_path: pathlib.Path) -> None:
    path = _save(tmp_path / "a.nii.gz", np.stack([_scan(), _scan() + 1], axis=-1))
    assert nifti.read_volume(path, channels=True).data.shape == (5, 6, 7, 2)
    with pytest.raises(UserError, match="5 x 6 x 7 x 2; expected a volume of 3 dim"):
        nifti.read_volume(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_labels_keep_their_type(tmp_path: pathlib.Path, dtype: type) -> None:
    data = nifti.read_labels(_save(tmp_path / "a.nii", _scan(dtype))).data
    assert data.dtype == dtype
    np.testing.assert_array_equal(data, _scan())


def _refused(path: pathlib.Path, *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        nifti.read_volume(path)
    message = str(caught.value)
    assert str(path) in message
    for part in parts:
        assert part in message
    assert "\n" not in message


def test_missing_file_folder_and_suffix(tmp_path: pathlib.Path) -> None:
    _refused(tmp_path / "none.nii.gz", "does not exist")
    (tmp_path / "folder.nii").mkdir()
    _refused(tmp_path / "folder.nii", "is a folder")
    (tmp_path / "scan.dcm").write_bytes(b"DICM")
    _refused(tmp_path / "scan.dcm", ".nii or .nii.gz")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>" * 50])
def test_text_or_nothing_with_the_name_of_a_scan(
    tmp_path: pathlib.Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    _refused(tmp_path / name, "download it again")


def test_gzipped_text(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"hello" * 200))
    _refused(tmp_path / "a.nii.gz", "download it again")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_cut_off_file(tmp_path: pathlib.Path, name: str, share: float) -> None:
    noise = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)
    path = _save(tmp_path / name, noise)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    _refused(path, "ownload it again")


def test_bytes_changed_within_gzip(tmp_path: pathlib.Path) -> None:
    noise = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)
    path = _save(tmp_path / "a.nii.gz", noise)
    content = bytearray(path.read_bytes())
    content[3000:3100] = bytes(100)
    path.write_bytes(bytes(content))
    _refused(path, "damaged", "CRC")
    with pytest.raises(UserError, match="damaged"):
        nifti.read_labels(path)


def test_wrong_dimensions_and_kinds(tmp_path: pathlib.Path) -> None:
    _refused(_save(tmp_path / "2d.nii", _scan()[0]), "6 x 7", "3 dimensions")
    _refused(_save(tmp_path / "slice.nii", _scan()[:, :, :1]), "at least 2 voxels")
    _refused(_save(tmp_path / "5d.nii", np.zeros((2, 2, 2, 2, 3), np.int16)), "2 x 2 x 2 x 2 x 3")
    colours = np.zeros((3, 3, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    _refused(_save(tmp_path / "rgb.nii", colours), "colours")
    _refused(_save(tmp_path / "complex.nii", _scan().astype(np.complex64)), "complex64")
    _refused(_save(tmp_path / "empty.nii", np.zeros((0, 3, 3), np.int16)), "at least 2 voxels")


def test_content_that_is_no_image(tmp_path: pathlib.Path) -> None:
    data = _scan(np.float32)
    data[0, 0, :3] = np.nan, np.inf, -np.inf
    _refused(_save(tmp_path / "nan.nii", data), "3 of 210 voxels are NaN or infinite")
    _refused(_save(tmp_path / "zero.nii", np.zeros((3, 3, 3), np.int16)), "every voxel is 0")


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_affine_that_cannot_be_inverted(tmp_path: pathlib.Path, value: float) -> None:
    path = _save(tmp_path / "a.nii", _scan())
    raw = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(raw[:348]))
    header["srow_x"] = value
    raw[:348] = header.binaryblock
    path.write_bytes(bytes(raw))
    _refused(path, "cannot be inverted")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize(
    ("dims", "part"), [((30000, 30000, 30000), "claims"), ((600, 600, 600), "cannot hold")]
)
def test_absurd_header_is_refused_before_memory_is_taken(
    tmp_path: pathlib.Path, name: str, dims: tuple[int, int, int], part: str
) -> None:
    header = nib.Nifti1Header()
    header.set_data_shape(dims)
    header.set_sform(AFFINE, code=1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    content = header.binaryblock + bytes(1000)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    _refused(tmp_path / name, part)


@pytest.mark.parametrize("name", ["m.nii", "m.nii.gz", "M.NII.GZ", "m.Nii.gz"])
def test_written_mask_lies_where_the_scan_lies(tmp_path: pathlib.Path, name: str) -> None:
    mask = (_scan() % 4).astype(np.uint8)
    oblique = AFFINE.copy()
    oblique[:3, :3] = nib.eulerangles.euler2mat(0.2, 0.1, -0.3) @ np.diag([1.0, 0.9, 5.5])
    nifti.write_mask(tmp_path / "new" / name, mask, oblique)
    assert nifti.read_labels(tmp_path / "new" / name).data.tolist() == mask.tolist()
    image = nib.load((tmp_path / "new" / name).rename(tmp_path / name.lower()))
    assert image.get_data_dtype() == np.uint8
    assert image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_array_equal(np.asarray(image.dataobj), mask)
    np.testing.assert_allclose(image.get_sform(coded=True)[0], oblique, atol=1e-5)
    np.testing.assert_allclose(image.get_qform(coded=True)[0], oblique, atol=1e-4)
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_image_keeps_type_and_place(tmp_path: pathlib.Path, dtype: type) -> None:
    scan = _scan(dtype)
    nifti.write_image(tmp_path / "new" / "a.nii.gz", scan, AFFINE)
    image = nib.load(tmp_path / "new" / "a.nii.gz")
    assert image.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asarray(image.dataobj), scan)
    np.testing.assert_array_equal(image.affine, AFFINE)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.nii.gz"]


def test_mask_needs_the_suffix_and_a_folder(tmp_path: pathlib.Path) -> None:
    mask = np.zeros((2, 2, 2), np.uint8)
    with pytest.raises(UserError, match=r"ends in \.nii"):
        nifti.write_mask(tmp_path / "m.png", mask, AFFINE)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        nifti.write_mask(tmp_path / "file" / "m.nii", mask, AFFINE)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_full_disk_leaves_the_old_mask(
    number: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No small file system is at hand in a test, so the write itself reports the full disk."""
    path = tmp_path / "m.nii.gz"
    mask = np.ones((5, 6, 7), np.uint8)
    nifti.write_mask(path, mask, AFFINE)
    before = path.read_bytes()

    def full(image: nib.Nifti1Image, to: pathlib.Path) -> None:
        to.write_bytes(b"half")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(nib, "save", full)
    with pytest.raises(UserError, match=r"disk is full.*needs up to .* MiB are free"):
        nifti.write_mask(path, mask, AFFINE)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.nii.gz"]


# ------------------------------------------------------------------------------- scaled labels


def test_labels_that_were_stored_scaled_are_whole_numbers_again(tmp_path: pathlib.Path) -> None:
    """A float array in an integer header gets nibabel's scaling: 1 comes back as 0.99998."""
    values = np.random.default_rng(0).choice([0, 1, 2, 4], (5, 6, 7))
    for dtype in (np.uint8, np.int16):
        header = nib.Nifti1Header()
        header.set_data_dtype(dtype)
        nib.save(nib.Nifti1Image(values.astype(np.float64), AFFINE, header), tmp_path / "a.nii")
        assert not np.array_equal(nib.load(tmp_path / "a.nii").get_fdata(), values)
        volume = nifti.read_labels(tmp_path / "a.nii")
        np.testing.assert_array_equal(volume.data, values)
        assert "stored scaled" in volume.notes[0]


@pytest.mark.parametrize(("value", "read"), [(1.009, 1.0), (0.991, 1.0), (1.011, 1.011)])
def test_only_what_is_nearly_whole_is_rounded(
    tmp_path: pathlib.Path, value: float, read: float
) -> None:
    data = np.zeros((5, 6, 7), np.float32)
    data[2, 2, 2], data[3, 3, 3] = value, 2
    volume = nifti.read_labels(_save(tmp_path / "a.nii", data))
    assert volume.data[2, 2, 2] == pytest.approx(read)
    assert bool(volume.notes) == (read == 1)


def test_a_mask_names_its_labels(tmp_path: pathlib.Path) -> None:
    """As TotalSegmentator reads them, and no voxel moves."""
    mask = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    names = {1: "necrosis & <core>", 4: "ET"}
    nifti.write_mask(tmp_path / "plain.nii.gz", mask, AFFINE)
    nifti.write_mask(tmp_path / "named.nii.gz", mask, AFFINE, names=names)
    plain, named = (nib.load(tmp_path / f"{name}.nii.gz") for name in ("plain", "named"))
    assert not plain.header.extensions
    (extension,) = named.header.extensions
    labels = ElementTree.fromstring(extension.get_content()).findall(".//LabelTable/Label")
    assert {int(label.get("Key")): label.text for label in labels} == names
    # FF6A13
    assert [float(labels[0].get(part)) * 255 for part in ("Red", "Green", "Blue")] == pytest.approx(
        [255, 106, 19], abs=0.01
    )
    assert label_table.read(named.header) == {1: (names[1], "#FF6A13"), 4: ("ET", "#F0E442")}
    np.testing.assert_array_equal(named.dataobj, mask)
    np.testing.assert_array_equal(nifti.read_labels(tmp_path / "named.nii.gz").data, mask)
    np.testing.assert_array_equal(named.affine, plain.affine)
