"""The installed programs: `kdnet_jax.predict ...` is `python -m kdnet_jax.predict ...`."""

import pathlib
import runpy
import sys


def run() -> None:
    """Runs, as `python -m` does, the module that the called program is named after."""
    module = pathlib.Path(sys.argv[0]).name.removesuffix(".exe")
    runpy.run_module(module, run_name="__main__", alter_sys=True)
