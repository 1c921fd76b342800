"""Reads a trace of JAX's profiler: which operation ran when, and what part of the step it is.

A trace names instructions of the compiled program; the program's text maps these to the scopes they
come from (`jax.named_scope`, Flax modules, transformations).
"""

import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax

from kdnet_jax import steps

_INSTRUCTION = re.compile(r'%?([\w.\-]+) = [^\n]*?op_name="([^"]+)"')
# The network's own scope, or what a transformation makes of it, such as jvp(network).
_NETWORK = re.compile(rf"(?:^|[/(])(?:{steps.NETWORK}|{steps.TEACHER})(?:[/)]|$)")
# Names of the networks' parts and their numbers there (models/unet.py, nnunet.py, monai.py).
_LEVEL = re.compile(
    r"/(?:\w+\._)?(encoder|decoder|downsamples|down|upsamples|up|deconv|heads?|stem|input_block|"
    r"bottleneck|output_block|init|final)(?:_(\d+))?(?:_\w+)?(?=/|$)"
)
# Kinds by what a scope holds, the first that fits: what lies in another comes before that.
_KINDS = (
    (re.compile(r"/(?:InstanceNorm_\d+|norm\d?|final_norm)(?:/|$)"), "normalisation"),
    (re.compile(r"/(?:Conv_\d+|conv\d?|init)(?:/|$)"), "convolution"),
    (re.compile(r"\._down/|/down_\d+(?:/|$)"), "pooling"),
    (re.compile(r"\._up/|/(?:up|deconv)_\d+(?:/|$)"), "upsampling"),
    (re.compile(r"\._head/|/(?:heads?_\d+|final_conv)(?:/|$)"), "head"),
    (re.compile("concatenate"), "concatenation"),
)


class Operation(NamedTuple):
    """One run of one instruction.

    Attributes:
        name: of the instruction.
        scope: where in the program it comes from; empty where the program does not say.
        start: seconds since the trace began.
        seconds: how long it took.
    """

    name: str
    scope: str
    start: float
    seconds: float


def read(folder: pathlib.Path, program: str) -> list[Operation]:
    """Returns the operations of the newest trace under `folder`.

    Args:
        folder: what `jax.profiler.start_trace` was given.
        program: the compiled step's text (`compiled.as_text()`).
    """
    scopes = dict(_INSTRUCTION.findall(program))
    file = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    found = []
    for line in _device_lines(jax.profiler.ProfileData.from_file(str(file))):
        for event in line.events:
            # GPUs name kernels, and say of which instruction; CPUs name the instruction.
            stats = dict(event.stats)
            name = str(stats.get("hlo_op") or event.name).split(" = ")[0].lstrip("%")
            if name in scopes or "hlo_op" in stats:
                scope = scopes.get(name, "")
                found.append(Operation(name, scope, event.start_ns / 1e9, event.duration_ns / 1e9))
    return found


def _device_lines(profile: "jax.profiler.ProfileData") -> Iterator["jax.profiler.ProfileLine"]:
    """Yields the lines of operations: streams of a GPU, a TPU's own, or the CPU's threads."""
    for plane in profile.planes:
        on_device = plane.name.startswith("/device:")
        for line in plane.lines:
            if line.name.startswith("tf_XLA") or (
                on_device and (line.name.startswith("Stream") or line.name == "XLA Ops")
            ):
                yield line


def phase(scope: str) -> str:
    """Returns the part of the step that a scope belongs to."""
    parts = scope.split("/")
    if steps.TEACHER in parts:
        return "teacher, forward"
    if any(steps.AUGMENT in part for part in parts):
        return "augmentation"
    if steps.UPDATE in parts:
        return "update"
    backward = "transpose(" in scope
    if _NETWORK.search(scope):
        return "network, backward" if backward else "network, forward"
    return "loss, backward" if backward else "loss, forward"


def kind(scope: str) -> str:
    """Returns what a part of the network does: convolution, normalisation, ..."""
    if not _NETWORK.search(scope):
        return "other"
    return next((name for mark, name in _KINDS if mark.search(scope)), "other")


def level(scope: str) -> str:
    """Returns where in the network a scope lies, such as "encoder 0"; empty outside of it."""
    found = _LEVEL.findall(scope) if _NETWORK.search(scope) else []
    return " ".join(filter(None, found[-1])) if found else ""


def totals(operations: Sequence[Operation], group: Mapping[str, str]) -> dict[str, float]:
    """Returns the seconds of each group, the longest first; `group` maps scopes to groups."""
    seconds: dict[str, float] = {}
    for operation in operations:
        key = group[operation.scope]
        seconds[key] = seconds.get(key, 0.0) + operation.seconds
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def busy_seconds(operations: Sequence[Operation]) -> float:
    """Returns how long at least one operation ran: the union of their times."""
    busy, end = 0.0, float("-inf")
    for operation in sorted(operations, key=lambda operation: operation.start):
        stop = operation.start + operation.seconds
        if stop > end:
            busy += stop - max(operation.start, end)
            end = stop
    return busy
