"""From a DICOM series to a DICOM SEG, by the command, on a real scan."""

import hashlib
import json
import pathlib
import shutil
import subprocess
from typing import Any

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK

import kdnet_jax
from kdnet_jax import task as task_lib
from kdnet_jax.data.scans import dicom, spaces
from kdnet_jax.errors import UserError
from kdnet_jax.prediction import dicom_seg
from tests.helpers import commands, dicom_series

pytestmark = pytest.mark.once

REGIONS = {"ET": (4,), "TC": (1, 4), "WT": (1, 2, 4)}


@pytest.fixture(scope="module")
def scan(tiny_cohort: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A T1ce as NIfTI, beside it the folder `series` with the same voxels."""
    folder = tmp_path_factory.mktemp("dicom")
    image = nib.load(min(tiny_cohort.glob("*/*_t1ce.nii.gz")))
    data = np.rint(np.asarray(image.dataobj))
    nib.save(nib.Nifti1Image(data.astype(np.int16), image.affine), folder / "scan.nii.gz")
    dicom_series.save(folder / "series", dicom_series.datasets(data, image.affine))
    return folder


def predict(run: pathlib.Path, *words: object) -> commands.Finished:
    return commands.run("predict", f"--checkpoint={run}", *map(str, words))


@pytest.fixture(scope="module")
def mask(scan: pathlib.Path, smoke_student: commands.Finished) -> Any:
    """The mask of the NIfTI file, as an image; the SEG of the series lies beside it."""
    output = scan / "mask.nii.gz"
    done = predict(smoke_student.folder, f"--input={scan / 'scan.nii.gz'}", f"--output={output}")
    assert done.returncode == 0, done.stderr
    done = predict(
        smoke_student.folder,
        f"--input={scan / 'series'}",
        f"--output={scan / 'mask.dcm'}",
        f"--manifest={scan / 'run.json'}",
    )
    assert done.returncode == 0, done.stderr
    assert "series 5 'AX T1 POST'" in done.stdout
    assert "P-0001" not in done.stdout + done.stderr
    return nib.load(output)


def test_segments_are_the_regions_of_the_mask(mask: Any, scan: pathlib.Path) -> None:
    found = highdicom.seg.segread(scan / "mask.dcm")
    assert found.segmentation_type == highdicom.seg.SegmentationTypeValues.BINARY
    volume = found.get_volume()
    values = np.asarray(mask.dataobj)
    assert values.any()
    affine = dicom_series.LPS @ volume.affine[:, [2, 1, 0, 3]]
    # The same voxel centres, whichever way the slices are counted.
    flips = np.linalg.inv(mask.affine) @ affine
    for number, (region, members) in enumerate(REGIONS.items()):
        description = found.get_segment_description(number + 1)
        assert description.segment_label.startswith(f"{region}: ")
        assert description.segmented_property_type.meaning == "Neoplasm"
        inside = np.argwhere(volume.array[..., number].transpose(2, 1, 0))
        theirs = {tuple(each) for each in np.rint(nib.affines.apply_affine(flips, inside))}
        ours = {tuple(each) for each in np.argwhere(np.isin(values, members)).astype(float)}
        assert theirs == ours


def test_the_record_names_the_series_and_nothing_of_the_patient(
    mask: Any, scan: pathlib.Path
) -> None:
    text = (scan / "run.json").read_text()
    assert "P-0001" not in text
    (row,) = json.loads(text)["scans"]
    files = [*(scan / "series").iterdir()]
    hashes = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    assert row["input"]["t1ce"] == {
        "file": str(scan / "series"),
        "series": pydicom.dcmread(files[0]).SeriesInstanceUID,
        "sha256": hashlib.sha256("".join(hashes).encode()).hexdigest(),
    }
    assert row["output"] == [str(scan / "mask.dcm")]


def test_it_refers_to_every_slice_and_the_patient(mask: Any, scan: pathlib.Path) -> None:
    found = pydicom.dcmread(scan / "mask.dcm")
    sources = [pydicom.dcmread(path) for path in (scan / "series").iterdir()]
    series = found.ReferencedSeriesSequence[0]
    assert {each.ReferencedSOPInstanceUID for each in series.ReferencedInstanceSequence} == {
        each.SOPInstanceUID for each in sources
    }
    assert series.SeriesInstanceUID == sources[0].SeriesInstanceUID
    assert found.NumberOfFrames == len(sources) * len(REGIONS)
    for name in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientBirthDate"):
        assert found[name].value == sources[0][name].value
    assert found["ContentCreatorName"].value == ""
    algorithm = found.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmName == "kdnet_jax"
    assert all("TrackingUID" in each for each in found.SegmentSequence)


def test_itk_reads_the_frames_of_each_segment(mask: Any, scan: pathlib.Path) -> None:
    """It knows neither segments nor their place: one image, its frames 1 mm apart."""
    frames = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(scan / "mask.dcm")))
    counts = frames.reshape(len(REGIONS), -1).astype(bool).sum(axis=1)
    values = np.asarray(mask.dataobj)
    assert counts.tolist() == [np.isin(values, each).sum() for each in REGIONS.values()]


@pytest.mark.skipif(not shutil.which("segimage2itkimage"), reason="dcmqi is not installed")
def test_dcmqi_reads_the_voxels_of_each_segment(
    mask: Any, scan: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    words = ["--inputDICOM", scan / "mask.dcm", "--outputDirectory", tmp_path, "-t", "nii"]
    done = subprocess.run(
        ["segimage2itkimage", *words, "-p", "seg"], capture_output=True, text=True, check=True
    )
    assert "absent" not in done.stdout + done.stderr
    values = np.asarray(mask.dataobj)
    for number, members in enumerate(REGIONS.values(), 1):
        image = nib.load(tmp_path / f"seg-{number}.nii.gz")
        way = spaces.turn(image.affine, image.shape, mask.affine, mask.shape)
        assert way is not None
        theirs = nib.orientations.apply_orientation(np.asarray(image.dataobj) > 0, way)
        np.testing.assert_array_equal(theirs, np.isin(values, members))


def test_a_series_without_frame_of_reference_is_refused_by_name(
    tmp_path: pathlib.Path,
) -> None:
    """It can be read, but no segmentation can refer to where it lies."""
    data = np.random.default_rng(0).integers(0, 4000, (8, 8, 6))
    images = dicom_series.datasets(data, np.diag([-1.0, -1.0, 3.0, 1.0]))
    for image in images:
        del image.FrameOfReferenceUID
    (series,) = dicom.find(dicom_series.save(tmp_path, images))
    about = {"kdnet_jax": "0.1.0", "parameters_sha256": ["0" * 64]}
    with pytest.raises(UserError, match=r"in FrameOfReferenceUID\).*ends in \.nii\.gz"):
        dicom_seg.check(series, task_lib.GLIOMA, about)


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy of dicom3tools is not installed")
@pytest.mark.usefixtures("mask")
def test_it_is_valid(scan: pathlib.Path) -> None:
    done = subprocess.run(
        ["dciodvfy", scan / "mask.dcm"], capture_output=True, text=True, check=False
    )
    assert "Error" not in done.stderr + done.stdout, done.stderr
    assert done.returncode == 0


def test_a_mask_of_a_series_is_that_of_its_file(
    mask: Any, scan: pathlib.Path, smoke_student: commands.Finished, tmp_path: pathlib.Path
) -> None:
    output = tmp_path / "mask.nii.gz"
    done = predict(smoke_student.folder, f"--input={scan / 'series'}", f"--output={output}")
    assert done.returncode == 0, done.stderr
    image = SimpleITK.ReadImage(str(output))
    same_grid = SimpleITK.Resample(image, SimpleITK.ReadImage(str(scan / "mask.nii.gz")))
    theirs = SimpleITK.GetArrayFromImage(same_grid).T
    np.testing.assert_array_equal(theirs, np.asarray(mask.dataobj))
    model = kdnet_jax.load(smoke_student.folder)
    np.testing.assert_array_equal(
        model.segment(scan / "series", series="5").mask, np.asarray(nib.load(output).dataobj)
    )
    with pytest.raises(UserError, match="series is '5', but t1ce is no DICOM"):
        model.segment(scan / "scan.nii.gz", series="5")


def test_a_stripped_scan_has_its_segmentation_on_the_series(
    mask: Any, scan: pathlib.Path, smoke_student: commands.Finished, tmp_path: pathlib.Path
) -> None:
    """A file that was converted from the series, its axes in another order."""
    image = nib.load(scan / "scan.nii.gz")
    turned = image.as_reoriented([[1, -1], [0, 1], [2, 1]])
    nib.save(turned, tmp_path / "stripped.nii.gz")
    words = [f"--input={tmp_path / 'stripped.nii.gz'}", f"--dicom={scan / 'series'}"]
    done = predict(smoke_student.folder, *words, f"--output={tmp_path / 'mask.dcm'}")
    assert done.returncode == 0, done.stderr
    ours, theirs = (
        highdicom.seg.segread(path).get_volume()
        for path in (tmp_path / "mask.dcm", scan / "mask.dcm")
    )
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)
    np.testing.assert_array_equal(ours.array, theirs.array)
    # Cut to the brain it has another grid.
    nib.save(image.slicer[1:], tmp_path / "stripped.nii.gz")
    done = predict(smoke_student.folder, *words, f"--output={tmp_path / 'other.dcm'}")
    assert done.returncode == 2
    assert "do not lie where those of" in done.stderr
    done = predict(smoke_student.folder, *words, f"--output={tmp_path / 'other.nii.gz'}")
    assert done.returncode == 2
    assert "--dicom: names the series" in done.stderr


def test_mistakes_are_told(
    scan: pathlib.Path, smoke_student: commands.Finished, tmp_path: pathlib.Path
) -> None:
    run, series = smoke_student.folder, scan / "series"
    for words, says in (
        ((f"--input={scan / 'scan.nii.gz'}", "--output=m.dcm"), "--dicom=FOLDER"),
        ((f"--input={scan / 'scan.nii.gz'}", "--output=m.nii.gz", "--series=5"), "--series=5"),
        ((f"--input={series}", "--output=m.nii.gz", "--series=6"), "--series=6: 0 series"),
        ((f"--input={series}", "--output=m.dcm", "--labels=brats2023"), "--labels"),
        ((f"--input={series}", "--output=m.dcm", "--resume"), "--resume"),
        ((f"--input={series}", f"--input={scan / 'scan.nii.gz'}", "--output=m.dcm"), "2 inputs"),
    ):
        done = commands.run("predict", f"--checkpoint={run}", *words, cwd=tmp_path)
        assert (done.returncode, says in done.stderr) == (2, True), done.stderr
    done = predict(run / "teacher", f"--input={series}", f"--output={tmp_path / 'm.nii.gz'}")
    assert done.returncode == 2
    assert "this network needs t1, t1ce, t2, flair" in done.stderr
    assert not [*tmp_path.iterdir()]
