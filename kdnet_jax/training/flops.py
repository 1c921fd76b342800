"""Floating-point operations of a function, counted from its jaxpr; 2 for a multiply and add.

Convolutions and matrix products only: all else is a few per cent. What XLA's cost analysis says
depends on the backend, and ignores foreign functions; this count does not.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import cast

import jax
from jax import core as jax_core
from jax.extend import core
from jaxtyping import PyTree


def count(function: Callable[..., PyTree], *arguments: PyTree) -> int:
    """Returns the operations of `function(*arguments)`; arguments may be shapes.

    Convolutions must be traced in XLA's own forms (`model.convolutions=native`): a foreign function
    counts as nothing. Of a conditional the largest branch counts, of a `while` loop one turn.
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of_jaxpr(jaxpr: core.Jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: core.JaxprEqn) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name == "dot_general":
        return _matrix_product(equation)
    inner = [_of_jaxpr(jaxpr) for jaxpr in _inner_jaxprs(parameters)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (parameters["length"] if name == "scan" else 1)


def _inner_jaxprs(parameters: Mapping[str, object]) -> Iterator[core.Jaxpr]:
    for value in parameters.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, core.ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, core.Jaxpr):
                yield each


def _form(value: core.Var | core.Literal) -> jax_core.ShapedArray:
    # JAX says only that it is abstract.
    return cast(jax_core.ShapedArray, value.aval)


def _convolution(equation: core.JaxprEqn) -> int:
    """Each output element is a sum over the kernel's voxels and its input channels."""
    kernel, out = _form(equation.invars[1]), _form(equation.outvars[0])
    # rhs_spec: output channels, input channels of a group, spatial axes.
    outputs = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * out.size * kernel.size // outputs


def _matrix_product(equation: core.JaxprEqn) -> int:
    """Each output element is a sum over the contracted axes."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = _form(equation.invars[0]), _form(equation.outvars[0])
    terms = 1
    for axis in contracted:
        terms *= left.shape[axis]
    return 2 * out.size * terms
