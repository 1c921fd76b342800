"""DICOM series: which one is meant, what is wrong with one, and its voxels and place."""

import pathlib
import sys
import zipfile
from collections.abc import Callable
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom import uid

from kdnet_jax import task as task_lib
from kdnet_jax.data.scans import dicom, dicom_stack
from kdnet_jax.errors import UserError
from kdnet_jax.prediction import finding_scans
from tests.helpers import dicom_series

pytestmark = pytest.mark.once

SLICES = 12
DATA = np.random.default_rng(0).integers(0, 4000, (10, 8, SLICES))
# Oblique: turned about two axes; voxels of 1 x 1.5 x 4 mm.
_COS, _SIN = np.cos(0.3), np.sin(0.3)
_TURN = np.array([[1, 0, 0], [0, _COS, -_SIN], [0, _SIN, _COS]]) @ np.array(
    [[_COS, -_SIN, 0], [_SIN, _COS, 0], [0, 0, 1]]
)
AFFINE = np.eye(4)
AFFINE[:3, :3] = _TURN @ np.diag([-1.0, -1.5, 4.0])
AFFINE[:3, 3] = (80.0, 60.0, -20.0)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    return dicom_series.save(tmp_path / "scan", dicom_series.datasets(DATA, AFFINE))


def the_only(place: pathlib.Path) -> dicom.Series:
    (series,) = dicom.find(place)
    return series


def itk_affine(image: SimpleITK.Image) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return dicom_series.LPS @ affine


def test_voxels_and_place_are_those_of_simpleitk(folder: pathlib.Path) -> None:
    volume = dicom_stack.read(the_only(folder))
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    theirs = reader.Execute()
    np.testing.assert_array_equal(volume.data, SimpleITK.GetArrayFromImage(theirs).T)
    np.testing.assert_array_equal(volume.data, DATA)
    np.testing.assert_allclose(volume.affine, itk_affine(theirs), atol=1e-3)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-3)


def test_a_stack_that_is_tilted_a_little_lies_where_its_headers_say(tmp_path: pathlib.Path) -> None:
    images = dicom_series.datasets(DATA, AFFINE)
    for index, image in enumerate(images):  # 0.3 degrees: 0.02 mm a slice of 4 mm
        place = np.array(image.ImagePositionPatient) + index * (
            _STEP @ np.array([0, 0.02, 0]) / 1.5
        )
        image.ImagePositionPatient = [round(each, 6) for each in place]
    series = the_only(dicom_series.save(tmp_path, images))
    volume = dicom_stack.read(series)
    affine, shape = dicom_stack.grid(series)
    assert volume.data.shape == shape
    np.testing.assert_array_equal(volume.affine, affine)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=0.01)
    mask = (DATA.mean() < DATA).astype(np.uint8)
    turned, onto = dicom_stack.on_grid(series, mask, volume.affine)
    np.testing.assert_array_equal(turned, mask)
    np.testing.assert_array_equal(onto, affine)


def test_an_enhanced_series_is_its_classic_one(tmp_path: pathlib.Path) -> None:
    _enhanced(dicom_series.datasets(DATA, AFFINE)).save_as(tmp_path / "enhanced.dcm")
    for place in (tmp_path, tmp_path / "enhanced.dcm"):
        assert dicom.is_dicom(place)
        volume = dicom_stack.read(the_only(place))
        np.testing.assert_array_equal(volume.data, DATA)
        np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-3)


def _enhanced(classic: list[Any]) -> Any:
    return highdicom.legacy.LegacyConvertedEnhancedMRImage(
        classic, uid.generate_uid(), 6, uid.generate_uid(), 1
    )


@pytest.mark.parametrize("make", [list, lambda classic: [_enhanced(classic)]])
def test_a_series_without_frame_of_reference_is_read(
    make: Callable[[list[Any]], list[Any]], tmp_path: pathlib.Path
) -> None:
    """Anonymisers take it out, also of the series of four makers that dicom2nifti tests with."""
    images = make(dicom_series.datasets(DATA, AFFINE))
    for image in images:
        del image.FrameOfReferenceUID
    volume = dicom_stack.read(the_only(dicom_series.save(tmp_path, images)))
    np.testing.assert_array_equal(volume.data, DATA)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-3)


def test_an_enhanced_series_may_hold_all_in_its_frames(tmp_path: pathlib.Path) -> None:
    """As an enhanced series of Siemens does: no Shared Functional Groups."""
    image = _enhanced(dicom_series.datasets(DATA, AFFINE))
    (shared,) = image.SharedFunctionalGroupsSequence
    for frame in image.PerFrameFunctionalGroupsSequence:
        frame.update(shared)
    del image.SharedFunctionalGroupsSequence
    volume = dicom_stack.read(the_only(dicom_series.save(tmp_path / "whole", [image])))
    np.testing.assert_array_equal(volume.data, DATA)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-3)
    for frame in image.PerFrameFunctionalGroupsSequence:
        del frame.PixelMeasuresSequence
    with pytest.raises(UserError, match="does not say where its slices lie"):
        dicom_stack.check(the_only(dicom_series.save(tmp_path / "less", [image])))


