"""Memory of a train step on a device, known before the first step runs."""

import ctypes
import sys

import jax

from kdnet_jax.errors import UserError

_REMEDY = (
    "Lower --config.loader.batch, --config.loader.patch or --config.model.widths; or work through "
    "the batch in parts (--config.train.accumulate=2 keeps the activations of half of it); or keep "
    "less for the gradient (on GPU and TPU: --config.model.remat=true, about half of it)."
)


def step_bytes(compiled: jax.stages.Compiled) -> int:
    """Returns what a compiled step holds on each device at once: XLA's own plan.

    Arguments (state, teacher, batch), results, and the largest set of intermediate values; a
    donated argument counts once.
    """
    plan = compiled.memory_analysis()
    assert plan is not None  # CPU, GPU and TPU have one
    return (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
        + plan.temp_size_in_bytes
        + plan.generated_code_size_in_bytes
    )


def check(need: int, free: int, device: str) -> str:
    """Returns a sentence on what a step takes.

    Args:
        need: of a step, bytes.
        free: on the device, bytes.
        device: what the device is called.

    Raises:
        UserError: it does not fit.
    """
    if need > free:
        raise UserError(
            f"one training step needs {size_text(need)} on {device}, and {size_text(free)} are "
            f"free. {_REMEDY}"
        )
    return f"One training step takes {size_text(need)} of {size_text(free)} free on {device}."


def size_text(count: int) -> str:
    """Returns a number of bytes for people to read."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def is_exhausted(error: BaseException) -> bool:
    """Tells whether an error of XLA says that a device's memory is used up."""
    return "RESOURCE_EXHAUSTED" in str(error)


def exhausted(device: str) -> UserError:
    """Returns the error for a device that ran out of memory although the check passed."""
    return UserError(
        f"the memory of {device} is used up, by this run or by another program beside it. What was "
        f"saved is kept. {_REMEDY}"
    )


def return_freed() -> None:
    """Gives what the compiler has freed back to the system, where the C library keeps it (glibc).

    Compiling a step takes some hundred MiB, which would otherwise stay beside the step's own.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
