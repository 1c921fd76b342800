"""The machine lacks what libraries take for granted: the device asked for, a home folder."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.helpers import commands, forks

pytestmark = pytest.mark.once

_LOAD = "import kdnet_jax; kdnet_jax.load('nothing')"
# As in a container under a bare user id: no HOME, and nothing in /etc/passwd.
_NOBODY = """
import os, pwd, runpy, sys
os.environ.pop("HOME")
pwd.getpwuid = {}.__getitem__
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def _python(code: str, *words: object, cwd: pathlib.Path, **env: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(commands.ROOT)} | env,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_device_that_is_not_there_is_one_line(
    tiny_cohort: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    # No folder of a run is read before JAX has started.
    run = tmp_path / "run"
    run.mkdir()
    configs = commands.ROOT / "configs"
    written = [tmp_path / name for name in ("student", "study", "mask.nii.gz", "model", "a.png")]
    student, study, mask, model, sheet = written
    scan = next(tiny_cohort.glob("*/*_t1ce.nii.gz"))
    lines = [
        ("main", f"--config={configs / 'student.py'}:smoke", f"--workdir={student}"),
        ("main", f"--config={configs / 'study.py'}:smoke", f"--workdir={study}"),
        ("predict", f"--checkpoint={run}", f"--input={scan}", f"--output={mask}"),
        ("evaluate", f"--checkpoint={run}", f"--references={tiny_cohort}", f"--output={model}"),
        ("export", f"--checkpoint={run}", f"--output={model}"),
        (
            "preview_augmentation",
            f"--config={configs / 'student.py'}:smoke",
            f"--output={sheet}",
        ),
    ]
    ended = forks.run(
        [forks.Line(command, tuple(words), tmp_path) for command, *words in lines],
        env={"JAX_PLATFORMS": "cuda"},
    )
    for line, each in zip(lines, ended, strict=True):
        assert each.code == 2, (line, each)
        message = each.err.splitlines()
        assert len(message) == 1, (line, each.err)
        assert message[0].startswith("error: JAX_PLATFORMS is 'cuda', but JAX cannot start: ")
        assert "Set JAX_PLATFORMS=cpu" in message[0]
    assert not [path for path in written if path.exists()]


@pytest.mark.parametrize("platform", ["gpu", "cpuu"])
def test_in_python_it_is_a_user_error(platform: str, tmp_path: pathlib.Path) -> None:
    code, err = _python(_LOAD, cwd=tmp_path, JAX_PLATFORMS=platform)
    assert code == 1
    last = err.splitlines()[-1]
    message = f"JAX_PLATFORMS is '{platform}', but JAX"
    assert last.startswith(f"kdnet_jax.errors.UserError: {message}")


def test_a_user_without_a_home_folder(tiny_cohort: pathlib.Path, tmp_path: pathlib.Path) -> None:
    words = ["kdnet_jax.check_data", f"--data_dir={tiny_cohort}", "--figure=sheet.png"]
    code, err = _python(_NOBODY, *words, cwd=tmp_path)
    assert code in (0, 1), err  # 1: of what it thinks of the cases
    note = err.splitlines()[0]
    assert note.startswith("note: this user has no home folder, so caches lie in ")
    assert "Traceback" not in err
    # Neither a folder named ~, nor what the note speaks of, is left.
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    assert not pathlib.Path(note.split(" lie in ")[1].split()[0]).exists()


def test_a_home_folder_that_cannot_be_written(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    home = f"{tmp_path / 'file'}/home"
    code = "from kdnet_jax import cli; cli.enable_compilation_cache()"
    env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPIL")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env | {"PYTHONPATH": str(commands.ROOT), "HOME": home, "XDG_CACHE_HOME": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == (
        f"note: compiled programs are not kept for the next start ({home}/.cache/kdnet_jax cannot "
        "be written (Not a directory)): set XDG_CACHE_HOME to a folder"
    )
