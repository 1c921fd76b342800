"""Fixtures shared by all tests."""

import os
import pathlib
import tempfile

import pytest

from tests.helpers import commands, tiny_cases

# Small CPU tests: one set of XLA threads per worker is enough, and no accelerator is claimed.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What one test or command compiled, the next finds; before JAX is imported.
_XLA_CACHE = pathlib.Path(tempfile.gettempdir()) / f"kdnet_jax_tests_xla_{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_XLA_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Small programs run once or twice: less of LLVM's work on them saves half of the compilation. What
# XLA makes of a program before that is the same.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")


@pytest.fixture(scope="session")
def sample_dir() -> pathlib.Path:
    """Real BraTS 2021 cases: $KDNET_SAMPLE_DIR, or a folder brats2021_sample near the checkout."""
    near = pathlib.Path(__file__).parents[2].glob("*/brats2021_sample")
    folder = pathlib.Path(os.environ.get("KDNET_SAMPLE_DIR", next(near, "brats2021_sample")))
    if not folder.is_dir():
        pytest.skip(f"no sample cases at {folder}; set KDNET_SAMPLE_DIR to a BraTS 2021 folder")
    return folder


@pytest.fixture(scope="session")
def command_env() -> dict[str, str]:
    """The environment of commands: that of the tests, with its compilation cache."""
    return dict(os.environ)


@pytest.fixture(scope="session")
def tiny_cohort(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Eight tiny cases in the layout of BraTS 2021."""
    return tiny_cases.write_cohort(tmp_path_factory.mktemp("cohort"), 8)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder of the built datasets."""
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(scope="session")
def smoke_student(
    tiny_cohort: pathlib.Path,
    built: pathlib.Path,
    tmp_path_factory: pytest.TempPathFactory,
    command_env: dict[str, str],
) -> commands.Finished:
    """A student, and the teacher it had to train, by the real command on the tiny cohort."""
    folder = tmp_path_factory.mktemp("runs") / "student"
    words = ["--config=configs/student.py:smoke", f"--config.data.data_dir={tiny_cohort}"]
    words += [f"--config.data.root={built}", f"--workdir={folder}"]
    done = commands.run("main", *words, env=command_env)
    return commands.Finished(done.returncode, done.stdout, done.stderr, folder)
