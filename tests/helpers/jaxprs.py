"""The operations of a traced function, those within its loops and calls too."""

from collections.abc import Iterator
from typing import Any

from jax.extend import core


def equations(jaxpr: Any) -> Iterator[Any]:
    """Yields every operation of a jaxpr, closed or open."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                if isinstance(part, core.ClosedJaxpr | core.Jaxpr):
                    yield from equations(part)


def named(jaxpr: Any, *names: str) -> list[Any]:
    """Returns the operations of the given names, such as "conv_general_dilated"."""
    return [found for found in equations(jaxpr) if found.primitive.name in names]
