"""Convolution whose kernels are given per position: LSNet's aggregation, Eq. (8).

Symbols: x (B, H, W, C), weights (B, H, W, M, K^2): at each position M kernels of K x K
taps, each shared by R = C / M channels.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from lvb.ops import forms, outline

GROUPINGS = ("interleaved", "contiguous")


# Called outside a program it is one of its own, not hundreds of a slice each.
@functools.partial(
    jax.jit, static_argnames=("kernel_size", "grouping", "form"), inline=True
)
def ska(
    x: jax.Array,
    weights: jax.Array,
    *,
    kernel_size: int = 3,
    grouping: str = "interleaved",
    form: str = "auto",
) -> jax.Array:
    """Aggregates each neighbourhood with its own kernel (SKA), LSNet Eq. (8).

        y[b, i, j, c] = sum_{u, v} weights[b, i, j, m(c), K u + v]
                                   * x[b, i + u - p, j + v - p, c],  p = (K - 1) / 2

    with zeros outside the map, taps not flipped, and m(c) the kernel of channel c:
    c mod M if interleaved (the released LSNet weights), c // R if contiguous (channel
    groups as Sec. 3.2 words them). The two are equal up to a permutation of channels.

    The "shift" form adds shifted products in float32 and never holds the K^2-fold
    unfolded map; its gradient is written by hand, so it differentiates in reverse mode
    only. The "reference" form is a matrix product with the unfolded map. "auto" is
    "shift" on every backend, because no library has a kernel for this sum.

    Args:
      x: (B, H, W, C).
      weights: (B, H, W, M, K^2), M a divisor of C; taps row by row.
      kernel_size: K, odd.
      grouping: one of `GROUPINGS`.
      form: one of `lvb.ops.forms.FORMS`.

    Returns:
      (B, H, W, C) in x's dtype, accumulated in float32 at least.

    Raises:
      ValueError: if a shape or an option does not fit.
    """
    _check(x, weights, kernel_size, grouping)
    forms.resolve(form)  # Refuses unknown forms.
    aggregate = _reference if form == "reference" else _shift
    grouped = _split(x, weights.shape[-2], grouping)  # (B, H, W, R, M)
    y = aggregate(grouped, weights, kernel_size)
    if grouping == "contiguous":
        y = jnp.swapaxes(y, -1, -2)  # (B, H, W, M, R)
    return jnp.reshape(y, x.shape)


def _check(x: jax.Array, weights: jax.Array, kernel_size: int, grouping: str) -> None:
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(
            f"ska: kernel_size={kernel_size} has no centre tap; use an odd side."
        )
    if grouping not in GROUPINGS:
        raise ValueError(
            f"ska: grouping={grouping!r} is unknown; use one of {', '.join(GROUPINGS)}."
        )
    fits = (
        x.ndim == 4
        and weights.ndim == 5
        and weights.shape[:3] == x.shape[:3]
        and weights.shape[-1] == kernel_size**2
        and x.shape[-1] % weights.shape[-2] == 0
    )
    if not fits:
        raise ValueError(
            f"ska: weights {weights.shape} do not fit x {x.shape}; they must be "
            f"(B, H, W, M, {kernel_size**2}) with M a divisor of the channels."
        )


def _split(x: jax.Array, num_kernels: int, grouping: str) -> jax.Array:
    """Channels as (R, M): those in one column share a kernel."""
    if grouping == "interleaved":
        return jnp.reshape(x, (*x.shape[:3], -1, num_kernels))  # c = r M + m
    return jnp.swapaxes(jnp.reshape(x, (*x.shape[:3], num_kernels, -1)), -1, -2)


def _reference(x: jax.Array, weights: jax.Array, kernel_size: int) -> jax.Array:
    """The sum as one matrix product per position: x (B, H, W, R, M)."""
    taps = _shifted(x, kernel_size)
    unfolded = jnp.stack([tap() for tap in taps], axis=-1)  # (B, H, W, R, M, K^2)
    y = jnp.einsum(
        "bhwrmt,bhwmt->bhwrm",
        unfolded,
        weights,
        preferred_element_type=_wide(x),
    )
    return y.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _shift(x: jax.Array, weights: jax.Array, kernel_size: int) -> jax.Array:
    """The sum as shifted multiply-adds, a partial sum per row of the kernel.

    CPUs keep it apart from what makes the weights, which would be computed anew for
    every tap and channel; not where the batch is symbolic, as in exported programs.
    """
    if jax.default_backend() != "cpu" or not isinstance(x.shape[0], int):
        return _sum_of_shifts(x, weights, kernel_size)
    num_channels, num_kernels = x.shape[-2:]
    if num_channels >= num_kernels:  # Vectors too short for a sum per channel.
        return _outlined_sum(x, weights, kernel_size)
    taps_first = jnp.swapaxes(weights, -1, -2)
    return _outlined_channels(x, taps_first, kernel_size)


def _sum_of_shifts(x: jax.Array, weights: jax.Array, kernel_size: int) -> jax.Array:
    wide = _wide(x)
    taps = _shifted(x.astype(wide), kernel_size)
    weights = weights.astype(wide)[..., None, :, :]  # (B, H, W, 1, M, K^2)
    products = [tap() * weights[..., index] for index, tap in enumerate(taps)]
    return _sum_by_rows(products, kernel_size).astype(x.dtype)


def _sum_by_channels(x: jax.Array, weights: jax.Array, kernel_size: int) -> jax.Array:
    """`_sum_of_shifts` with a sum for each of the R channels of a kernel.

    Its M lanes lie side by side in the weights, too: (B, H, W, K^2, M). From 16 lanes
    on it is faster on XLA:CPU, with 8 and fewer slower.
    """
    wide = _wide(x)
    taps = [tap() for tap in _shifted(x.astype(wide), kernel_size)]
    weights = weights.astype(wide)
    channels = [
        _sum_by_rows(
            [tap[..., r, :] * weights[..., t, :] for t, tap in enumerate(taps)],
            kernel_size,
        )
        for r in range(x.shape[-2])
    ]
    return jnp.stack(channels, axis=-2).astype(x.dtype)


def _shift_forward(
    x: jax.Array, weights: jax.Array, kernel_size: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _shift(x, weights, kernel_size), (x, weights)


def _shift_backward(
    kernel_size: int, residuals: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return _outlined_gradients(*residuals, dy, kernel_size)


_shift.defvjp(_shift_forward, _shift_backward)


def _gradients(
    x: jax.Array, weights: jax.Array, dy: jax.Array, kernel_size: int
) -> tuple[jax.Array, jax.Array]:
    """dx[p] = sum_t w[p - t] dy[p - t] and dw[p, m, t] = sum_r x[p + t] dy[p].

    The sum over the R channels of a kernel is spelled out: as `.sum(axis)` XLA:CPU
    fuses it with the shift and takes many times as long.
    """
    wide = _wide(x)
    num_taps = kernel_size**2
    dy = dy.astype(wide)
    wide_weights = weights.astype(wide)[..., None, :, :]  # (B, H, W, 1, M, K^2)
    # Tap t of the forward pass reads p + t, so its mirror image reads p - t.
    dy_taps = _shifted(dy, kernel_size)[::-1]
    weight_taps = [
        _shifted(wide_weights[..., index], kernel_size)[num_taps - 1 - index]
        for index in range(num_taps)
    ]
    dx = _sum_by_rows(
        [tap() * weight() for tap, weight in zip(dy_taps, weight_taps, strict=True)],
        kernel_size,
    )
    dweights = [
        sum(tap()[..., r, :] * dy[..., r, :] for r in range(x.shape[-2]))
        for tap in _shifted(x.astype(wide), kernel_size)
    ]
    return dx.astype(x.dtype), jnp.stack(dweights, axis=-1).astype(weights.dtype)


_outlined_sum = outline.outlined(_sum_of_shifts, static_argnums=(2,))
_outlined_channels = outline.outlined(_sum_by_channels, static_argnums=(2,))
_outlined_gradients = outline.outlined(_gradients, static_argnums=(3,))


def _shifted(x: jax.Array, kernel_size: int) -> list[functools.partial[jax.Array]]:
    """For each tap, row by row, a function that gives x moved to it, zero-padded.

    Args:
      x: (B, H, W, R, M).
      kernel_size: K.

    Returns:
      K^2 functions of no arguments, each returning x's shape.
    """
    batch, height, width, *channels = x.shape
    margin = (kernel_size - 1) // 2
    padded = jnp.pad(
        x, ((0, 0), (margin, margin), (margin, margin)) + ((0, 0),) * len(channels)
    )
    return [
        functools.partial(
            lax.slice,
            padded,
            (0, row, column) + (0,) * len(channels),
            (batch, row + height, column + width, *channels),
        )
        for row in range(kernel_size)
        for column in range(kernel_size)
    ]


def _sum_by_rows(products: list[jax.Array], kernel_size: int) -> jax.Array:
    """Adds each row of taps, then the rows: independent chains for the compiler."""
    starts = range(0, kernel_size**2, kernel_size)
    return sum(sum(products[start : start + kernel_size]) for start in starts)


def _wide(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)
