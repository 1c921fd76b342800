import builtins
import os
import pathlib
import pickle

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from kdnet_jax.errors import UserError
from kdnet_jax.interop import torch_files
from tests.helpers import foreign_folders


class Malicious:
    """Touches a file when it is unpickled without a check."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.path),))


def test_arrays_come_back_as_float32(tmp_path) -> None:
    half = np.arange(6, dtype=np.float16).reshape(2, 3)
    path = foreign_folders.save(tmp_path / "a.pt", {"w": half, "steps": np.int64(3), "of": ["x"]})
    found = torch_files.read(path)
    assert found["w"].dtype == np.float32
    np.testing.assert_array_equal(found["w"], half)
    assert found["steps"] == 3
    assert found["of"] == ["x"]


def test_what_is_written_pytorch_reads_as_weights_only(tmp_path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    array.flags.writeable = False
    torch_files.write(tmp_path / "a.pt", {"a": array, "twin": array, "n": {"k": (1, None)}})
    found = torch.load(tmp_path / "a.pt", weights_only=True)
    np.testing.assert_array_equal(found["a"].numpy(), array)
    assert found["a"].data_ptr() == found["twin"].data_ptr()
    assert found["n"] == {"k": (1, None)}
    assert [each.name for each in tmp_path.iterdir()] == ["a.pt"]


def test_code_in_a_file_is_refused_and_not_run(tmp_path) -> None:
    trace = tmp_path / "run"
    for name, save in (("zip.pt", torch.save), ("bare.pt", _pickle)):
        save({"weights": Malicious(trace)}, tmp_path / name)
        with pytest.raises(UserError, match=r"could run code") as caught:
            torch_files.read(tmp_path / name)
        assert "mkdir" in str(caught.value)
        assert "weights_only=False" not in str(caught.value)
    assert not trace.exists()
    # It is a real one: a reader without the check runs it.
    torch.load(tmp_path / "zip.pt", weights_only=False)
    assert trace.exists()


def _pickle(content: object, path: pathlib.Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


def test_a_whole_network_is_refused(tmp_path) -> None:
    torch.save(torch.nn.Conv3d(1, 1, 1), tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"Conv3d.*state_dict\(\)"):
        torch_files.read(tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["model.ts", "model.pt"])
def test_torchscript_is_refused_under_any_name(tmp_path, name) -> None:
    torch.jit.script(torch.nn.ReLU()).save(str(tmp_path / name))
    with pytest.raises(UserError, match=r"TorchScript.*model\.pt"):
        torch_files.read(tmp_path / name)


def test_damaged_files_are_one_message(tmp_path) -> None:
    whole = foreign_folders.save(tmp_path / "a.pt", {"w": np.ones(1000, np.float32)}).read_bytes()
    cut = [whole[:size] for size in (0, 1, 20, 200, len(whole) // 2, len(whole) - 1)]
    for damaged in (*cut, b"\x00" * 500, b"not a file of PyTorch", whole[200:]):
        (tmp_path / "b.pt").write_bytes(damaged)
        with pytest.raises(UserError, match=r"b\.pt"):
            torch_files.read(tmp_path / "b.pt")


def test_without_pytorch_the_message_says_what_to_install(tmp_path, monkeypatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name == "torch":
            raise ImportError(name)
        return real(name, *rest)

    path = foreign_folders.save(tmp_path / "a.pt", {})
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="this conversion only: pip install 'torch"):
        torch_files.read(path)


@pytest.mark.parametrize(
    ("version", "old"), [("2.9.1+cpu", True), ("2.10.0", False), ("3.0", False)]
)
def test_a_pytorch_that_can_be_tricked_is_refused(tmp_path, monkeypatch, version, old) -> None:
    path = foreign_folders.save(tmp_path / "a.pt", {"n": 1})
    monkeypatch.setattr(torch, "__version__", version)
    if old:
        with pytest.raises(UserError, match="CVE-2025-32434"):
            torch_files.read(path)
    else:
        assert torch_files.read(path) == {"n": 1}


@pytest.mark.parametrize("key", [None, "state_dict", "model", "network_weights"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_weights_are_found_where_tools_keep_them(key, prefix) -> None:
    state = {f"{prefix}a.module.weight": np.ones(2)}
    content = state if key is None else {key: state, "epoch": 3}
    assert list(torch_files.state_dict(content, pathlib.Path("x.pt"))) == ["a.module.weight"]


@pytest.mark.parametrize("content", [{"epoch": 3}, {}, [1], None, {"model": {"epoch": 3}}])
def test_a_file_without_weights_is_refused(content) -> None:
    with pytest.raises(UserError, match=r"x\.pt holds no weights"):
        torch_files.state_dict(content, pathlib.Path("x.pt"))
