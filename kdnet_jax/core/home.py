"""The user's home folder, or one in its place, and the cache in it."""

import atexit
import os
import pathlib
import shutil
import sys
import tempfile


def ensure() -> None:
    """Sets HOME to a temporary folder, with a note, where the user has no home folder at all.

    In a container under a bare user id there may be neither HOME nor an entry in /etc/passwd;
    libraries look for the folder when they are imported (matplotlib/matplotlib#17707).
    """
    try:
        pathlib.Path.home()
    except RuntimeError:
        folder = tempfile.mkdtemp(prefix="kdnet_jax-home-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["HOME"] = folder
        print(
            f"note: this user has no home folder, so caches lie in {folder} until the program "
            "ends; set HOME to a folder to keep them",
            file=sys.stderr,
        )


def make_cache_folder() -> pathlib.Path:
    """Returns the folder of what can be made again: compiled kernels and programs.

    Raises:
        OSError: it cannot be made.
    """
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    folder = pathlib.Path(root) / "kdnet_jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{folder} cannot be written ({error.strerror})") from error
    return folder
