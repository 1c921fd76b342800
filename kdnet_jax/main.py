"""Trains and evaluates a run: python -m kdnet_jax.main --config=configs/student.py[:PRESET]."""

import pathlib
import sys

from absl import app, flags

from kdnet_jax import cli, errors

_CONFIG = cli.define_config(
    "configs/student.py", "A role's file and a preset, such as configs/student.py:phantom"
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run's folder; by default runs/<role>-<preset>. Resumes what is there."
)


def main(argv: list[str]) -> None:
    """Runs the experiment that the flags describe."""
    cli.refuse_arguments(argv)
    # Imported here: a mistake in the flags is told before the seconds that this takes.
    from kdnet_jax import experiment, studies, train

    config = _CONFIG.value
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{config.role}-{config.preset}")
    cli.enable_compilation_cache()
    run = studies.run if config.role == "study" else experiment.run
    try:
        errors.exit_on_user_error(lambda: run(config, workdir))
    except train.Stopped as stop:
        print(f"{stop}. Everything is saved; the same command goes on from there.", file=sys.stderr)
        sys.exit(128 + stop.signal)
    except KeyboardInterrupt:
        cli.exit_on_interrupt()


if __name__ == "__main__":
    app.run(main, flags_parser=cli.parse_flags)
