"""Fixtures shared by all tests."""

import fcntl
import importlib.metadata
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator

import pytest

from tests.helpers import commands, fork_server, tiny_cases

# Small CPU tests: one set of XLA threads per worker is enough, and no accelerator is claimed.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What one test or command compiled, the next finds; before JAX is imported.
_XLA_CACHE = pathlib.Path(tempfile.gettempdir()) / f"kdnet_jax_tests_xla_{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_XLA_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Small programs run once or twice: without the work of LLVM on them compilation takes half as long;
# what XLA makes of a program before that is the same.
_QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# The older way from a fusion to LLVM takes half of the time of the newer one, which alone is left
# in later versions: they know no such flag.
if any(
    each.version.startswith("0.10.") for each in importlib.metadata.distributions(name="jaxlib")
):
    _QUICK_COMPILATION += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", _QUICK_COMPILATION)


# A worker takes a file at a time: with these last, one would work alone at the end.
_LONGEST = (
    *("test_wheel.py", "training/test_train.py", "interop/export/test_export.py"),
    *("experiment/test_studies.py", "docs/test_commands.py", "docs/test_tasks.py"),
    *("notebooks/test_colab.py", "test_kill.py", "bad_input/test_corpus.py"),
    *("training/test_multidevice.py", "parallel/test_several_processes.py"),
    *("benchmarks/test_parity.py", "test_faults.py", "interop/test_writing.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Brings the tests of the longest files to the front."""

    def place(item: pytest.Item) -> int:
        name = item.nodeid.partition("::")[0].removeprefix("tests/")
        return _LONGEST.index(name) if name in _LONGEST else len(_LONGEST)

    items.sort(key=place)


@pytest.fixture
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the drawing of a run's report, half of the time of a tiny run.

    For tests that look at other things than the report; forked commands have `report_free_env`.
    """
    monkeypatch.setattr("kdnet_jax.reports.run_report.write", fork_server.empty_report)


@pytest.fixture
def quick_compilation() -> Iterator[None]:
    """Leaves the code slow, for tests in which compiling takes nearly all of the time."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


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
def report_free_env(command_env: dict[str, str]) -> dict[str, str]:
    """The environment of forked commands whose report, an empty file then, nobody looks at."""
    return command_env | {fork_server.WITHOUT_REPORT: "1"}


def _once(
    factory: pytest.TempPathFactory, name: str, make: Callable[[pathlib.Path], None]
) -> pathlib.Path:
    """Returns a folder that the first worker to ask for it makes, for all workers of the session.

    It is made by `make`, and only read by the tests.
    """
    base = factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    shared.mkdir(exist_ok=True)
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = shared / f"{name}.done"
        if not done.exists():
            make(shared / name)
            done.touch()
    return shared / name


@pytest.fixture(scope="session")
def tiny_cohort(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Eight tiny cases in the layout of BraTS 2021."""
    return _once(tmp_path_factory, "cohort", lambda path: tiny_cases.write_cohort(path, 8))


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder of the built datasets; a build of one worker waits for the same of another."""
    return _once(tmp_path_factory, "datasets", pathlib.Path.mkdir)


@pytest.fixture(scope="session")
def smoke_student(
    tiny_cohort: pathlib.Path,
    built: pathlib.Path,
    tmp_path_factory: pytest.TempPathFactory,
    command_env: dict[str, str],
) -> commands.Finished:
    """A student, and the teacher it had to train, by the real command on the tiny cohort."""

    def make(folder: pathlib.Path) -> None:
        folder.mkdir()
        words = ["--config=configs/student.py:smoke", f"--config.data.data_dir={tiny_cohort}"]
        words += [f"--config.data.root={built}", f"--workdir={folder / 'student'}"]
        done = commands.run("main", *words, env=command_env)
        ended = [done.returncode, done.stdout, done.stderr]
        (folder / "ended.json").write_text(json.dumps(ended), "utf-8")

    folder = _once(tmp_path_factory, "runs", make)
    ended = json.loads((folder / "ended.json").read_text("utf-8"))
    return commands.Finished(*ended, folder / "student")
