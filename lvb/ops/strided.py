"""Strided convolution as a sum of one-dimensional ones, which XLA:CPU does faster.

    y[b, i] = sum_u kernel[u] * x[b, s i + u - p],    * along the width

XLA:CPU gives convolutions of two axes to YNNPACK, which takes twice as long for those
with a stride as Eigen, which has the others (jax 0.10.2). The gradient is that of a
matrix product with all patches.

Symbols: x (B, H, W, C), kernel (kh, kw, C, C'), padding p, stride s.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from lvb.ops import contraction, depthwise


@functools.partial(jax.jit, static_argnames=("strides", "padding"), inline=True)
def strided_rows(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int = 1,
    padding: tuple[int, int] = (0, 0),
) -> jax.Array:
    """Convolves all channels with symmetric zero padding; reverse mode only.

    Args:
      x: (B, H, W, C).
      kernel: (kh, kw, C, C').
      strides: of both axes.
      padding: zeros on each side, (rows, columns).

    Returns:
      (B, H', W', C').
    """
    return _convolve(x, kernel, strides, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(
    x: jax.Array, kernel: jax.Array, strides: int, padding: tuple[int, int]
) -> jax.Array:
    num_rows = (x.shape[1] + 2 * padding[0] - kernel.shape[0]) // strides + 1
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def convolve_width(u: int) -> jax.Array:
        """The part of row u of the kernel, (B H', W', C')."""
        rows = _rows_under(x, u - padding[0], num_rows, strides)  # (B, H', W, C)
        return lax.conv_general_dilated(
            jnp.reshape(rows, (-1, *rows.shape[2:])),
            kernel[u],
            window_strides=(strides,),
            padding=[(padding[1], padding[1])],
            dimension_numbers=("NWC", "WIO", "NWC"),
            preferred_element_type=wide,
        )

    y = sum(convolve_width(u) for u in range(kernel.shape[0])).astype(x.dtype)
    return jnp.reshape(y, (x.shape[0], num_rows, *y.shape[1:]))


def _rows_under(x: jax.Array, first: int, rows: int, strides: int) -> jax.Array:
    """The rows first, first + s, ... of a map, so many, zeros outside."""
    wanted = range(first, first + rows * strides, strides)
    inside = [row for row in wanted if 0 <= row < x.shape[1]]
    if not inside:
        return jnp.zeros((x.shape[0], rows, *x.shape[2:]), x.dtype)
    part = lax.slice_in_dim(x, inside[0], inside[-1] + 1, strides, axis=1)
    above = (inside[0] - first) // strides
    below = rows - above - len(inside)
    return jnp.pad(part, ((0, 0), (above, below), (0, 0), (0, 0)))


def _forward(
    x: jax.Array, kernel: jax.Array, strides: int, padding: tuple[int, int]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(x, kernel, strides, padding), (x, kernel)


def _backward(
    strides: int,
    padding: tuple[int, int],
    residuals: tuple[jax.Array, jax.Array],
    dy: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    height, width, _, features = kernel.shape
    rows, columns = dy.shape[1:3]
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def patches(x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H', W', kh kw C)."""
        padded = depthwise.pad(x, padding)
        taps = [
            depthwise.tap_of(padded, u, v, rows, columns, strides)
            for u in range(height)
            for v in range(width)
        ]
        return jnp.concatenate(taps, axis=-1)

    found = patches(x)
    scatter = jax.linear_transpose(patches, jax.ShapeDtypeStruct(x.shape, wide))
    flat_dy = jnp.reshape(dy, (-1, features))
    flat_patches = jnp.reshape(found, (-1, found.shape[-1]))
    flat_kernel = jnp.reshape(kernel, (-1, features))
    # XLA:CPU transposes the left factor, so it is to be the narrower one.
    dkernel = contraction.contract(flat_dy, flat_patches, (0, 0), wide).T
    dpatches = contraction.contract(flat_dy, flat_kernel, (1, 1), wide)
    (dx,) = scatter(jnp.reshape(dpatches, found.shape))
    return dx.astype(x.dtype), jnp.reshape(dkernel, kernel.shape).astype(kernel.dtype)


_convolve.defvjp(_forward, _backward)
