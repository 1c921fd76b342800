"""What the project imports of others."""

import os
import subprocess
import sys

from kdnet_jax import data
from kdnet_jax.data.scans import intensities
from tests.helpers import commands

# As if the module could not be imported, which some pairs of jax and flax have come with.
_ALL = """
import importlib, pkgutil, sys
from absl import flags
import kdnet_jax
sys.modules["flax.nnx"] = None
for found in pkgutil.walk_packages(kdnet_jax.__path__, "kdnet_jax."):
    importlib.import_module(found.name)
    for name in list(flags.FLAGS):  # commands have flags of the same names
        delattr(flags.FLAGS, name)
"""


def test_nothing_needs_flax_nnx() -> None:
    env = os.environ | {"PYTHONPATH": str(commands.ROOT)}
    subprocess.run([sys.executable, "-c", _ALL], cwd=commands.ROOT, env=env, check=True)


def test_scripts_find_the_modules_of_data_by_their_former_names() -> None:
    names = ("cases", "label_recognition", "labels", "geometry", "nifti", "prepare")
    homes = [getattr(data, name).__name__.removeprefix("kdnet_jax.data.") for name in names]
    assert homes == [
        *("sources.cases", "sources.label_recognition", "sources.labels"),
        *("scans.geometry", "scans.nifti", "scans.prepare"),
    ]
    assert data.prepare.find_brain is intensities.find_brain
    assert data.prepare.z_score is intensities.z_score
