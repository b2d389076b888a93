"""Products of two matrices, summed over any axis of each.

XLA:CPU carries out a transposition in front of a product; a sum over other axes needs
none.
"""

import functools

import jax
from jax import lax
from jax.typing import DTypeLike


def contract(
    x: jax.Array,
    y: jax.Array,
    axes: tuple[int, int],
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """The product of two matrices, summed over an axis of each.

    Args:
      x: a matrix.
      y: a matrix of x's dtype.
      axes: of x and y, over which to sum.
      dtype: of the result; None is that of x.
    """
    first, second = axes
    dimensions = (((first,), (second,)), ((), ()))
    return lax.dot_general(x, y, dimensions, preferred_element_type=dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def contract_as_is(x: jax.Array, y: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """`contract` with gradients that come out as x and y lie; reverse mode only.

    `jax.grad` computes some of them transposed and turns them around afterwards.
    """
    return contract(x, y, axes)


def _forward(
    x: jax.Array, y: jax.Array, axes: tuple[int, int]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return contract(x, y, axes), (x, y)


def _backward(
    axes: tuple[int, int],
    residuals: tuple[jax.Array, jax.Array],
    d_product: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, y = residuals
    first, second = axes
    if first == 1:
        d_x = contract(d_product, y, (1, 1 - second))
    else:
        d_x = contract(y, d_product, (1 - second, 1))
    if second == 0:
        d_y = contract(x, d_product, (1 - first, 0))
    else:
        d_y = contract(d_product, x, (0, 1 - first))
    return d_x, d_y


contract_as_is.defvjp(_forward, _backward)
