"""Skull-stripping by a tool that is installed.

The weights of HD-BET and SynthStrip are no part of a test. Stand-ins with the same command lines
and the same files, taken from HD-BET 1.1, HD-BET 2.0.1 and FreeSurfer's mri_synthstrip, find the
brain of a made-up head by its intensities.
"""

import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import nibabel as nib
import numpy as np
import pytest

import kdnet_jax
from kdnet_jax import task as task_lib
from kdnet_jax.data.scans import geometry, nifti, prepare, spaces
from kdnet_jax.errors import UserError
from kdnet_jax.prediction import stripping
from tests.helpers import commands, dicom_series, forks

pytestmark = pytest.mark.once

SCALP, AIR = 3000, 3
HD_BET_2 = """
parser.add_argument("-i", "--input", required=True)
parser.add_argument("-o", "--output")
parser.add_argument("-device", default="cuda")
parser.add_argument("--disable_tta", action="store_true")
parser.add_argument("--save_bet_mask", action="store_true")
parser.add_argument("--no_bet_image", action="store_true")
parser.add_argument("--verbose", action="store_true")
words = parser.parse_args()
assert words.device == "cpu" and words.save_bet_mask
mask = words.output[:-7] + "_bet.nii.gz"
"""
HD_BET_1 = """
parser.add_argument("-i", "--input", required=True)
parser.add_argument("-o", "--output")
parser.add_argument("-mode", default="accurate")
parser.add_argument("-device", default="0")
parser.add_argument("-tta", default=1, type=int)
parser.add_argument("-pp", default=1, type=int)
parser.add_argument("-s", "--save_mask", default=1, type=int)
words = parser.parse_args()
assert words.device == "cpu" and words.save_mask
mask = words.output[:-7] + "_mask.nii.gz"
"""
SYNTHSTRIP = """
parser.add_argument("-i", "--image", required=True)
parser.add_argument("-o", "--out")
parser.add_argument("-m", "--mask")
parser.add_argument("-g", "--gpu", action="store_true")
parser.add_argument("-b", "--border", default=1, type=int)
words = parser.parse_args()
words.input, mask = words.image, words.mask
"""
WRITES = """
image = nib.load(words.input)
data = np.asarray(image.dataobj)
inside = (data > 3) & (data < 3000)
nib.save(nib.Nifti1Image(inside.astype(np.uint8), image.affine), mask)
"""


def install(folder: pathlib.Path, command: str, parser: str, works: str = WRITES) -> pathlib.Path:
    """Writes a stand-in into a folder for the PATH; returns the folder."""
    folder.mkdir(exist_ok=True)
    path = folder / command
    start = f"#!{sys.executable}\nimport argparse, os, sys, time\nimport nibabel as nib\n"
    start += "import numpy as np\nparser = argparse.ArgumentParser()\n"
    path.write_text(start + parser + works, "utf-8")
    path.chmod(0o755)
    return folder


