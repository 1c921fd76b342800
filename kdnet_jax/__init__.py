"""KD-Net in JAX: a four-sequence teacher, distilled into a one-sequence student."""

from typing import TYPE_CHECKING

from kdnet_jax.core import home

if TYPE_CHECKING:
    from kdnet_jax.api import load

__version__ = "0.1.0"
__all__ = ["load"]

# Before any library is imported that looks for it.
home.ensure()


def __getattr__(name: str) -> object:
    # Imported late: JAX takes seconds, and commands report mistakes in their flags first.
    if name == "load":
        from kdnet_jax import api

        return api.load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