def test_a_zip_is_its_folder(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    packed = tmp_path / "scan.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("export/README.txt", "no image")
        for each in folder.iterdir():
            archive.write(each, f"export/{each.name}")
    assert dicom.is_dicom(packed)
    np.testing.assert_array_equal(dicom_stack.read(the_only(packed)).data, DATA)


def test_scaled_and_compressed_voxels(tmp_path: pathlib.Path) -> None:
    scaled = {"RescaleSlope": 0.5, "RescaleIntercept": -3}
    images = dicom_series.datasets(DATA, AFFINE, changes=scaled)
    for image in images:
        image.compress(uid.RLELossless)
    volume = dicom_stack.read(the_only(dicom_series.save(tmp_path, images)))
    np.testing.assert_array_equal(volume.data, DATA * 0.5 - 3)


def test_the_same_image_in_two_folders_counts_once(folder: pathlib.Path) -> None:
    again = folder / "copy"
    again.mkdir()
    first = min(folder.glob("*.dcm"))
    (again / first.name).write_bytes(first.read_bytes())
    np.testing.assert_array_equal(dicom_stack.read(the_only(folder)).data, DATA)


# ---------------------------------------------------------------------- what is no regular stack


def _missing(images: list[Any]) -> None:
    del images[5]


def _two_missing(images: list[Any]) -> None:
    del images[5:7]


def _doubled(images: list[Any]) -> None:
    images[6].ImagePositionPatient = images[5].ImagePositionPatient


def _uneven(images: list[Any]) -> None:
    place = np.array(images[6].ImagePositionPatient) + 0.3 * (_STEP @ _DOWN)
    images[6].ImagePositionPatient = [round(each, 6) for each in place]


_STEP = np.array(dicom_series.LPS @ AFFINE)[:3, :3]
_DOWN = np.array([0.0, 0.0, 1.0])


def _tilted(images: list[Any]) -> None:
    for index, image in enumerate(images):
        place = np.array(image.ImagePositionPatient) + index * (_STEP @ np.array([0, 0.3, 0]))
        image.ImagePositionPatient = [round(each, 6) for each in place]


def _turned(images: list[Any]) -> None:
    images[3].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]


def _of_another_size(images: list[Any]) -> None:
    images[3].Rows, images[3].PixelData = 4, images[3].PixelData[: 4 * 10 * 2]


def _nowhere(images: list[Any]) -> None:
    del images[3].ImagePositionPatient


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (_missing, "1 slice is missing between instance 5 and instance 7, which are 8 mm apart"),
        (_two_missing, "2 slices are missing between instance 5 and instance 8"),
        (_doubled, r"instance 6 and instance 7 lie at the same place \(doubled slices: 1\)"),
        (_uneven, "the slices lie unevenly between instance 6 and instance 7"),
        (_tilted, r"gantry tilt, 6\.4 degrees"),
        (_turned, r"mixed orientations \(instance 1 and instance 4\)"),
        (_of_another_size, "instance 1 has 8 x 10 voxels of 1.5 x 1 mm, instance 4 4 x 10"),
        (_nowhere, "does not say where its slices lie"),
    ],
)
def test_what_is_no_stack_is_refused_by_name(
    fault: Callable[[list[Any]], None], says: str, tmp_path: pathlib.Path
) -> None:
    images = dicom_series.datasets(DATA, AFFINE)
    fault(images)
    # The order of the files does not follow that of the slices: messages name instances.
    series = the_only(dicom_series.save(tmp_path, images))
    with pytest.raises(UserError, match=says) as told:
        dicom_stack.check(series)
    assert "series 5 'AX T1 POST'" in str(told.value)
    assert "Patient" not in str(told.value)