@pytest.fixture
def tools(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The one folder on the PATH; temporary files go to `tmp`, beside it."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


def find(asked: str = "auto") -> stripping.Stripper:
    return stripping.find(asked, task_lib.GLIOMA, ["t1ce"])


def head(brain: np.ndarray) -> np.ndarray:
    """A brain with a scalp 2 voxels away, and noisy air around it."""
    centre = (np.array(brain.shape) - 1) / 2
    grid = np.stack(np.indices(brain.shape), axis=-1) - centre
    distance = ((grid / (0.46 * np.array(brain.shape))) ** 2).sum(-1)
    air = np.random.default_rng(0).integers(1, AIR + 1, brain.shape)
    return np.where(brain > AIR, brain, np.where((distance > 0.9) & (distance < 1), SCALP, air))


def an_image(affine: np.ndarray, shape: tuple[int, int, int] = (32, 30, 28)) -> nifti.Volume:
    """A head whose brain is brighter to one end of each axis."""
    grid = np.stack(np.indices(shape), axis=-1) - (np.array(shape) - 1) / 2
    inside = ((grid / (0.3 * np.array(shape))) ** 2).sum(-1) < 1
    brain = np.where(inside, 500 + grid @ (9, 5, 2), 0)
    space = spaces.of_affine(affine)
    return nifti.from_memory(head(brain), space, "scan.nii.gz")


LPS = np.diag([-4.0, -4.0, 5.0, 1.0])
TURNED = np.array([[0, 0, 4.0, -40], [-5.0, 0, 0, 60], [0, -4.0, 0, 50], [0, 0, 0, 1]])


def case(**images: nifti.Volume) -> prepare.CaseFiles:
    return prepare.CaseFiles(images, None)


# ------------------------------------------------------------------------------ what is found


@pytest.mark.parametrize(
    ("command", "parser", "name"),
    [
        ("hd-bet", HD_BET_2, "hd-bet"),
        ("hd-bet", HD_BET_1, "hd-bet"),
        ("mri_synthstrip", SYNTHSTRIP, "synthstrip"),
        ("synthstrip-docker", SYNTHSTRIP, "synthstrip"),
    ],
)
def test_the_brain_is_what_the_tool_finds(
    command: str, parser: str, name: str, tools: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    install(tools, command, parser)
    stripper = find()
    assert (stripper.name, stripper.command) == (name, str(tools / command))
    scan = an_image(LPS)
    files, notes = stripping.without_skull(stripper, case(t1ce=scan), "header")
    assert not notes
    data = files.images["t1ce"].data
    np.testing.assert_array_equal(
        data, np.where((scan.data > 3) & (scan.data < 3000), scan.data, 0)
    )
    assert data.dtype == np.float32
    assert files.images["t1ce"].space is scan.space
    assert not [*(tmp_path / "tmp").iterdir()]


def test_auto_takes_the_first_and_a_name_that_one(tools: pathlib.Path) -> None:
    install(tools, "synthstrip-singularity", SYNTHSTRIP)
    assert find().name == "synthstrip"
    with pytest.raises(UserError, match=r"--strip=hd-bet: none of hd-bet is on the PATH"):
        find("hd-bet")
    install(tools, "hd-bet", HD_BET_2)
    assert find().name == "hd-bet"
    assert find("synthstrip").name == "synthstrip"
    with pytest.raises(UserError, match=r"--strip is 'hdbet'.*did you mean 'hd-bet'"):
        find("hdbet")


@pytest.mark.usefixtures("tools")
def test_where_none_is_installed_it_is_said_what_to_do() -> None:
    with pytest.raises(UserError) as told:
        find()
    for each in ("hd-bet, mri_synthstrip, synthstrip-docker", "pip install hd-bet", "--dicom"):
        assert each in str(told.value)


def test_a_network_trained_with_the_skull_on_refuses(tools: pathlib.Path) -> None:
    install(tools, "hd-bet", HD_BET_2)
    channels = (task_lib.Channel(name="t1", normalisation="zscore"), *task_lib.GLIOMA.channels[1:])
    task = dataclasses.replace(task_lib.GLIOMA, channels=channels)
    with pytest.raises(UserError, match=r't1 is normalised by "zscore".*Leave out --strip'):
        stripping.find("auto", task, ["t1", "t1ce"])
    assert stripping.find("auto", task, ["t1ce"])


# ------------------------------------------------------------------------- where the brain lies

# What is to the left of the middle, above it and in front of it.
OCTANT = """
image = nib.load(words.input)
assert nib.aff2axcodes(image.affine) == ("R", "A", "S"), image.affine
data = np.zeros(image.shape, np.uint8)
x, y, z = (size // 2 for size in data.shape)
data[:x, y:, z:] = 1
nib.save(nib.Nifti1Image(data, image.affine), mask)
"""


@pytest.mark.parametrize("affine", [LPS, TURNED, np.diag([3.0, -3.0, -6.0, 1.0])])
def test_the_tool_sees_the_head_upright(affine: np.ndarray, tools: pathlib.Path) -> None:
    install(tools, "mri_synthstrip", SYNTHSTRIP, OCTANT)
    scan = an_image(affine, (32, 30, 28))
    files, _ = stripping.without_skull(find(), case(t1ce=scan), "header")
    voxels = np.argwhere(files.images["t1ce"].data)
    assert len(voxels) == 32 * 30 * 28 / 8
    middle = nib.affines.apply_affine(affine, (np.array(scan.shape) - 1) / 2)
    places = nib.affines.apply_affine(affine, voxels) - middle
    assert (places[:, 0] < 0).all()
    assert (places[:, 1:] > 0).all()


def test_an_orientation_that_overrules_the_header_counts(tools: pathlib.Path) -> None:
    install(tools, "mri_synthstrip", SYNTHSTRIP, OCTANT)
    scan = an_image(LPS)
    files, _ = stripping.without_skull(find(), case(t1ce=scan), "RAS")
    data = files.images["t1ce"].data != 0
    assert data[:16, 15:, 14:].all()
    assert np.count_nonzero(data) == data.size / 8


def test_one_brain_for_all_sequences_of_a_case(tools: pathlib.Path) -> None:
    install(tools, "mri_synthstrip", SYNTHSTRIP)
    first = an_image(LPS)
    way = np.array([[1, -1], [0, 1], [2, -1]])
    affine = LPS @ nib.orientations.inv_ornt_aff(way, first.shape)
    turned = nib.orientations.apply_orientation(first.data, way) * 0.5 + 7
    other = nifti.from_memory(turned, spaces.of_affine(affine), "t2.nii.gz")
    files, _ = stripping.without_skull(find(), case(t1ce=first, t2=other), geometry.HEADER)
    brain = nib.orientations.apply_orientation(files.images["t1ce"].data != 0, way)
    np.testing.assert_array_equal(files.images["t2"].data, np.where(brain, other.data, 0))
    moved = affine.copy()
    moved[:3, 3] += 2
    away = dataclasses.replace(other, space=spaces.of_affine(moved))
    with pytest.raises(UserError, match=r"t2\.nii\.gz: its voxels do not lie where.*one grid"):
        stripping.without_skull(find(), case(t1ce=first, t2=away), geometry.HEADER)


def test_what_is_stripped_already_stays_as_it_is(tools: pathlib.Path) -> None:
    install(tools, "hd-bet", HD_BET_2, "sys.exit('never called')")
    scan = an_image(LPS)
    data = np.where((scan.data > AIR) & (scan.data < SCALP), scan.data, 0)
    files = case(t1ce=dataclasses.replace(scan, data=data))
    found, notes = stripping.without_skull(find(), files, "header")
    assert found is files
    assert "the skull is off already" in notes[0]


# -------------------------------------------------------------------------------- what fails

SAYS_WHY = "print('\\n'.join(f'line {n}' for n in range(20)))\nsys.exit(3)"
OTHER_GRID = WRITES.replace("inside.astype", "inside[1:].astype")
MOVED = WRITES.replace("image.affine)", "image.affine + np.eye(4, k=3))")


@pytest.mark.parametrize(
    ("works", "says"),
    [
        (SAYS_WHY, r"failed \(exit 3\)\.\n  line 12\n(.*\n)*  line 19\nTry it by hand, or strip"),
        ("print('no license')", r"wrote no mask of the brain\.\n  no license"),
        (OTHER_GRID, r"a mask of 31 x 30 x 28 voxels, not on the scan's grid"),
        (MOVED, r"a mask of 32 x 30 x 28 voxels, not on the scan's grid"),
        (WRITES.replace("> 3)", "> 9999)"), r"a mask of 0 ml, 0% of the scan; expected a brain"),
        (
            WRITES.replace("(data > 3) & (data < 3000)", "data > 0"),
            r"a mask of 2150 ml, 100% of the scan",
        ),
        ("open(mask, 'w').write('no image')", r"a mask that cannot be read \(.*brain_bet\.nii\.gz"),
    ],
)
def test_what_a_tool_does_wrong_is_told(
    works: str, says: str, tools: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    install(tools, "hd-bet", HD_BET_2, works)
    with pytest.raises(UserError) as told:
        stripping.without_skull(find(), case(t1ce=an_image(LPS)), "header")
    assert re.search(says, str(told.value)), str(told.value)
    assert not [*(tmp_path / "tmp").iterdir()]


def test_a_tool_that_does_not_start_is_told_before_anything_is_done(tools: pathlib.Path) -> None:
    install(tools, "hd-bet", "raise ImportError('no torch')\n")
    with pytest.raises(UserError, match=r"(?s)--strip: .*hd-bet failed \(exit 1\).*no torch"):
        find()
    (tools / "hd-bet").write_text("#!/no/such/python\n", "utf-8")
    stripping._stripper.cache_clear()
    with pytest.raises(UserError, match=r"--strip: .*hd-bet cannot be started \(No such file"):
        find()


# ------------------------------------------------------------------------------- the command


@pytest.fixture
def scans(tiny_cohort: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A head as DICOM (`series`), and `stripped.nii.gz`, what is left without its skull."""
    image = nib.load(min(tiny_cohort.glob("*/*_t1ce.nii.gz")))
    data = head(np.asarray(image.dataobj))
    dicom_series.save(tmp_path / "series", dicom_series.datasets(data, image.affine))
    stripped = np.where((data > AIR) & (data < SCALP), data, 0).astype(np.int16)
    nib.save(nib.Nifti1Image(stripped, image.affine), tmp_path / "stripped.nii.gz")
    return tmp_path


def environment(tools: pathlib.Path) -> dict[str, str]:
    return os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"}


def test_a_raw_series_is_segmented_in_one_call(
    scans: pathlib.Path, smoke_student: commands.Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = environment(install(scans / "bin", "hd-bet", HD_BET_2))
    run = f"--checkpoint={smoke_student.folder}"
    raw, mask = f"--input={scans / 'series'}", scans / "mask.dcm"
    done = commands.run("predict", run, raw, f"--output={mask}", "--strip=auto", env=env)
    assert done.returncode == 0, done.stderr
    assert f"skulls are taken off by hd-bet: {scans}/bin/hd-bet" in done.stdout
    assert re.search(r"read [\d.]+ s, strip [\d.]+ s, prepare", done.stdout)
    assert "skull seems to be on" not in done.stdout
    words = [f"--input={scans / 'stripped.nii.gz'}", f"--dicom={scans / 'series'}"]
    done = commands.run("predict", run, *words, f"--output={scans / 'by_hand.dcm'}", env=env)
    assert done.returncode == 0, done.stderr
    ours, theirs = (_segments(path) for path in (mask, scans / "by_hand.dcm"))
    assert ours.any()
    np.testing.assert_array_equal(ours, theirs)
    # From Python, and the same scan with its skull is another one.
    monkeypatch.setenv("PATH", env["PATH"])
    model = kdnet_jax.load(smoke_student.folder)
    found = model.segment(scans / "series", strip="auto")
    again = model.segment(scans / "stripped.nii.gz", strip="auto")
    np.testing.assert_allclose(sum(found.volumes_ml.values()), sum(again.volumes_ml.values()))
    assert "the skull is off already" in again.notes[0]


def _segments(path: pathlib.Path) -> np.ndarray:
    import highdicom

    return highdicom.seg.segread(path).get_volume().array


def test_resume_tells_stripped_from_not(
    scans: pathlib.Path, smoke_student: commands.Finished
) -> None:
    env = environment(install(scans / "bin", "hd-bet", HD_BET_2))
    words = [f"--checkpoint={smoke_student.folder}", f"--input={scans / 'series'}"]
    words += [f"--output={scans / 'mask.nii.gz'}"]
    done = commands.run("predict", *words, "--strip=auto", env=env)
    assert done.returncode == 0, done.stderr
    done = commands.run("predict", *words, "--strip=hd-bet", "--resume", env=env)
    assert (done.returncode, "1 of 1 scans are finished" in done.stdout) == (0, True), done.stderr
    done = commands.run("predict", *words, "--resume", env=env)
    assert done.returncode == 2
    assert "was not made by these checkpoints with these flags" in done.stderr


def test_a_command_that_is_stopped_leaves_no_scan_behind(
    scans: pathlib.Path, smoke_student: commands.Finished
) -> None:
    """While the tool works, its folder holds the scan of a patient."""
    waits = "open(os.path.dirname(words.input) + '/../started', 'w').close()\ntime.sleep(300)"
    env = environment(install(scans / "bin", "hd-bet", HD_BET_2, waits))
    (scans / "tmp").mkdir()
    words = ["predict", f"--checkpoint={smoke_student.folder}", f"--input={scans / 'series'}"]
    words += [f"--output={scans / 'mask.nii.gz'}", "--strip=auto"]
    running = subprocess.Popen(
        [sys.executable, "-m", f"kdnet_jax.{words[0]}", *words[1:]],
        cwd=commands.ROOT,
        env=forks.with_packages(env | {"TMPDIR": str(scans / "tmp")}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    started = scans / "tmp" / "started"
    while not started.exists():
        assert running.poll() is None
        time.sleep(0.1)
    assert [*(scans / "tmp").glob("*/scan.nii.gz")]
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 130
    assert [*(scans / "tmp").iterdir()] == [started]
    assert not (scans / "mask.nii.gz").exists()
