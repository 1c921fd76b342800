"""The wheel, installed into a folder of its own and used outside of the checkout."""

import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

import kdnet_jax
from tests.docs import doc_commands

pytestmark = pytest.mark.once

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("kdnet_jax", "configs", "data_builders")
# The first version of setuptools that knows the licence's field: pyproject.toml asks for it.
SETUPTOOLS = 77


def _pip(*words: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def _has_setuptools() -> bool:
    try:
        return int(importlib.metadata.version("setuptools").split(".")[0]) >= SETUPTOOLS
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The wheel, built from a copy: a build leaves folders behind."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.txt"):
        shutil.copy(ROOT / name, folder / "source")
    # Without it here, pip fetches it.
    here = ["--no-build-isolation"] if _has_setuptools() else []
    _pip("wheel", "--quiet", "--no-deps", *here, "--wheel-dir", folder, folder / "source")
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: pathlib.Path) -> pathlib.Path:
    """The folder into which the wheel alone is installed, with its programs in bin/."""
    target = wheel.parent / "installed"
    _pip("install", "--quiet", "--no-deps", "--target", target, wheel)
    return target


@pytest.fixture(scope="module")
def toured(
    installed: pathlib.Path,
    tmp_path_factory: pytest.TempPathFactory,
    command_env: dict[str, str],
) -> pathlib.Path:
    """A folder, empty before, after every command of docs/tour.md, with the preset of seconds."""
    folder = tmp_path_factory.mktemp("tour")
    smaller = {
        "configs/student.py": "configs/student.py:smoke",
        "configs/baseline.py": "configs/baseline.py:smoke",
        "student-phantom": "student-smoke",
        "baseline-phantom": "baseline-smoke",
        "--spacing=3": "--spacing=6",
    }
    for line in doc_commands.shell_lines(ROOT / "docs" / "tour.md"):
        line = doc_commands.replaced(line, smaller)
        done = doc_commands.run(line, installed, folder, command_env)
        if "--config=" in line:
            assert f"taking {installed}/configs/" in done.stdout
    return folder


def _program(
    name: str, *words: str, installed: pathlib.Path, folder: pathlib.Path
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [installed / "bin" / f"kdnet_jax.{name}", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_every_file_of_the_packages_is_in_it(wheel: pathlib.Path) -> None:
    source = wheel.parent / "source"
    files = [path for name in PACKAGES for path in (source / name).rglob("*") if path.is_file()]
    expected = {path.relative_to(source).as_posix() for path in files}
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {pathlib.Path(name).suffix for name in expected} > {".bib", ".cc", ".css", ".jinja"}
    assert expected == {name for name in names if ".dist-info/" not in name}


def test_what_it_says_of_itself(wheel: pathlib.Path) -> None:
    metadata = zipfile.ZipFile(wheel).read(f"kdnet_jax-{kdnet_jax.__version__}.dist-info/METADATA")
    lines = metadata.decode().splitlines()
    assert f"Version: {kdnet_jax.__version__}" in lines
    assert "License-Expression: Apache-2.0" in lines
    needed = {line.removeprefix("Requires-Dist: ") for line in lines if "extra ==" not in line}
    asked = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    assert {line for line in asked if line and not line.startswith("#")} <= needed


def test_every_command_is_a_program() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    commands = {
        f"kdnet_jax.{path.stem}"
        for path in (ROOT / "kdnet_jax").glob("*.py")
        if '__name__ == "__main__"' in path.read_text("utf-8")
    }
    assert set(project["scripts"]) == commands


def test_the_extra_for_tests_is_the_file_of_requirements() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    asked = (ROOT / "requirements-test.txt").read_text("utf-8").splitlines()
    assert project["optional-dependencies"]["test"] == [
        line for line in asked if line and not line.startswith(("#", "-r"))
    ]


def test_the_tour(toured: pathlib.Path) -> None:
    report = (toured / "runs" / "student-smoke" / "report.html").read_text("utf-8")
    assert "Synthetic data" in report
    assert "python -m kdnet_jax.main --config=configs/student.py:smoke" in report
    made = ("mask.nii.gz", "mask.png", "volumes.csv", "scores/evaluation/cases.csv")
    made += ("scans.png", "comparison/comparison.md", "runs/student-smoke/teacher/split.json")
    assert not [name for name in made if not (toured / name).is_file()]


def test_a_program_is_its_module(toured: pathlib.Path, installed: pathlib.Path) -> None:
    place = {"installed": installed, "folder": toured}
    done = _program("check_data", "--data_dir=scans", **place)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^cases +2, without error 2$", done.stdout, re.MULTILINE)
    mistaken = _program("main", "--config=configs/student.py:smok", **place)
    assert mistaken.returncode == 2
    assert mistaken.stderr.startswith("error: 'smok' is no preset")
    method = _program("main", "--config=configs/methods/hinton.py:smok", **place)
    assert method.stderr.startswith("error: 'smok' is no preset")


@pytest.mark.parametrize(
    "config", [(), ("--config", "configs/teacher.py"), ("--config=configs/x.py",)]
)
def test_an_installed_config_is_found(
    config: tuple[str, ...], installed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    words = [*config, "--config.train.steps=0"]
    done = _program("main", *words, installed=installed, folder=tmp_path)
    found = "--config=configs/x.py" not in config
    assert (
        "train.steps is 0" if found else "--config=configs/x.py: the config file"
    ) in done.stderr
    assert done.returncode == 2


def test_a_config_here_goes_before_the_installed_one(
    installed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "configs").mkdir()
    own = tmp_path / "configs" / "student.py"
    own.write_text("def get_config(preset=''):\n    raise ValueError('my own')\n", "utf-8")
    done = _program("main", "--config=configs/student.py", installed=installed, folder=tmp_path)
    assert done.returncode == 2
    assert "my own" in done.stderr