def test_damage_is_told_plainly(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    victim = min(folder.glob("*.dcm"))
    victim.write_bytes(victim.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"cannot be read|decompressed"):
        dicom_stack.read(the_only(folder))
    (tmp_path / "no.zip").write_bytes(b"no archive")
    with pytest.raises(UserError, match="is no zip"):
        dicom.find(tmp_path / "no.zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no DICOM file"):
        dicom.find(tmp_path / "empty")


@pytest.mark.parametrize("name", ["pydicom", "highdicom"])
def test_without_the_library(
    name: str, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"pip install 'kdnet-jax\[dicom\]'"):
        dicom.find(folder)


# ------------------------------------------------------------------------------ which is meant


@pytest.fixture
def study(tmp_path: pathlib.Path) -> pathlib.Path:
    """A localiser, T1 before and after contrast, a derived image, a CT, a mask, a text."""
    place = tmp_path / "study"
    for number, description, kinds, modality, slices in (
        (1, "LOC", ("ORIGINAL", "PRIMARY", "LOCALIZER"), "MR", 6),
        (2, "AX T1", ("ORIGINAL", "PRIMARY"), "MR", SLICES),
        (5, "AX T1 POST", ("ORIGINAL", "PRIMARY"), "MR", SLICES),
        (6, "COR T1 POST", ("DERIVED", "SECONDARY", "MPR"), "MR", SLICES),
        (7, "CT", ("ORIGINAL", "PRIMARY"), "CT", SLICES),
        (8, "scout", ("ORIGINAL", "PRIMARY"), "MR", 3),
        (9, "mask of T1 POST", ("DERIVED", "PRIMARY"), "SEG", SLICES),
    ):
        images = dicom_series.datasets(
            DATA[..., :slices],
            AFFINE,
            number=number,
            description=description,
            kinds=kinds,
            changes={"Modality": modality},
        )
        dicom_series.save(place / str(number), images)
    (place / "notes.txt").write_text("no image")
    return place


CALLED = {2: "t1", 5: "t1ce"}


def chosen(place: pathlib.Path, modality: str, sequence: str, asked: str = "") -> tuple[Any, str]:
    found = dicom.find(place)
    called = {each.uid: CALLED.get(each.number, "") for each in found}
    series, notes = dicom.choose(found, modality, called, sequence, asked)
    return series.number, "\n".join(notes)


def test_the_series_is_found_by_its_tags(study: pathlib.Path) -> None:
    number, notes = chosen(study, "MR", "t1ce")
    assert number == 5
    assert "series 5 'AX T1 POST' (MR, 12 slices) is taken" in notes
    for reason in ("a localiser", "not called t1ce", "derived", "no MR", "fewer than 5 slices"):
        assert reason in notes
    assert "series 9 'mask of T1 POST' (SEG, 12 slices) is left aside: no scan" in notes
    assert chosen(study, "MR", "t1")[0] == 2
    assert chosen(study, "CT", "ct")[0] == 7


def test_what_cannot_be_told_is_refused_with_the_list(study: pathlib.Path) -> None:
    with pytest.raises(UserError, match="which is meant cannot be told") as told:
        chosen(study, "MR", "flair")
    for each in dicom.find(study):
        assert each.uid in str(told.value)
    assert "--series=NUMBER" in str(told.value)
    with pytest.raises(UserError, match="none can be used"):
        chosen(study / "1", "MR", "t1ce")
    with pytest.raises(UserError, match="none can be used"):
        chosen(study / "7", "MR", "t1ce")


def test_a_series_that_is_named_is_taken(study: pathlib.Path) -> None:
    number, notes = chosen(study, "MR", "t1ce", asked="6")
    assert (number, "is taken" in notes) == (6, True)
    (derived,) = (each for each in dicom.find(study) if each.number == 6)
    assert chosen(study, "MR", "t1ce", asked=derived.uid)[0] == 6
    with pytest.raises(UserError, match="--series=99: 0 series"):
        chosen(study, "MR", "t1ce", asked="99")
    # A derived image alone is taken.
    assert chosen(study / "6", "MR", "t1ce")[0] == 6


def test_a_series_of_another_sequence_is_warned_of(
    study: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert finding_scans.series_of(study / "5", "t1ce", task_lib.GLIOMA).number == 5
    assert "warning" not in caplog.text
    assert finding_scans.series_of(study / "2", "t1ce", task_lib.GLIOMA).number == 2
    assert "'AX T1' (MR, 12 slices) is named as t1, but it is taken as t1ce" in caplog.text


def test_folders_of_other_images_are_none(tmp_path: pathlib.Path, folder: pathlib.Path) -> None:
    assert dicom.is_dicom(folder)
    assert not dicom.is_dicom(tmp_path / "absent")
    (folder / "sub").mkdir()
    (folder / "sub/scan.nii.gz").write_bytes(b"")
    assert not dicom.is_dicom(folder / "sub")
    with pytest.raises(UserError, match=r"and images of another format \(sub/scan\.nii\.gz\)"):
        dicom.is_dicom(folder)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("a" * 200)
    assert not dicom.is_dicom(tmp_path / "text")


def test_a_header_that_does_not_say_what_it_should(tmp_path: pathlib.Path) -> None:
    images = dicom_series.datasets(DATA, AFFINE)
    for image in images:
        image.SamplesPerPixel = 3
    series = the_only(dicom_series.save(tmp_path, images))
    assert series.aside == "no scan"
    with pytest.raises(UserError, match="or has colours"):
        dicom_stack.check(series)


def test_real_files_of_pydicom() -> None:
    """One slice of a scanner's MR: its place is read, and it is no volume."""
    path = pathlib.Path(str(pydicom.data.get_testdata_file("MR_small.dcm")))
    series = the_only(path)
    assert (series.modality, len(series.planes)) == ("MR", 1)
    with pytest.raises(UserError, match="at least 2 slices"):
        dicom_stack.check(series)
