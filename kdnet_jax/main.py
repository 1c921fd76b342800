"""Trains and evaluates a run: python -m kdnet_jax.main --config=configs/student.py[:PRESET]."""

import pathlib
import sys

from absl import app, flags
from ml_collections import config_dict

from kdnet_jax import cli, errors
from kdnet_jax.core import process
from kdnet_jax.parallel import launch

_CONFIG = cli.define_config(
    "configs/student.py", "A role's file and a preset, such as configs/student.py:phantom"
)
_LAUNCH = launch.define_flags()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run's folder; by default runs/<role>-<preset>. Resumes what is there."
)


def main(argv: list[str]) -> None:
    """Runs the experiment that the flags describe."""
    cli.refuse_arguments(argv)
    config = _CONFIG.value
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{config.role}-{config.preset}")
    with launch.start(_LAUNCH(), config, workdir):
        _run(config, workdir)


def _run(config: config_dict.ConfigDict, workdir: pathlib.Path) -> None:
    # Imported here: a mistake in the flags is reported before the seconds that this takes.
    with process.importing():
        from kdnet_jax.config import students, study
        from kdnet_jax.core import devices
        from kdnet_jax.experiment import runner, studies
        from kdnet_jax.training import stopping

    errors.exit_on_user_error(devices.check)
    cli.enable_compilation_cache()

    def run() -> None:
        if config.role == "study":
            planned = study.parts(config, workdir)
            least = config.to_dict()["study"]["least_room"]
            studies.run(planned, workdir, study.primary(config), least)
        else:
            runner.run_together(students.read(config, workdir), workdir)

    try:
        with stopping.AtOnce():
            errors.exit_on_user_error(run)
    except stopping.Stopped as stop:
        saved = "What was saved before is kept" if stop.step is None else "Everything is saved"
        print(f"{stop}. {saved}; the same command resumes from there.", file=sys.stderr)
        sys.exit(128 + stop.signal)


if __name__ == "__main__":
    app.run(main, flags_parser=cli.parse_flags)
