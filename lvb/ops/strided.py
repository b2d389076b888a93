"""Strided convolution as a one-dimensional one, which XLA:CPU does faster.

The rows under the kernel are stacked in the channels,

    X[b, i, j, (u, c)] = x[b, s i + u - p, j, c]

and the width alone is convolved. XLA:CPU gives convolutions of two axes to YNNPACK,
which takes twice as long for those with a stride as Eigen, which has all others (jax
0.10.2). Stacking costs a part of that. The gradient is that of a matrix product with
all patches.

Symbols: x (B, H, W, C), kernel (kh, kw, C, C'), padding p, stride s.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax


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
    height, width, channels, features = kernel.shape
    rows = (x.shape[1] + 2 * padding[0] - height) // strides + 1
    stacked = jnp.concatenate(
        [_rows_under(x, u - padding[0], rows, strides) for u in range(height)], axis=-1
    )  # (B, H', W, kh C)
    y = lax.conv_general_dilated(
        jnp.reshape(stacked, (-1, *stacked.shape[2:])),
        jnp.reshape(jnp.swapaxes(kernel, 0, 1), (width, height * channels, features)),
        window_strides=(strides,),
        padding=[(padding[1], padding[1])],
        dimension_numbers=("NWC", "WIO", "NWC"),
    )
    return jnp.reshape(y, (x.shape[0], rows, *y.shape[1:]))


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

    def patches(x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H', W', kh kw C)."""
        sides = [(p, p) for p in padding]
        padded = jnp.pad(x, ((0, 0), *sides, (0, 0)))
        taps = []
        for u in range(height):
            for v in range(width):
                ends = (u + (rows - 1) * strides + 1, v + (columns - 1) * strides + 1)
                limits = (padded.shape[0], *ends, padded.shape[3])
                steps = (1, strides, strides, 1)
                taps.append(lax.slice(padded, (0, u, v, 0), limits, steps))
        return jnp.concatenate(taps, axis=-1)

    found, scatter = jax.vjp(patches, x)
    flat_dy = jnp.reshape(dy, (-1, features))
    flat_patches = jnp.reshape(found, (-1, found.shape[-1]))
    # XLA:CPU transposes the left factor, so it is to be the narrower one.
    dkernel = lax.dot_general(flat_dy, flat_patches, (((0,), (0,)), ((), ()))).T
    dpatches = flat_dy @ jnp.reshape(kernel, (-1, features)).T
    (dx,) = scatter(jnp.reshape(dpatches, found.shape))
    return dx, jnp.reshape(dkernel, kernel.shape)


_convolve.defvjp(_forward, _backward)
