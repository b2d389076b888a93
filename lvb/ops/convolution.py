"""Convolution, NHWC, with the grouped cases written in the form a backend likes.

Symbols: x (B, H, W, C), kernel (kh, kw, C / groups, C'), padding p, stride s:

    y[b, i, j, c'] = sum_{u, v, c} kernel[u, v, c, c'] x[b, s i + u - p, s j + v - p, c]

with zeros outside the map and c in the group of c'.
"""

import jax
import jax.numpy as jnp
from jax import lax

from lvb.ops import depthwise, forms

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


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
    if groups > 1 and forms.resolve(form) == "shift":
        if groups == channels == features:
            return depthwise.depthwise_shift(
                x, kernel, strides=strides, padding=padding
            )
        if kernel.shape[:2] == (1, 1) and strides == 1 and padding == (0, 0):
            return grouped_pointwise(x, kernel, groups=groups)
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(strides, strides),
        padding=[(p, p) for p in padding],
        dimension_numbers=_DIMENSIONS,
        feature_group_count=groups,
    )


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
