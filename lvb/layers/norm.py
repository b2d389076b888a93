"""Batch, group and RMS normalisation as the four papers use them."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from lvb.layers import module
from lvb.layers.conv import Initializer
from lvb.ops import forms, sums

EPSILON = 1e-5
MOMENTUM = 0.9  # PyTorch's 0.1: running = 0.9 running + 0.1 batch.


def batch_norm(
    layer: module.Layer,
    *,
    train: bool,
    name: str,
    use_scale: bool = True,
    use_bias: bool = True,
    scale_init: Initializer = nn.initializers.ones,
) -> nn.BatchNorm:
    """Batch normalisation over all axes but the last, with `layer`'s settings.

    Statistics are float32. Under jit they are those of the global batch.

    Args:
      layer: the module that owns it.
      train: normalise by the batch and update the running statistics, unless
        `layer.frozen_batch_norm`.
      name: name of the submodule.
      use_scale: learn a scale.
      use_bias: learn an offset.
      scale_init: initialiser of the scale.

    Returns:
      A module; call it on (..., C).
    """
    return nn.BatchNorm(
        use_running_average=not train or layer.frozen_batch_norm,
        momentum=MOMENTUM,
        epsilon=EPSILON,
        use_scale=use_scale,
        use_bias=use_bias,
        scale_init=scale_init,
        # One pass over x loses digits where the mean is large against the deviation.
        use_fast_variance=False,
        dtype=layer.dtype,
        param_dtype=layer.param_dtype,
        name=name,
    )


class GroupNorm(module.Layer):
    """Group normalisation, Wu and He 2018, arXiv 1803.08494.

        y = (x - mean) / sqrt(variance + epsilon) * scale + bias

    That of Flax, statistics in float32 at least and from two passes, but for the order
    of the sums, which is faster on a CPU: over positions first, then over channels.

    Attributes:
      num_groups: parts of the channels, each normalised by itself over all positions.
      epsilon: below the root.
    """

    num_groups: int
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, C)."""
        batch, height, width, channels = x.shape
        wide = jnp.promote_types(self.dtype, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (channels,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype)
        y = jnp.reshape(x.astype(wide), (batch, height * width, channels))
        as_product = forms.resolve(self.op_form) == "shift"
        mean = functools.partial(
            _group_mean, num_groups=self.num_groups, as_product=as_product
        )
        repeat = functools.partial(
            sums.repeat_row, rows=height * width, as_product=as_product
        )
        centred = y - repeat(mean(y))
        variance = mean(jnp.square(centred))
        factor = lax.rsqrt(variance + self.epsilon) * scale.astype(wide)[None, None]
        y = centred * repeat(factor) + bias.astype(wide)[None, None]
        return jnp.reshape(y, x.shape).astype(self.dtype)


class RMSNorm(module.Layer):
    """RMS normalisation over the last axis, Zhang and Sennrich 2019, arXiv 1910.07467.

        y = x / sqrt(mean(x^2) + epsilon) * scale

    That of Flax, in float32 at least in and out, but for the gradient's sums, which run
    faster on a CPU.

    Attributes:
      epsilon: below the root.
    """

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., R, C) to the same."""
        as_product = forms.resolve(self.op_form) == "shift"
        columns = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (columns,), self.param_dtype)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        x = x.astype(wide)
        mean = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        inverse = lax.rsqrt(mean + self.epsilon)
        inverse = sums.repeat_column(inverse, columns, as_product=as_product)
        scale = jnp.reshape(scale.astype(wide), (1,) * (x.ndim - 1) + (columns,))
        return x * inverse * scale


def _group_mean(x: jax.Array, *, num_groups: int, as_product: bool) -> jax.Array:
    """The mean of each group of channels, (B, R, C) -> (B, 1, C), once per channel."""
    batch, rows, channels = x.shape
    width = channels // num_groups
    total = sums.sum_rows(x, as_product=as_product)
    total = jnp.reshape(total, (batch, 1, num_groups, width))
    mean = jnp.mean(total, axis=-1) / rows  # (B, 1, G)
    return jnp.repeat(mean, width, axis=-1)
