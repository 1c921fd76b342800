"""`--formats=docker`: the instructions of its Dockerfile are followed, without Docker."""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from kdnet_jax.interop.export import container
from tests.helpers import commands

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def exported(
    smoke_student: commands.Finished, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("images") / "student"
    words = [f"--checkpoint={smoke_student.folder}", f"--output={folder}", "--formats=docker"]
    done = commands.run("export", *words)
    assert done.returncode == 0, done.stderr
    assert f"docker build --tag=NAME {folder}" in done.stdout
    return folder


@pytest.fixture(scope="module")
def instructions(exported: pathlib.Path) -> dict[str, list[str]]:
    """Instruction -> what follows it, each time."""
    found: dict[str, list[str]] = {}
    for line in (exported / "Dockerfile").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, rest = line.partition(" ")
            found.setdefault(name, []).append(rest)
    return found


@pytest.fixture(scope="module")
def image(
    exported: pathlib.Path,
    instructions: dict[str, list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> pathlib.Path:
    """The root of the image: what is copied into it, and the listed distributions alone."""
    root = tmp_path_factory.mktemp("image") / "root"
    for line in instructions["COPY"]:
        *sources, target = line.split()
        place = root / target.removeprefix("/")
        for name in sources:
            if (exported / name).is_dir():
                shutil.copytree(exported / name, place, dirs_exist_ok=True)
            else:
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy(exported / name, place)
    (root / "site").mkdir()
    for line in (root / "app/requirements.txt").read_text("utf-8").splitlines():
        _install(line, root / "site")
    return root


def _install(line: str, site: pathlib.Path) -> None:
    """Links what a distribution has in site-packages, where it is of this version."""
    name, version = line.split("==")
    found = importlib.metadata.distribution(name)
    assert found.version == version
    for file in found.files or ():
        first = file.parts[0]
        if first not in ("..", "__pycache__") and not (site / first).exists():
            (site / first).symlink_to(pathlib.Path(str(found.locate_file(first))))


def _content(folder: pathlib.Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_image_segments_as_the_model_does(
    exported: pathlib.Path,
    image: pathlib.Path,
    instructions: dict[str, list[str]],
    tiny_cohort: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    data, scratch = tmp_path / "data", tmp_path / "tmp"
    data.mkdir()
    scratch.mkdir()
    shutil.copy(min(tiny_cohort.glob("*/*_t1ce.nii.gz")), data / "scan.nii.gz")
    # Whoever runs the image may have such a file beside the scans.
    (data / "numpy.py").write_text("raise SystemExit('taken from /data')\n", "utf-8")
    places = {"/app": image / "app", "/model": image / "model", "/tmp": scratch}
    (line,) = instructions["ENV"]
    env = dict(each.split("=", 1) for each in shlex.split(line))
    env = {name: str(places.get(value, value)) for name, value in env.items()}
    env["PYTHONPATH"] += f"{os.pathsep}{image / 'site'}"
    (line,) = instructions["ENTRYPOINT"]
    python, *words = json.loads(line)
    assert python == "python"
    assert words[-1] == "--checkpoint=/model"
    words[-1] = f"--checkpoint={image / 'model'}"
    before = _content(image)
    done = subprocess.run(
        [sys.executable, "-S", *words, "--input=scan.nii.gz", "--output=mask.nii.gz"],
        cwd=data,
        # Nothing of this process's environment; a temporary folder is /tmp of the image.
        env=env | {"TMPDIR": str(scratch)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert _content(image) == before
    assert {path.name for path in data.iterdir()} == {"scan.nii.gz", "numpy.py", "mask.nii.gz"}
    expected = tmp_path / "expected.nii.gz"
    scan = f"--input={data / 'scan.nii.gz'}"
    again = commands.run("predict", f"--checkpoint={exported}", scan, f"--output={expected}")
    assert again.returncode == 0, again.stderr
    masks = [np.asarray(nib.load(path).dataobj) for path in (data / "mask.nii.gz", expected)]
    np.testing.assert_array_equal(*masks)


def test_the_package_is_whole_and_under_its_licence(exported: pathlib.Path) -> None:
    copied = exported / "docker/kdnet_jax"
    source = commands.ROOT / "kdnet_jax"
    names = [
        {path.relative_to(each) for path in each.rglob("*") if "__pycache__" not in path.parts}
        for each in (copied, source)
    ]
    assert names[0] == names[1]
    assert (exported / "docker/LICENSE").read_text() == (commands.ROOT / "LICENSE").read_text()


def test_the_image_is_of_the_python_that_exported(instructions: dict[str, list[str]]) -> None:
    major, minor, *_ = sys.version_info
    assert instructions["FROM"] == [f"python:{major}.{minor}-slim"]
    assert instructions["USER"] != ["root"]


def test_what_is_listed_is_all_that_is_needed() -> None:
    pinned = dict(line.split("==") for line in container.pinned())
    assert pinned["jax"] == importlib.metadata.version("jax")
    assert {"flax", "orbax-checkpoint", "nibabel", "highdicom", "pydicom"} < pinned.keys()
    # Neither tools of this environment, nor what the image has no use for.
    assert not {"pytest", "ruff", "nilearn", "onednn-cpu-gomp"} & pinned.keys()
