"""No pickle is ever loaded, and a small file takes no large memory."""

import ast
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from kdnet_jax.data.scans import nifti_header
from kdnet_jax.errors import UserError
from kdnet_jax.evaluation import score_files
from tests.bad_input import runs, scans
from tests.helpers import forks

pytestmark = pytest.mark.once

_PACKAGES = ("kdnet_jax", "configs", "data_builders")
_UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch"}
# The one file that reads PyTorch's, and names the error that a refused one raises.
_PYTORCH_FILES = forks.ROOT / "kdnet_jax/interop/torch_files.py"
_OF_PYTORCH = {"torch", "pickle"}


def _sources() -> list[pathlib.Path]:
    return [path for name in _PACKAGES for path in (forks.ROOT / name).rglob("*.py")]


def test_nothing_that_unpickles_is_imported() -> None:
    assert len(_sources()) > 80
    for path in _sources():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found = {name.split(".")[0] for name in names} & _UNPICKLERS
            assert not found - (_OF_PYTORCH if path == _PYTORCH_FILES else set()), path


def test_pytorch_s_files_are_read_as_weights_only() -> None:
    tree = ast.parse(_PYTORCH_FILES.read_text("utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    loads = [node for node in calls if ast.unparse(node.func) == "torch.load"]
    assert loads
    for node in loads:
        options = {each.arg: ast.unparse(each.value) for each in node.keywords}
        assert options.get("weights_only") == "True"
    used = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    of_pickle = {node.attr for node in used if ast.unparse(node.value) == "pickle"}
    assert of_pickle <= {"UnpicklingError"}


def test_numpy_files_are_read_without_pickles() -> None:
    for path in _sources():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) not in ("np.load",):
                continue
            options = {each.arg: ast.unparse(each.value) for each in node.keywords}
            assert options.get("allow_pickle") == "False", path


def test_a_pickle_among_the_probabilities_of_a_run_is_not_loaded(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / score_files.PROBABILITIES / "case.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, probabilities=runs.trap())
    with pytest.raises(UserError, match=f"{path} is damaged .*allow_pickle=False"):
        score_files.read_probabilities(tmp_path, "case")
    assert not (tmp_path / "UNPICKLED").exists()


_READ = """
import resource, sys
from kdnet_jax.errors import UserError
from kdnet_jax.data.scans import nifti
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    nifti.read_volume(sys.argv[1])
except UserError as error:
    print(error, file=sys.stderr)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def _mib_to_read(path: pathlib.Path) -> tuple[float, str]:
    done = subprocess.run(
        [sys.executable, "-c", _READ, str(path)],
        cwd=forks.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout), done.stderr


def test_memory_is_that_of_the_voxels_and_not_of_what_a_file_may_unpack(
    tmp_path: pathlib.Path,
) -> None:
    # 16.8 million voxels in 16 KiB: one byte each as stored, four as float32, one to look at them.
    start = scans.encode(scans.brain(), dim=[3, 256, 256, 256, 1, 1, 1, 1], datatype=2)[:352]
    whole = tmp_path / "zeros.nii.gz"
    whole.write_bytes(scans.zeros_gz(start, 16 * 2**20))
    mib, said = _mib_to_read(whole)
    assert "every voxel is 0" in said
    assert mib < 1.5 * (1 + 4 + 1) * 16
    # The same with a GiB behind the voxels: it is not read to its end.
    longer = tmp_path / "longer.nii.gz"
    longer.write_bytes(scans.zeros_gz(start, 2**30))
    more, said = _mib_to_read(longer)
    assert f"more than {nifti_header.MAX_BEHIND // 2**20} MiB follow the voxels" in said
    assert more < 1.5 * (1 + 4 + 1) * 16


def test_a_header_beyond_the_limit_takes_no_memory(tmp_path: pathlib.Path) -> None:
    edge = round(nifti_header.MAX_VOXELS ** (1 / 3)) + 1
    start = scans.encode(scans.brain(), dim=[3, edge, edge, edge, 1, 1, 1, 1], datatype=2)[:352]
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(scans.zeros_gz(start, 2**30))
    mib, said = _mib_to_read(path)
    assert f"at most {nifti_header.MAX_VOXELS} can be read" in said
    assert mib < 20
