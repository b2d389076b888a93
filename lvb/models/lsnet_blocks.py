"""The blocks of LSNet; `lvb.models.lsnet` lists the choices they make.

Symbols: B batch, H x W the map, C its channels, N = H W tokens, h heads.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lvb.layers import (
    conv_norm,
    drop_path,
    ls_conv,
    module,
    multi_branch_conv,
    squeeze_excite,
)
from lvb.ops import attention, relative_bias

TOKEN_MIXERS = ("lsconv", "identity")
LOCAL_MIXERS = ("repdw", "identity")


class LSLayer(module.Layer):
    """A module with the choices that concern LSNet's blocks.

    Attributes:
      token_mixer: at odd depths of stages 1-3; one of `TOKEN_MIXERS` (Table 5).
      local_mixer: at even depths; one of `LOCAL_MIXERS` (Table 8).
      squeeze_excite: SE behind the local mixer (Table 8).
      rep_branch: the 1x1 branch of the local mixer; open choice 5.
      ls_kernel_size: K_L of Eq. (7).
      small_kernel: K_S of Eq. (8).
      group_width: channels that share a kernel, C / G.
      perceive: keep the K_L x K_L convolution; open choice 8.
      aggregate: keep the dynamic convolution; open choice 8.
      ska_grouping: "interleaved" or "contiguous"; open choice 1.
      num_heads: attention heads of stage 4; open choice 6.
      key_dim: width of a query and a key; open choice 6.
      bias_table_size: side of the table of attention biases; open choice 7.
      bias_mode: "official" or "exact_offsets"; open choice 7.
      mlp_ratio: hidden width of the feed-forward layers over C.
    """

    token_mixer: str = "lsconv"
    local_mixer: str = "repdw"
    squeeze_excite: bool = True
    rep_branch: bool = True
    ls_kernel_size: int = 7
    small_kernel: int = 3
    group_width: int = 8
    perceive: bool = True
    aggregate: bool = True
    ska_grouping: str = "interleaved"
    num_heads: int = 4
    key_dim: int = 16
    bias_table_size: int = 4
    bias_mode: str = "official"
    mlp_ratio: int = 2

    @property
    def choices(self) -> dict[str, Any]:
        """All fields of this class, for another `LSLayer`; others take `inherited`."""
        names = [field.name for field in dataclasses.fields(LSLayer)]
        return {n: getattr(self, n) for n in names if n not in ("parent", "name")}


class Stem(module.Layer):
    """Overlapping patch embedding, Table 11: (B, H, W, 3) -> (B, H/8, W/8, C).

    Attributes:
      features: C; the widths are C/4, C/2, C.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for index, divisor in enumerate((4, 2, 1)):
            x = nn.relu(x) if index else x  # None behind the last.
            x = conv_norm.ConvNorm(
                self.features // divisor,
                3,
                strides=2,
                name=f"conv{index}",
                **self.inherited,
            )(x, train=train)
        return x


class Downsample(module.Layer):
    """Sec. 3.3: depthwise, then pointwise: (B, H, W, C) -> (B, H/2, W/2, features)."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        channels = x.shape[-1]
        x = conv_norm.ConvNorm(
            channels, 3, strides=2, groups=channels, name="depthwise", **self.inherited
        )(x, train=train)
        return conv_norm.ConvNorm(self.features, name="pointwise", **self.inherited)(
            x, train=train
        )


class Attention(LSLayer):
    """MHSA of stage 4, Sec. 3.3, without the skip: (B, H, W, C) -> (B, H, W, C).

    Open choices 6 and 7. Queries and keys are `key_dim` wide, values C / `num_heads`.
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        batch, height, width, channels = x.shape
        if channels % self.num_heads:
            raise ValueError(
                f"LSNet: stage 4 has {channels} channels, not divisible by "
                f"num_heads={self.num_heads}; use a divisor."
            )
        key_width = self.num_heads * self.key_dim
        qkv = conv_norm.ConvNorm(
            2 * key_width + channels, name="qkv", **self.inherited
        )(x, train=train)
        query, key, value = jnp.split(qkv, (key_width, 2 * key_width), axis=-1)
        query = conv_norm.ConvNorm(
            key_width, 3, groups=key_width, name="query", **self.inherited
        )(query, train=train)
        table = self.param(
            "attention_biases",
            nn.initializers.zeros,
            (self.num_heads, self.bias_table_size**2),
            self.param_dtype,
        )

        def tokens(y: jax.Array) -> jax.Array:
            return jnp.reshape(y, (batch, height * width, self.num_heads, -1))

        y = attention.dot_product_attention(
            tokens(query),  # (B, N, h, D)
            tokens(key),
            value=tokens(value),  # (B, N, h, C / h)
            scale=self.key_dim**-0.5,
            bias=relative_bias.relative_bias(
                table, size=(height, width), mode=self.bias_mode
            ),  # (h, N, N)
        )
        y = nn.relu(jnp.reshape(y, x.shape))
        return conv_norm.ConvNorm(
            channels,
            scale_init=nn.initializers.zeros,
            name="project",
            **self.inherited,
        )(y, train=train)


