"""Multiply-adds of a function, counted in its jaxpr.

Counted are `dot_general` and `conv_general_dilated`, also inside scans (times their
length), checkpoints and nested calls: the products of convolutions, linear layers,
attention and fast weights. Elementwise work is not, as in the papers' FLOPs; operators
that XLA computes as elementwise products (LS aggregation, depthwise convolution as
shifted multiply-adds) are counted in their reference form, `op_form="reference"`.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core


def count_macs(function: Callable[..., Any], *args: Any) -> int:
    """Counts the multiply-adds of one call.

    Args:
      function: any function that JAX can trace.
      *args: its arguments, arrays or `jax.ShapeDtypeStruct`s; nothing is computed.

    Returns:
      Multiply-adds of all products, exact.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            total += _dot_macs(equation)
        elif equation.primitive.name == "conv_general_dilated":
            total += _conv_macs(equation)
        repeats = equation.params.get("length", 1)
        if equation.primitive.name != "scan":
            repeats = 1
        total += repeats * sum(_count(inner) for inner in _inner_jaxprs(equation))
    return total


def _dot_macs(equation: core.JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)


def _conv_macs(equation: core.JaxprEqn) -> int:
    kernel = equation.invars[1].aval.shape
    out_feature_axis = equation.params["dimension_numbers"].rhs_spec[0]
    taps = math.prod(kernel) // kernel[out_feature_axis]
    return equation.outvars[0].aval.size * taps


def _inner_jaxprs(equation: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    """The jaxprs an equation calls; of a `custom_vjp` only its forward function."""
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item
