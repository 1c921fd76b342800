"""What the settings of a command's process come to."""

import os
import subprocess
import sys

from tests.helpers import commands


def test_products_of_matrices_take_one_thread_unless_the_user_says_otherwise() -> None:
    code = "from kdnet_jax import cli; import os; print(os.environ['OPENBLAS_NUM_THREADS'])"
    for env, said in (({}, "1"), ({"OPENBLAS_NUM_THREADS": "3"}, "3")):
        plain = {key: os.environ[key] for key in os.environ if key != "OPENBLAS_NUM_THREADS"}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=commands.ROOT, env=plain | env, capture_output=True
        )
        assert done.stdout.split() == [said.encode()]
