"""A `Dockerfile` beside a model: an image that segments with it on a CPU, without a network.

    DIR/Dockerfile
    DIR/docker/requirements.txt  what is installed, in the versions of the environment that exports
    DIR/docker/kdnet_jax/        this package, with its LICENSE beside it

The package is copied, as no index has it and a wheel cannot be built of what a wheel installed.
"""

import importlib.metadata
import pathlib
import shutil
import sys
from typing import Final

from packaging import requirements, utils

import kdnet_jax
from kdnet_jax.core import files
from kdnet_jax.data.scans import familiarity
from kdnet_jax.errors import UserError
from kdnet_jax.runs import model_folder

DOCKERFILE: Final = "Dockerfile"
FOLDER: Final = "docker"
_REQUIREMENTS: Final = "requirements.txt"
_PACKAGE: Final = pathlib.Path(kdnet_jax.__file__).parent
# What reads and writes further formats of scans: as far as it is here.
_FORMATS: Final = (
    *("highdicom", "simpleitk", "pylibjpeg"),
    *("pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle"),
)
# The kernels need a compiler too, which the image has not; the other is for the phantom.
_UNUSED: Final = ("onednn-cpu-gomp", "onednn-devel-cpu-gomp", "nilearn")
_TEXT: Final = """\
# An image that segments with this model on a CPU. In this folder:
#
#     docker build --tag=NAME .
#
# and in the folder of the scans, which the image calls /data:
#
#     docker run --rm --network=none --read-only --tmpfs=/tmp --user="$(id -u):$(id -g)" \\
#         --volume="$PWD:/data" NAME --input=scan.nii.gz --output=mask.nii.gz

FROM python:{python}-slim
COPY docker/requirements.txt /app/
# All that is needed is listed, in the versions of the environment that exported the model.
RUN python -m pip install --no-cache-dir --no-deps --requirement=/app/requirements.txt
COPY docker/ /app/
COPY {documents} /model/
COPY params/ /model/params/
# Whatever modes the files had, every user can read them.
RUN chmod -R a+rX /app /model && python -m compileall -q /app
# Caches go where nothing is kept; nothing in /data is taken for a module of Python.
ENV HOME=/tmp PYTHONPATH=/app PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /data
USER 1000:1000
ENTRYPOINT ["python", "-m", "kdnet_jax.predict", "--checkpoint=/model"]
"""


def write(folder: pathlib.Path) -> None:
    """Writes `Dockerfile` and `docker/` into a model folder.

    Args:
        folder: of the model, filled.

    Raises:
        UserError: see `pinned`.
    """
    beside = folder / FOLDER
    shutil.copytree(
        _PACKAGE, beside / _PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
    )
    files.write_text(beside / "LICENSE", _licence())
    files.write_text(beside / _REQUIREMENTS, "\n".join(pinned()) + "\n")
    documents = [each for each in (model_folder.FILE, familiarity.FILE) if (folder / each).exists()]
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    text = _TEXT.format(python=python, documents=" ".join(documents))
    files.write_text(folder / DOCKERFILE, text)


def pinned() -> list[str]:
    """Returns `name==version` of all distributions that the image needs, sorted.

    Raises:
        UserError: one is not installed.
    """
    waiting = [requirements.Requirement(line) for line in _required()]
    waiting += [requirements.Requirement(name) for name in _FORMATS if _is_installed(name)]
    seen: set[str] = set()
    versions: dict[str, str] = {}
    while waiting:
        one = waiting.pop()
        name = utils.canonicalize_name(one.name)
        if name in _UNUSED or str(one) in seen:
            continue
        seen.add(str(one))
        found = _distribution(one)
        versions[name] = found.version
        further = map(requirements.Requirement, found.requires or ())
        waiting += [each for each in further if _applies(each, one.extras)]
    return [f"{name}=={version}" for name, version in sorted(versions.items())]


def _required() -> list[str]:
    """Returns the requirements of kdnet_jax itself that apply here."""
    if own := _own_distribution():
        lines = own.requires or []
    else:
        text = (_PACKAGE.parent / _REQUIREMENTS).read_text("utf-8")
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [line for line in lines if _applies(requirements.Requirement(line), set())]


def _own_distribution() -> importlib.metadata.Distribution | None:
    """Returns what was installed as this package; `None` in a checkout."""
    found = importlib.metadata.distributions(name="kdnet-jax", path=[str(_PACKAGE.parent)])
    return next(iter(found), None)


def _licence() -> str:
    own = _own_distribution()
    installed = own.read_text("licenses/LICENSE") if own else None
    return installed or (_PACKAGE.parent / "LICENSE").read_text("utf-8")


def _applies(one: requirements.Requirement, extras: set[str]) -> bool:
    marker = one.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def _is_installed(name: str) -> bool:
    return any(importlib.metadata.distributions(name=name))


def _distribution(one: requirements.Requirement) -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution(one.name)
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            f"--formats=docker: the image needs {one}, which is not installed here, so its version "
            f"is not known. Install it: pip install '{one}'"
        ) from error
