"""Depthwise convolution as shifted multiply-adds, with a gradient to match.

    y[b, i, j, c] = sum_{u, v} kernel[u, v, c] x[b, s i + u - p, s j + v - p, c]

XLA:CPU runs this sum 25 to 50 times faster than its own grouped convolution. Plain
differentiation of it is slow again, for two reasons, which the rule here avoids on maps
of 14 x 14 and more:

- the gradient with respect to x adds up one padded copy of dy per tap; for kernels of
  5 x 5 and more it is computed as the same convolution with the kernel turned around;
- the gradient with respect to a tap is a reduction over a *shifted* product, which
  does not vectorise; here rows are first added elementwise, and a product with ones
  finishes.

On small maps the program that this makes costs more to compile than it saves.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

Pair = tuple[int, int]
_LARGE_MAP = 14 * 14  # Positions from which the explicit gradient is used; measured.
_LARGE_KERNEL = 5  # Side from which dx is a convolution; measured: 3 is slower.


def depthwise_shift(
    x: jax.Array, kernel: jax.Array, *, strides: int = 1, padding: Pair = (0, 0)
) -> jax.Array:
    """Depthwise convolution with symmetric zero padding.

    Reverse-mode differentiation only, on maps of 14 x 14 and more.

    Args:
      x: (B, H, W, C).
      kernel: (kh, kw, 1, C).
      strides: of both axes.
      padding: zeros on each side, (rows, columns).

    Returns:
      (B, H', W', C) with H' = (H + 2 p - kh) // s + 1.
    """
    rows = (x.shape[1] + 2 * padding[0] - kernel.shape[0]) // strides + 1
    columns = (x.shape[2] + 2 * padding[1] - kernel.shape[1]) // strides + 1
    if rows * columns < _LARGE_MAP:
        return _row_tree(x, kernel, strides, padding)
    return _depthwise(x, kernel, strides, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(
    x: jax.Array, kernel: jax.Array, strides: int, padding: Pair
) -> jax.Array:
    return _row_tree(x, kernel, strides, padding)


def _forward(
    x: jax.Array, kernel: jax.Array, strides: int, padding: Pair
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _row_tree(x, kernel, strides, padding), (x, kernel)


def _backward(
    strides: int,
    padding: Pair,
    residuals: tuple[jax.Array, jax.Array],
    dy: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    return _input_gradient(x, kernel, dy, strides, padding), _kernel_gradient(
        x, kernel, dy, strides, padding
    )


_depthwise.defvjp(_forward, _backward)


def _row_tree(
    x: jax.Array, kernel: jax.Array, strides: int, padding: Pair
) -> jax.Array:
    """One partial sum per kernel row gives the compiler chains to interleave."""
    height, width = kernel.shape[:2]
    padded = _pad(x, padding)
    taps = jnp.reshape(kernel, (height, width, 1, 1, 1, kernel.shape[-1]))
    rows = (padded.shape[1] - height) // strides + 1
    columns = (padded.shape[2] - width) // strides + 1
    return sum(
        sum(
            _tap(padded, u, v, rows, columns, strides) * taps[u, v]
            for v in range(width)
        )
        for u in range(height)
    )


def _input_gradient(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, strides: int, padding: Pair
) -> jax.Array:
    height, width = kernel.shape[:2]
    if strides == 1 and min(height, width) >= _LARGE_KERNEL:
        opposite = (height - 1 - padding[0], width - 1 - padding[1])
        return _row_tree(dy, kernel[::-1, ::-1], 1, opposite)
    transpose = jax.linear_transpose(
        lambda inputs: _row_tree(inputs, kernel, strides, padding), x
    )
    return transpose(dy)[0]


def _kernel_gradient(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, strides: int, padding: Pair
) -> jax.Array:
    height, width = kernel.shape[:2]
    padded = _pad(x, padding)
    _, rows, columns, channels = dy.shape
    # The most rows added elementwise at a time, of those that divide the map.
    step = next(count for count in (14, 8, 7, 4, 3, 2, 1) if rows % count == 0)
    parts = [lax.slice_in_dim(dy, i, rows, step, axis=1) for i in range(step)]
    wide = jnp.promote_types(dy.dtype, jnp.float32)

    def tap(u: int, v: int) -> jax.Array:
        shifted = _tap(padded, u, v, rows, columns, strides)
        products = [
            lax.slice_in_dim(shifted, i, rows, step, axis=1) * parts[i]
            for i in range(step)
        ]
        flat = jnp.reshape(sum(products), (-1, channels)).astype(wide)
        return jnp.ones((1, flat.shape[0]), wide) @ flat  # (1, C)

    taps = [tap(u, v) for u in range(height) for v in range(width)]
    return jnp.reshape(jnp.stack(taps), kernel.shape).astype(kernel.dtype)


def _pad(x: jax.Array, padding: Pair) -> jax.Array:
    return jnp.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)))


def _tap(
    padded: jax.Array, u: int, v: int, rows: int, columns: int, strides: int
) -> jax.Array:
    """The padded map as tap (u, v) sees it, (B, rows, columns, C)."""
    batch, _, _, channels = padded.shape
    limits = (
        batch,
        u + (rows - 1) * strides + 1,
        v + (columns - 1) * strides + 1,
        channels,
    )
    return lax.slice(padded, (0, u, v, 0), limits, (1, strides, strides, 1))
