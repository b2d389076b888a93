"""Other ways to see the whole map, the rivals of the memory in ConvNeur Table 5.

Each maps (B, H, W, d) -> (B, H, W, d) and returns its branch only; whether the input is
added to it is the caller's business.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from lvb.layers import conv, conv_norm, module
from lvb.ops import attention

# Above this many tokens the scores, N^2 per head, are computed block by block.
_BLOCK_SIZE = 1024  # Ours: 4 MB per head and block in float32 at N = 1024.


class CBAM(module.Layer):
    """Convolutional Block Attention Module (Woo et al., ECCV 2018).

        y = x * sigma(MLP(mean_hw x) + MLP(max_hw x))
        out = y * sigma(BN(Conv7x7([mean_c y, max_c y])))

    Attributes:
      reduction: d over the hidden width of the MLP.
      kernel_size: of the spatial convolution.
    """

    reduction: int = 16
    kernel_size: int = 7

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        channels = x.shape[-1]
        if channels < self.reduction:
            raise ValueError(
                f"CBAM: {channels} channels are fewer than reduction={self.reduction}; "
                f"use at most {channels}."
            )
        wide = jnp.promote_types(self.dtype, jnp.float32)
        pooled = jnp.stack(
            [x.mean(axis=(1, 2), dtype=wide), x.max(axis=(1, 2)).astype(wide)], axis=1
        )  # (B, 2, d)
        hidden = nn.relu(self._dense(channels // self.reduction, "reduce")(pooled))
        logits = self._dense(channels, "expand")(hidden)
        gate = nn.sigmoid(jnp.sum(logits, axis=1, dtype=wide))  # (B, d)
        y = x * gate[:, None, None].astype(x.dtype)
        maps = jnp.stack(
            [y.mean(axis=-1, dtype=wide), y.max(axis=-1).astype(wide)], axis=-1
        )  # (B, H, W, 2)
        logits = conv_norm.ConvNorm(
            1, self.kernel_size, name="spatial", **self.inherited
        )(maps.astype(self.dtype), train=train)
        return y * nn.sigmoid(logits.astype(wide)).astype(y.dtype)

    def _dense(self, features: int, name: str) -> nn.Dense:
        return nn.Dense(
            features,
            use_bias=False,
            kernel_init=conv.torch_uniform,
            name=name,
            **self.dtypes,
        )


class NonLocal(module.Layer):
    """Embedded-Gaussian non-local block (Wang et al., CVPR 2018), residual left out.

        branch = W_z softmax(theta phi^T / sqrt(d / 2)) g

    theta, phi and g have width d / 2. W_z starts at zero, so that the block with its
    residual starts as the identity; the scale on the scores is ours.
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train
        batch, height, width, channels = x.shape
        if channels % 2:
            raise ValueError(
                f"NonLocal: {channels} channels cannot be halved; use {channels + 1}."
            )
        tokens = jnp.reshape(x, (batch, height * width, channels))
        theta, phi, g = (
            _dense(self, channels // 2, name)(tokens)[:, :, None]
            for name in ("theta", "phi", "g")
        )  # (B, N, 1, d / 2)
        y = attention.dot_product_attention(
            theta,
            phi,
            value=g,
            scale=(channels // 2) ** -0.5,
            block_size=block_size(height * width),
        )
        y = nn.Dense(
            channels,
            kernel_init=nn.initializers.zeros,
            name="project",
            **self.dtypes,
        )(y[:, :, 0])
        return jnp.reshape(y, x.shape)


class SelfAttention(module.Layer):
    """Multi-head self-attention over all positions, without a position code.

    Attributes:
      heads: that divide d.
    """

    heads: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train
        batch, height, width, channels = x.shape
        if channels % self.heads:
            raise ValueError(
                f"SelfAttention: {channels} channels are not divisible by "
                f"heads={self.heads}; use a divisor of {channels}."
            )
        head_dim = channels // self.heads
        qkv = _dense(self, 3 * channels, "qkv")(x)
        shape = (batch, height * width, 3, self.heads, head_dim)
        query, key, value = jnp.moveaxis(jnp.reshape(qkv, shape), 2, 0)
        y = attention.dot_product_attention(
            query,
            key,
            value=value,
            scale=head_dim**-0.5,
            block_size=block_size(height * width),
        )  # (B, N, h, D)
        return _dense(self, channels, "project")(jnp.reshape(y, x.shape))


def block_size(num_tokens: int) -> int | None:
    """Queries per block: as even as the blocks can be, so that little is padding.

    Args:
      num_tokens: N, keys and queries.

    Returns:
      At most 1024, or None where one block holds them all.
    """
    if num_tokens <= _BLOCK_SIZE:
        return None
    return math.ceil(num_tokens / math.ceil(num_tokens / _BLOCK_SIZE))


def _dense(layer: module.Layer, features: int, name: str) -> nn.Dense:
    """A linear layer with bias, normal(0.02)."""
    return nn.Dense(
        features, kernel_init=conv.trunc_normal(0.02), name=name, **layer.dtypes
    )
