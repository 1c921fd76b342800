"""A run of several processes that does next to nothing, then ends as --then says.

It has the flags of kdnet_jax.main and starts as that does.
"""

import os
import pathlib
import signal
import sys
import time

from absl import app, flags

from kdnet_jax import cli, errors
from kdnet_jax.parallel import launch

_CONFIG = cli.define_config("configs/student.py:smoke", "A role's file and a preset")
_LAUNCH = launch.define_flags()
_WORKDIR = flags.DEFINE_string("workdir", "run", "The run's folder")
_THEN = flags.DEFINE_string("then", "", "PROCESS:END of one that ends in its own way")


def _work() -> None:
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    from kdnet_jax.parallel import processes

    number = jax.process_index()
    numbers = multihost_utils.process_allgather(np.array([number]))
    print(f"numbers {numbers.ravel().tolist()}")
    print(f"said {processes.gather({'process': number})}")
    print(f"process {number} works", file=sys.stderr)
    process, _, end = _THEN.value.partition(":")
    if end == "stopped":
        sys.exit(143)
    if not end:
        return
    if number == int(process):
        _end(end)
    if end == "kill while others rest":
        time.sleep(60)
    while True:
        multihost_utils.process_allgather(np.ones(3))


def _end(how: str) -> None:
    if how.startswith("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "stop alone":
        sys.exit(143)
    if how == "mistake":
        raise errors.UserError("case 7 is gone")
    raise ZeroDivisionError("a mistake in the code")


def main(argv: list[str]) -> None:
    with launch.start(_LAUNCH(), _CONFIG.value, pathlib.Path(_WORKDIR.value)):
        errors.exit_on_user_error(_work)


if __name__ == "__main__":
    app.run(main, flags_parser=cli.parse_flags)
