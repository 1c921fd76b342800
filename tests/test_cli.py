"""Mistakes on the command line: exit 2, one plain message, no traceback."""

import pytest

from kdnet_jax.models.kernels import build
from tests.helpers import forks

STUDENT = "--config=configs/student.py:smoke"
MISTAKES = {
    "unknown key": ([STUDENT, "--config.train.step=3"], ["--config.train.step", "steps"]),
    "unknown key of the default config": (["--config.tain=3"], ["--config.tain", "no key 'tain'"]),
    "key without its section": ([STUDENT, "--config.data_dir=x"], ["--config.data.data_dir?"]),
    "key in another section": ([STUDENT, "--config.data.steps_x=1"], ["no key 'steps_x'"]),
    "flag that is a key": ([STUDENT, "--data_dir=x"], ["--data_dir is no", "--config.data.data_d"]),
    "teacher of a baseline": (
        ["--config=configs/baseline.py:smoke", "--config.teacher.checkpoint=x"],
        ["--config.teacher.checkpoint", "has no teacher", "configs/student.py"],
    ),
    "weight of a baseline": (
        ["--config=configs/baseline.py:smoke", "--config.distillation.kd_weight=1"],
        ["has no teacher"],
    ),
    "unknown preset": (["--config=configs/student.py:smok"], ["smok", "did you mean 'smoke'"]),
    "wrong type": ([STUDENT, "--config.train.steps=many"], ["config.train.steps", "many"]),
    "extra word": ([STUDENT, "extra"], ["'extra' belongs to no flag"]),
    "missing config": (["--config=configs/absent.py"], ["absent.py", "configs/student.py"]),
    "unknown flag": ([STUDENT, "--workdri=x"], ["workdri"]),
    "one number": ([STUDENT, "--config.loader.patch=16"], ["loader.patch"]),
    "missing folder": ([STUDENT, "--config.data.data_dir=/absent/scans"], ["/absent/scans"]),
    "uneven mesh": ([STUDENT, "--config.mesh.data=3"], ["mesh.data"]),
    "no scans": (["--config=configs/baseline.py:brats"], ["data.data_dir"]),
}


@pytest.fixture(scope="module")
def ended(
    command_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[int, str]]:
    """Exit status and standard error of every mistake, by name."""
    # Compiled by now, which a command would say.
    build.reason_against()
    folder = tmp_path_factory.mktemp("mistakes")

    lines = [
        forks.Line("main", (*words, f"--workdir={folder / str(number)}"), forks.ROOT)
        for number, (words, _) in enumerate(MISTAKES.values())
    ]
    ended = forks.run(lines, limit_s=120, env=command_env)
    return {name: (each.code, each.err) for name, each in zip(MISTAKES, ended, strict=True)}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_plain_message(ended: dict[str, tuple[int, str]], name: str) -> None:
    code, said = ended[name]
    assert code == 2, said
    assert said.startswith("error: "), said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1, said
    for words in MISTAKES[name][1]:
        assert words in said
