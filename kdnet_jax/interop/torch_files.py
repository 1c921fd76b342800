"""PyTorch's files as NumPy arrays, and back: the only file that imports torch.

Such a file is a pickle, and a pickle can run code. So it is read with `weights_only=True`, which
knows tensors and plain values alone, and by a PyTorch in which that holds: before 2.6 a crafted
file gets past it (CVE-2025-32434), before 2.10 one damages the memory (CVE-2026-24747).
"""

import pathlib
import pickle
import re
import types
import warnings
import zipfile
from collections.abc import Mapping
from typing import Final

import numpy as np
from jaxtyping import Num

from kdnet_jax.core import files
from kdnet_jax.errors import UserError

SUFFIXES: Final = (".pt", ".pth")
TORCHSCRIPT: Final = ".ts"
_OLDEST: Final = (2, 10)
# Where checkpoints keep the weights; ignite and Lightning have words of their own.
_NESTED: Final = ("network_weights", "state_dict", "model_state_dict", "model", "network", "net")
# What wrappers put before each name: of several devices, of torch.compile.
_WRAPPERS: Final = re.compile(r"^(?:module\.|_orig_mod\.)+")
# All that a damaged file makes the reader raise.
_DAMAGED: Final = (
    *(RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError),
    *(OSError, AssertionError, zipfile.BadZipFile),
)


def read(path: pathlib.Path) -> object:
    """Returns the content of a .pt or .pth file, its tensors as NumPy arrays, float32 if floating.

    Raises:
        UserError: PyTorch is missing or too old; the file is damaged, a TorchScript archive, or
            holds more than tensors and plain values.
    """
    if path.suffix == TORCHSCRIPT or _is_torchscript(path):
        raise UserError(
            f"{path} is a TorchScript archive, which holds a program rather than weights: give the "
            "weights that it was made of, such as model.pt beside it."
        )
    torch = _torch()
    try:
        with torch.serialization.safe_globals(_numpy_types()), warnings.catch_warnings():
            # A refusal says all that the user needs.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
        return _to_numpy(content, torch)
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(path, str(error))) from error
    except _DAMAGED as error:
        what = (str(error) or repr(error)).splitlines()[0]
        raise UserError(
            f"{path} cannot be read as a file of PyTorch ({what[:200]}). It may be damaged or cut "
            "short: copy it again."
        ) from error


def _refusal(path: pathlib.Path, error: str) -> str:
    # PyTorch's own text advises ways around the check, so only the name is taken from it.
    name = re.search(r"GLOBAL ([\w.]+\w)", error)
    held = name[1] if name else "a pickle that PyTorch did not write"
    return (
        f"{path} holds more than weights and plain values ({held}), and reading that could run "
        "code. Save the weights alone where the model was trained: "
        "torch.save(network.state_dict(), 'model.pt')."
    )


def state_dict(content: object, path: pathlib.Path) -> dict[str, Num[np.ndarray, "..."]]:
    """Returns the weights in what `read` returned: name -> array.

    They may lie under one of the usual keys ("model", "state_dict", ...), and be named as of a
    network that ran on several devices or compiled.

    Raises:
        UserError: there are none.
    """
    inner = [content.get(key) for key in _NESTED] if isinstance(content, Mapping) else []
    state = next((each for each in inner if isinstance(each, Mapping)), content)
    if not isinstance(state, Mapping) or not any(
        isinstance(value, np.ndarray) for value in state.values()
    ):
        found = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content)
        raise UserError(f"{path} holds no weights (it holds {found}); expected a state_dict.")
    return {
        _WRAPPERS.sub("", str(name)): value
        for name, value in state.items()
        if isinstance(value, np.ndarray)
    }


def write(path: pathlib.Path, content: object) -> None:
    """Writes a tree of dicts, lists and plain values, its NumPy arrays as tensors.

    A duplicate array is stored once, as PyTorch does.

    Raises:
        UserError: PyTorch is missing.
        OSError: as the file system has it.
    """
    torch = _torch()
    # The arrays are kept too: the name of one that is gone may be given to another.
    tensors: dict[int, tuple[np.ndarray, object]] = {}

    def convert(value: object) -> object:
        if isinstance(value, Mapping):
            return {key: convert(each) for key, each in value.items()}
        if isinstance(value, np.ndarray):
            if id(value) not in tensors:
                # Of its own memory: JAX's arrays are read-only.
                tensors[id(value)] = value, torch.from_numpy(np.array(value, order="C"))
            return tensors[id(value)][1]
        return value

    with files.replacing(path, path.suffix) as beside:
        torch.save(convert(content), beside)


def _is_torchscript(path: pathlib.Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False  # reported as damaged when it is read


def _torch() -> types.ModuleType:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "PyTorch is needed to read and write the files of nnU-Net and MONAI, for this "
            "conversion only: pip install 'torch>=2.10'"
        ) from error
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < _OLDEST:
        raise UserError(
            f"PyTorch {torch.__version__} is installed, which a crafted file can make run code "
            "(CVE-2025-32434, CVE-2026-24747): pip install 'torch>=2.10'"
        )
    return torch


def _numpy_types() -> list[object]:
    """Returns what nnU-Net's log of losses is made of: NumPy's numbers, under old and new names."""
    scalar = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    kinds = (np.float16, np.float32, np.float64, np.int32, np.int64, np.bool_)
    return [np.dtype, *((scalar, name) for name in names), *(type(np.dtype(k)) for k in kinds)]


def _to_numpy(value: object, torch: types.ModuleType) -> object:
    if isinstance(value, torch.Tensor):
        tensor = torch.detach(value)
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    if isinstance(value, Mapping):
        return {key: _to_numpy(each, torch) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_to_numpy(each, torch) for each in value]
    return value
