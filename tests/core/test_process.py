"""What the settings of a command's process come to."""

import os
import platform
import subprocess
import sys

import pytest

from tests.helpers import commands

# Results of 40 MiB, more than the C library ever keeps by itself; then 64 MiB in NumPy. The first
# steps may find gaps that are too small by the bytes of an alignment.
_STEPS = """
from kdnet_jax.core import process
process.keep_freed_memory()
import resource
import jax, jax.numpy as jnp, numpy as np, psutil
from kdnet_jax.core import memory
step = jax.jit(lambda x: x + 1)
x = jnp.ones((10, 1024, 1024))
faults = []
for _ in range(40):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    jax.block_until_ready(step(x))
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
parts = [np.ones(2**17) for _ in range(64)]
held = psutil.Process().memory_info().rss
del parts
memory.return_freed()
print((held - psutil.Process().memory_info().rss) // 2**20)
"""


@pytest.mark.once
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's settings")
def test_a_step_takes_no_memory_anew_and_what_is_freed_goes_back_when_asked() -> None:
    # Not forked: threads have asked for memory there.
    done = subprocess.run(
        [sys.executable, "-c", _STEPS], cwd=commands.ROOT, capture_output=True, check=True
    )
    faults, returned = map(int, done.stdout.split())
    assert faults < 100  # 40 MiB are 10,240 pages
    assert returned > 55  # MiB


def test_products_of_matrices_take_one_thread_unless_the_user_says_otherwise() -> None:
    code = "from kdnet_jax import cli; import os; print(os.environ['OPENBLAS_NUM_THREADS'])"
    for env, said in (({}, "1"), ({"OPENBLAS_NUM_THREADS": "3"}, "3")):
        plain = {key: os.environ[key] for key in os.environ if key != "OPENBLAS_NUM_THREADS"}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=commands.ROOT, env=plain | env, capture_output=True
        )
        assert done.stdout.split() == [said.encode()]
