"""Convolution, NHWC, with some cases written in the form a backend likes.

Symbols: x (B, H, W, C), kernel (kh, kw, C / groups, C'), padding p, stride s:

    y[b, i, j, c'] = sum_{u, v, c} kernel[u, v, c, c'] x[b, s i + u - p, s j + v - p, c]

with zeros outside the map and c in the group of c'.

On CPUs these are sums of shifted products: depthwise convolutions, and those from the
3 channels of an image to no more than 40 features, which a few vector registers hold (2
to 8 times as fast). Others with strides are summed up by rows, see `lvb.ops.strided`.
Pointwise ones are matrix products there, which run 1.5 times as fast as the same sum
called a convolution.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from lvb.ops import contraction, depthwise, forms, outline, strided

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_FEW_CHANNELS, _FEW_FEATURES = 4, 40


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int = 1,
    padding: tuple[int, int] = (0, 0),
    groups: int = 1,
    form: str = "auto",
) -> jax.Array:
    """Convolves with symmetric zero padding.

    Args:
      x: (B, H, W, C).
      kernel: (kh, kw, C / groups, C').
      strides: of both axes.
      padding: zeros on each side, (rows, columns).
      groups: channel groups.
      form: see `lvb.ops.forms`.

    Returns:
      (B, H', W', C') with H' = (H + 2 p - kh) // s + 1.
    """
    channels, features = x.shape[-1], kernel.shape[-1]
    if forms.resolve(form) == "shift":
        if groups > 1 and groups == channels == features:
            return depthwise.depthwise_shift(
                x, kernel, strides=strides, padding=padding
            )
        pointwise = kernel.shape[:2] == (1, 1) and strides == 1 and padding == (0, 0)
        if pointwise and groups > 1:
            return grouped_pointwise(x, kernel, groups=groups)
        if pointwise:
            return linear(x, kernel[0, 0])
        if groups == 1 and has_few_channels(kernel.shape):
            return few_channels_shift(x, kernel, strides=strides, padding=padding)
        if groups == 1 and strides > 1:
            return strided.strided_rows(x, kernel, strides=strides, padding=padding)
    return _stock(x, kernel, strides, padding, groups=groups)


def has_few_channels(kernel_shape: tuple[int, ...]) -> bool:
    """Whether `few_channels_shift` is the faster form on a CPU, as measured.

    Args:
      kernel_shape: (kh, kw, C, C'), of one group.
    """
    *sides, channels, features = kernel_shape
    few = channels <= _FEW_CHANNELS and features <= _FEW_FEATURES
    return few and max(sides) > 1


@functools.partial(jax.jit, static_argnames=("strides", "padding"), inline=True)
def few_channels_shift(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int = 1,
    padding: tuple[int, int] = (0, 0),
) -> jax.Array:
    """Convolution as one multiply-add per tap and input channel.

    Each multiplies a number of the image with a vector of features. The gradient is
    that of the stock convolution; reverse mode only.

    Args:
      x: (B, H, W, C).
      kernel: (kh, kw, C, C').
      strides: of both axes.
      padding: zeros on each side, (rows, columns).

    Returns:
      (B, H', W', C'), accumulated in float32 at least.
    """
    return _few_channels(x, kernel, strides, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _few_channels(
    x: jax.Array, kernel: jax.Array, strides: int, padding: tuple[int, int]
) -> jax.Array:
    return _sum_of_products(x, kernel, strides, padding)


def _sum_of_products(
    x: jax.Array, kernel: jax.Array, strides: int, padding: tuple[int, int]
) -> jax.Array:
    height, width, channels, features = kernel.shape
    wide = jnp.promote_types(x.dtype, jnp.float32)
    sides = [(p, p) for p in padding]
    padded = jnp.pad(x.astype(wide), ((0, 0), *sides, (0, 0)))
    weights = jnp.reshape(
        kernel.astype(wide), (height, width, channels, 1, 1, 1, features)
    )
    rows = (padded.shape[1] - height) // strides + 1
    columns = (padded.shape[2] - width) // strides + 1

    def product(u: int, v: int, c: int) -> jax.Array:
        ends = (u + (rows - 1) * strides + 1, v + (columns - 1) * strides + 1)
        limits = (padded.shape[0], *ends, c + 1)
        numbers = lax.slice(padded, (0, u, v, c), limits, (1, strides, strides, 1))
        return numbers * weights[u, v, c]  # (B, H', W', 1) times (1, 1, 1, C')

    y = sum(
        sum(product(u, v, c) for v in range(width) for c in range(channels))
        for u in range(height)
    )
    return y.astype(x.dtype)


def _few_channels_forward(
    x: jax.Array, kernel: jax.Array, strides: int, padding: tuple[int, int]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _outlined_sum(x, kernel, strides, padding), (x, kernel)


def _few_channels_backward(
    strides: int,
    padding: tuple[int, int],
    residuals: tuple[jax.Array, jax.Array],
    dy: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    _, transpose = jax.vjp(
        lambda x, kernel: _stock(x, kernel, strides, padding), *residuals
    )
    return transpose(dy)


_few_channels.defvjp(_few_channels_forward, _few_channels_backward)
_outlined_sum = outline.outlined(_sum_of_products, static_argnums=(2, 3))


def _stock(
    x: jax.Array,
    kernel: jax.Array,
    strides: int,
    padding: tuple[int, int],
    *,
    groups: int = 1,
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(strides, strides),
        padding=[(p, p) for p in padding],
        dimension_numbers=_DIMENSIONS,
        feature_group_count=groups,
    )


@jax.custom_vjp
def linear(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A matrix product over the last axis; reverse-mode differentiation only.

    XLA:CPU takes the gradient of a kernel from a transposed map. The rule here has it
    transpose the narrower of the two, and compute dy once for both gradients, where it
    would compute what leads to dy in each.

    Args:
      x: (..., C).
      kernel: (C, C').

    Returns:
      (..., C').
    """
    return x @ kernel


def _linear_forward(
    x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x @ kernel, (x, kernel)


def _linear_gradients(
    x: jax.Array, kernel: jax.Array, dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    channels, features = kernel.shape
    flat_x, flat_dy = jnp.reshape(x, (-1, channels)), jnp.reshape(dy, (-1, features))
    if channels <= features:
        dkernel = contraction.contract(flat_x, flat_dy, (0, 0))
    else:
        dkernel = contraction.contract(flat_dy, flat_x, (0, 0)).T
    return dy @ kernel.T, dkernel


_outlined_linear_gradients = outline.outlined(_linear_gradients)


def _linear_backward(
    residuals: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return _outlined_linear_gradients(*residuals, dy)


linear.defvjp(_linear_forward, _linear_backward)


def grouped_pointwise(x: jax.Array, kernel: jax.Array, *, groups: int) -> jax.Array:
    """Grouped 1x1 convolution as one batched matrix product.

    Args:
      x: (B, H, W, C).
      kernel: (1, 1, C / groups, C').
      groups: channel groups.

    Returns:
      (B, H, W, C').
    """
    fan_in, features = kernel.shape[2:]
    grouped = jnp.reshape(x, (*x.shape[:3], groups, fan_in))  # (B, H, W, G, C / G)
    blocks = jnp.reshape(kernel, (fan_in, groups, features // groups))
    y = jnp.einsum("bhwgi,igo->bhwgo", grouped, blocks)  # (B, H, W, G, C' / G)
    return jnp.reshape(y, (*x.shape[:3], features))
