"""Compilation of `kernels.cc` with its headers against oneDNN on first use; registration with XLA.

The compiled library is kept in the user's cache folder, under a name made of all that it depends
on: the source, the compiler's flags, jaxlib, oneDNN and the processor.
"""

import ctypes
import functools
import hashlib
import importlib.metadata
import logging
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile

import jax

from kdnet_jax.core import home

_LOG = logging.getLogger(__name__)

SOURCE = pathlib.Path(__file__).with_name("kernels.cc")
# oneDNN's wheels: the library built on GNU OpenMP, and its headers.
_LIBRARY = ("onednn-cpu-gomp", "libdnnl.so.3")
_HEADERS = ("onednn-devel-cpu-gomp", "dnnl.hpp")
_FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-w"),
    # Without these a comparison may not become a vector instruction. Neither changes a value.
    *("-fno-trapping-math", "-fno-math-errno"),
)
# Names under which XLA knows the functions that `kernels.cc` defines.
TARGETS = (
    "KdnetConvolve",
    "KdnetConvolveBackwardInput",
    "KdnetConvolveBackwardKernel",
    "KdnetNormalise",
    "KdnetNormaliseBackward",
)


class Unavailable(Exception):  # noqa: N818 - a reason, shown to the user where it matters
    """The kernels are unavailable on this machine; the message says why, and what would help."""


@functools.cache
def load() -> ctypes.CDLL:
    """Registers the kernels with XLA; compiles them if this machine has not done so before.

    Returns:
        The compiled library.

    Raises:
        Unavailable: a part is missing, or the compiler refuses.
    """
    library = _compiled()
    # Read by GNU OpenMP when it is loaded: threads that wait must not take the cores from XLA's.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        functions = ctypes.CDLL(os.fspath(library))
    except OSError as error:
        raise Unavailable(f"{library} cannot be loaded ({error}); delete it") from error
    for name in TARGETS:
        target = jax.ffi.pycapsule(getattr(functions, name))
        jax.ffi.register_ffi_target(name, target, platform="cpu")
    return functions


@functools.cache
def reason_against() -> str:
    """Returns why the kernels are unavailable, or an empty text."""
    try:
        load()
    except Unavailable as reason:
        return str(reason)
    return ""


def has_bfloat16() -> bool:
    """Returns whether the kernels can multiply in bfloat16 as the processor itself does.

    oneDNN says so, which DNNL_MAX_CPU_ISA may keep from a processor's newest instructions.
    """
    return not reason_against() and bool(load().KdnetHasBfloat16())


def _compiled() -> pathlib.Path:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise Unavailable(f"they are written for Linux on x86-64, not {platform.platform()}")
    library, header = _installed(*_LIBRARY), _installed(*_HEADERS)
    command = [
        _compiler(),
        *_FLAGS,
        f"-I{jax.ffi.include_dir()}",
        f"-I{header.parent}",
        os.fspath(SOURCE),
        os.fspath(library),
        f"-Wl,-rpath,{library.parent}",
    ]
    texts = [path.read_text("utf-8") for path in (SOURCE, *sorted(SOURCE.parent.glob("*.h")))]
    versions = [importlib.metadata.version(each) for each in ("jaxlib", _LIBRARY[0], _HEADERS[0])]
    key = "\n".join([*texts, *command, *versions, _processor()])
    folder = _cache_folder()
    target = folder / f"kernels-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if not target.is_file():
        _compile(command, target)
    return target


def _installed(distribution: str, name: str) -> pathlib.Path:
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise Unavailable(f"{distribution} is not installed: pip install {distribution}") from error
    found = [pathlib.Path(file.locate()).resolve() for file in files if file.name == name]
    if not found or not found[0].is_file():
        raise Unavailable(f"{distribution} lacks {name}: pip install --force-reinstall it")
    # The name that the linker looks for, not the file that it points to.
    return found[0].parent / name


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (path := shutil.which(name)):
            return path
    raise Unavailable("no C++ compiler was found: install g++ (apt install g++)")


def _processor() -> str:
    """Returns what `-march=native` depends on: a home folder may serve unlike machines."""
    lines = pathlib.Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "model name"))}))


def _cache_folder() -> pathlib.Path:
    try:
        return home.make_cache_folder()
    except OSError as error:
        raise Unavailable(f"{error}: set XDG_CACHE_HOME to a folder") from error


def _compile(command: list[str], target: pathlib.Path) -> None:
    _LOG.warning("Compiling the CPU kernels, once on this machine (about 5 s) ...")
    # Beside the target and then renamed: two processes may compile at once.
    try:
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            built = pathlib.Path(folder) / target.name
            subprocess.run(
                [*command, "-o", os.fspath(built)], check=True, capture_output=True, text=True
            )
            built.replace(target)
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise Unavailable(f"{command[0]} could not compile them ({last})") from error
    except OSError as error:
        raise Unavailable(f"{target.parent}: {error.strerror or error}") from error