class FeedForward(LSLayer):
    """FFN, Sec. 3.3, without the skip: (B, H, W, C) -> (B, H, W, C)."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        channels = x.shape[-1]
        y = conv_norm.ConvNorm(
            self.mlp_ratio * channels, name="expand", **self.inherited
        )(x, train=train)
        return conv_norm.ConvNorm(
            channels,
            scale_init=nn.initializers.zeros,
            name="project",
            **self.inherited,
        )(nn.relu(y), train=train)


class Block(LSLayer):
    """LS block or MSA block, Fig. 3(b): (B, H, W, C) -> (B, H, W, C).

    Attributes:
      mixer: "local", "large_small" or "attention"; open choice 4.
      drop_path_rate: of the branches.
    """

    mixer: str = "local"
    drop_path_rate: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if self.mixer == "local":
            x = self._mix_locally(x, train)
        elif self.mixer == "attention":
            y = Attention(name="token_mixer", **self.choices)(x, train=train)
            x = self._add(x, y, train, "token_drop_path")
        elif self.token_mixer == "lsconv":
            y = ls_conv.LSConv(
                self.ls_kernel_size,
                self.small_kernel,
                self.group_width,
                perceive=self.perceive,
                aggregate=self.aggregate,
                grouping=self.ska_grouping,
                name="token_mixer",
                **self.inherited,
            )(x, train=train)
            x = self._add(x, y, train, "token_drop_path")
        y = FeedForward(name="channel_mixer", **self.choices)(x, train=train)
        return self._add(x, y, train, "channel_drop_path")

    def _mix_locally(self, x: jax.Array, train: bool) -> jax.Array:
        channels = x.shape[-1]
        if self.local_mixer == "repdw":
            sides = (3, 1) if self.rep_branch else (3,)
            x = multi_branch_conv.MultiBranchConv(
                channels,
                tuple(multi_branch_conv.Branch(side, channels) for side in sides),
                shortcut=True,
                name="token_mixer",
                **self.inherited,
            )(x, train=train)
        if self.squeeze_excite:
            x = squeeze_excite.SqueezeExcite(
                reduced_width(channels), name="squeeze_excite", **self.inherited
            )(x)
        return x

    def _add(self, x: jax.Array, y: jax.Array, train: bool, name: str) -> jax.Array:
        return x + drop_path.DropPath(self.drop_path_rate, name=name)(y, train=train)


class Stage(LSLayer):
    """Downsampling, then blocks: (B, H, W, C) -> (B, H/2, W/2, features).

    Attributes:
      features: channels of the stage.
      downsample: whether it starts with a `Downsample`; else H and W stay.
      odd_mixer: `Block.mixer` at odd depths; it is "local" at even ones.
      drop_path_rates: one per block.
    """

    features: int = 0
    downsample: bool = True
    odd_mixer: str = "large_small"
    drop_path_rates: tuple[float, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if self.downsample:
            x = Downsample(self.features, name="downsample", **self.inherited)(
                x, train=train
            )
        for depth, rate in enumerate(self.drop_path_rates):
            x = Block(
                mixer=self.odd_mixer if depth % 2 else "local",
                drop_path_rate=rate,
                name=f"block{depth}",
                **self.choices,
            )(x, train=train)
        return x


def reduced_width(channels: int) -> int:
    """Hidden width of SE: a quarter of the channels, to a multiple of 8, at least 8."""
    return max(8, (channels // 4 + 4) // 8 * 8)
