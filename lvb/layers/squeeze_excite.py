"""Squeeze-and-excitation (Hu et al., CVPR 2018)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lvb.layers import conv, module


class SqueezeExcite(module.Layer):
    """Scales channels by a gate of their means: (B, H, W, C) -> (B, H, W, C).

        y = x * sigmoid(W2 relu(W1 mean(x) + b1) + b2)

    Attributes:
      reduced_features: width of the hidden layer.
    """

    reduced_features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        wide = jnp.promote_types(self.dtype, jnp.float32)
        pooled = x.mean(axis=(1, 2), keepdims=True, dtype=wide)  # (B, 1, 1, C)
        hidden = conv.Conv(
            self.reduced_features,
            use_bias=True,
            bias_init=conv.torch_uniform_bias(channels),
            name="reduce",
            **self.inherited,
        )(pooled)
        gate = conv.Conv(
            channels,
            use_bias=True,
            bias_init=conv.torch_uniform_bias(self.reduced_features),
            name="expand",
            **self.inherited,
        )(nn.relu(hidden))
        return x * nn.sigmoid(gate.astype(wide)).astype(x.dtype)
