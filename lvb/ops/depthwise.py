"""Depthwise convolution as shifted multiply-adds, with a gradient to match.

    y[b, i, j, c] = sum_{u, v} kernel[u, v, c] x[b, s i + u - p, s j + v - p, c]

XLA:CPU runs this sum 25 to 50 times faster than its own grouped convolution. Plain
differentiation of it is slow again, for two reasons, which the rule here avoids:

- the gradient with respect to x adds up one padded copy of dy per tap; without strides
  it is computed as the same convolution with the kernel turned around ("turned");
- the gradient with respect to a tap is a reduction over a *shifted* product, which
  does not vectorise; here rows are first added elementwise, and a product with ones
  finishes ("rows").

`python -m lvb.benchmark --operators` measures what `choose_gradient` picks from.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from lvb.ops import outline

Pair = tuple[int, int]

# "autodiff" differentiates the sum; "rows" adds rows first for the kernel's gradient;
# "turned" does that, and convolves dy with the turned kernel for the input's.
GRADIENTS = ("autodiff", "rows", "turned")
# From which the explicit gradient is used: positions of a map, and of a batch of maps.
# Below, its program costs more to compile than it saves.
_LARGE_MAP, _MANY_POSITIONS = 4 * 4, 256


# Called outside a program it is one of its own, not hundreds of a slice each.
@functools.partial(
    jax.jit, static_argnames=("strides", "padding", "gradient"), inline=True
)
def depthwise_shift(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int = 1,
    padding: Pair = (0, 0),
    gradient: str = "auto",
) -> jax.Array:
    """Depthwise convolution with symmetric zero padding.

    Reverse-mode differentiation only, unless the gradient is "autodiff".

    Args:
      x: (B, H, W, C).
      kernel: (kh, kw, 1, C).
      strides: of both axes.
      padding: zeros on each side, (rows, columns).
      gradient: one of `GRADIENTS`, all equal; "auto" is what `choose_gradient` says.

    Returns:
      (B, H', W', C) with H' = (H + 2 p - kh) // s + 1.

    Raises:
      ValueError: if the gradient is unknown, or "turned" with strides.
    """
    if gradient == "auto":
        gradient = choose_gradient(
            x.shape, kernel.shape, strides=strides, padding=padding
        )
    if gradient not in GRADIENTS or (gradient == "turned" and strides > 1):
        raise ValueError(
            f"depthwise: gradient={gradient!r} is unknown, or has no form for strides="
            f"{strides}; use one of {', '.join(GRADIENTS[:2])}."
        )
    if gradient == "autodiff":
        return _row_tree(x, kernel, strides, padding)
    return _depthwise(x, kernel, strides, padding, gradient)


def choose_gradient(
    shape: tuple[int, ...],
    kernel_shape: tuple[int, ...],
    *,
    strides: int,
    padding: Pair,
) -> str:
    """The gradient that XLA:CPU computes fastest, as measured.

    Args:
      shape: of x, (B, H, W, C).
      kernel_shape: (kh, kw, 1, C).
      strides: of both axes.
      padding: zeros on each side.

    Returns:
      One of `GRADIENTS`.
    """
    rows = (shape[1] + 2 * padding[0] - kernel_shape[0]) // strides + 1
    columns = (shape[2] + 2 * padding[1] - kernel_shape[1]) // strides + 1
    positions = rows * columns
    # Exported programs have a symbolic batch, and are not differentiated.
    symbolic = not isinstance(shape[0], int)
    if symbolic or positions < _LARGE_MAP or shape[0] * positions < _MANY_POSITIONS:
        return "autodiff"
    return "turned" if strides == 1 else "rows"


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _depthwise(
    x: jax.Array, kernel: jax.Array, strides: int, padding: Pair, gradient: str
) -> jax.Array:
    del gradient
    return _row_tree(x, kernel, strides, padding)


def _forward(
    x: jax.Array, kernel: jax.Array, strides: int, padding: Pair, gradient: str
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    del gradient
    return _outlined_row_tree(x, kernel, strides, padding), (x, kernel)


def _backward(
    strides: int,
    padding: Pair,
    gradient: str,
    residuals: tuple[jax.Array, jax.Array],
    dy: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    return _outlined_gradients(*residuals, dy, strides, padding, gradient)


_depthwise.defvjp(_forward, _backward)


def _gradients(
    x: jax.Array,
    kernel: jax.Array,
    dy: jax.Array,
    strides: int,
    padding: Pair,
    gradient: str,
) -> tuple[jax.Array, jax.Array]:
    if gradient == "turned":
        height, width = kernel.shape[:2]
        opposite = (height - 1 - padding[0], width - 1 - padding[1])
        dx = _row_tree(dy, kernel[::-1, ::-1], 1, opposite)
    else:
        transpose = jax.linear_transpose(
            lambda inputs: _row_tree(inputs, kernel, strides, padding), x
        )
        (dx,) = transpose(dy)
    return dx, _kernel_gradient(x, kernel, dy, strides, padding)


def _row_tree(
    x: jax.Array, kernel: jax.Array, strides: int, padding: Pair
) -> jax.Array:
    """One partial sum per kernel row gives the compiler chains to interleave."""
    height, width = kernel.shape[:2]
    padded = pad(x, padding)
    taps = jnp.reshape(kernel, (height, width, 1, 1, 1, kernel.shape[-1]))
    rows = (padded.shape[1] - height) // strides + 1
    columns = (padded.shape[2] - width) // strides + 1
    return sum(
        sum(
            tap_of(padded, u, v, rows, columns, strides) * taps[u, v]
            for v in range(width)
        )
        for u in range(height)
    )


def _kernel_gradient(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, strides: int, padding: Pair
) -> jax.Array:
    height, width = kernel.shape[:2]
    padded = pad(x, padding)
    _, rows, columns, channels = dy.shape
    # The most rows added elementwise at a time, of those that divide the map.
    step = next(count for count in (14, 8, 7, 4, 3, 2, 1) if rows % count == 0)
    parts = [lax.slice_in_dim(dy, i, rows, step, axis=1) for i in range(step)]
    wide = jnp.promote_types(dy.dtype, jnp.float32)

    def tap(u: int, v: int) -> jax.Array:
        shifted = tap_of(padded, u, v, rows, columns, strides)
        products = [
            lax.slice_in_dim(shifted, i, rows, step, axis=1) * parts[i]
            for i in range(step)
        ]
        flat = jnp.reshape(sum(products), (-1, channels)).astype(wide)
        return jnp.ones((1, flat.shape[0]), wide) @ flat  # (1, C)

    taps = [tap(u, v) for u in range(height) for v in range(width)]
    return jnp.reshape(jnp.stack(taps), kernel.shape).astype(kernel.dtype)


def pad(x: jax.Array, padding: Pair) -> jax.Array:
    """Puts so many zeros around the map: (rows, columns) on each side."""
    return jnp.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)))


def tap_of(
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


_outlined_row_tree = outline.outlined(_row_tree, static_argnums=(2, 3))
_outlined_gradients = outline.outlined(_gradients, static_argnums=(3, 4, 5))
