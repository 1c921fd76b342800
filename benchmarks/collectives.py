"""The collectives of a compiled program, read from its text."""

import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
_OPERATION = re.compile(rf"= (\S.*?) ({'|'.join(KINDS)})(?:-start)?\(")
_ARRAY = re.compile(r"([a-z]+\d+|pred)\[([\d,]*)\]")
_NAME = re.compile(r'op_name="([^"]*)"')
_BYTES = {"pred": 1, "u8": 1, "s8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}


@dataclasses.dataclass(frozen=True)
class Array:
    """One array that a collective gives to each device.

    Attributes:
        kind: of the collective.
        type: of its elements, in XLA's words.
        shape: on each device.
        name: where in the program it comes from.
    """

    kind: str
    type: str
    shape: tuple[int, ...]
    name: str

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * _BYTES[self.type]


def of_program(text: str) -> Iterator[Array]:
    """Yields the arrays of all collectives in a compiled program's text."""
    for line in text.splitlines():
        if not (found := _OPERATION.search(line)):
            continue
        shapes, kind = found.groups()
        name = match.group(1) if (match := _NAME.search(line)) else ""
        arrays = _ARRAY.findall(shapes)
        # The started form of some kinds names its operand beside its result.
        if f"{kind}-start(" in line and kind in ("all-gather", "collective-permute"):
            arrays = arrays[1:2]
        for element, edges in arrays:
            shape = tuple(int(edge) for edge in edges.split(",") if edge)
            yield Array(kind, element, shape, name)
