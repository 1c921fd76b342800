"""The devices that JAX is set to use, or one message on why there are none."""

import jax

from kdnet_jax.errors import UserError


def check() -> None:
    """Starts JAX's backend, if nothing has done so yet.

    Raises:
        UserError: there is no such device, or it cannot be used.
    """
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:  # an assertion: "cuda", and no NVIDIA GPU
        asked = jax.config.values["jax_platforms"]
        setting = f"JAX_PLATFORMS is {asked!r}, but " if asked else ""
        lines = str(error).partition("(set JAX_PLATFORMS")[0].strip().splitlines()
        reason = lines[0].rstrip(". ") if lines else "no such device was found"
        raise UserError(
            f"{setting}JAX cannot start: {reason}. Set JAX_PLATFORMS=cpu, or name a device of this "
            "machine for which JAX is installed (for an NVIDIA GPU: pip install 'jax[cuda12]')."
        ) from error
