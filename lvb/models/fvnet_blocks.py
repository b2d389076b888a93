"""The blocks around FVNet's liquid units: attention, FFN, stage and stem.

The open choices are numbered and explained in `lvb/models/fvnet.py`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lvb.layers import conv, conv_norm, drop_path, module, norm
from lvb.models import fvnet_fluid
from lvb.ops import attention, gelu, reparam

NORMS = ("batch", "layer")
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu.gelu,
    "relu": nn.relu,
    "silu": nn.silu,
}


def slot_norm(layer: module.Layer, *, train: bool, kind: str, name: str) -> nn.Module:
    """The normalisation in front of a mixer, "batch" or "layer"; open choice 2."""
    if kind == "layer":
        return nn.LayerNorm(epsilon=1e-5, name=name, **layer.dtypes)
    return norm.batch_norm(layer, train=train, name=name)


class MultiHeadSelfAttention(module.Layer):
    """MHSA of the last stage with its norm: (B, H, W, C) -> (B, H, W, C).

        out = BN(W (softmax(q k^T / sqrt(D)) v + DWConv(v))),  [q | k | v] = BN(W' x)

    Attributes:
      head_dim: D, a divisor of C.
      norm: "batch" or "layer".
    """

    head_dim: int = 32
    norm: str = "batch"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        batch, height, width, channels = x.shape
        if channels % self.head_dim:
            raise ValueError(
                f"MultiHeadSelfAttention: {channels} channels are not divisible by "
                f"head_dim={self.head_dim}; use a divisor of {channels}."
            )
        if not (self.deploy and self.norm == "batch"):
            x = slot_norm(self, train=train, kind=self.norm, name="norm")(x)
        linear = functools.partial(
            conv_norm.ConvNorm, kernel_init=conv.trunc_normal(0.02), **self.inherited
        )
        query_key_value = linear(3 * channels, name="qkv")(x, train=train)
        query, key, value = jnp.split(query_key_value, 3, axis=-1)
        by_head = (batch, height * width, channels // self.head_dim, self.head_dim)
        out = attention.dot_product_attention(
            jnp.reshape(query, by_head),
            jnp.reshape(key, by_head),
            value=jnp.reshape(value, by_head),
            scale=self.head_dim**-0.5,
        )  # (B, N, h, D)
        # In place of a position code: any resolution.
        position = conv.Conv(
            channels,
            3,
            groups=channels,
            kernel_init=conv.trunc_normal(1 / 3),
            name="position",
            **self.inherited,
        )(value)
        out = jnp.reshape(out, x.shape) + position
        zeros = nn.initializers.zeros
        return linear(channels, scale_init=zeros, name="project")(out, train=train)

    def fuse(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Folds all batch norms; that in front goes into the q, k, v layer."""
        params, stats = variables["params"], variables["batch_stats"]

        def folded(name: str) -> reparam.Kernel:
            return conv_norm.folded(
                {"params": params[name], "batch_stats": stats[name]}
            )

        query_key_value, fused = folded("qkv"), {}
        if self.norm == "batch":
            affine = reparam.batch_norm_affine(
                params["norm"], stats["norm"], epsilon=norm.EPSILON
            )
            merged = reparam.fold_before(
                affine, query_key_value.kernel[0, 0], bias=query_key_value.bias
            )
            query_key_value = reparam.Kernel(merged.kernel[None, None], merged.bias)
        else:
            fused["norm"] = params["norm"]
        for name, merged in (("qkv", query_key_value), ("project", folded("project"))):
            fused[name] = {"conv": conv_norm.as_params(merged, self.param_dtype)}
        return {"params": {**fused, "position": params["position"]}}


class FeedForward(module.Layer):
    """FFN, pointwise: (B, H, W, C) -> (B, H, W, C), zero at initialisation.

    Attributes:
      ratio: hidden width in multiples of C.
      activation: "gelu", "relu" or "silu".
    """

    ratio: float
    activation: str = "gelu"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        linear = functools.partial(
            conv_norm.ConvNorm, kernel_init=conv.trunc_normal(0.02), **self.inherited
        )
        hidden = linear(int(self.ratio * x.shape[-1]), name="expand")(x, train=train)
        hidden = ACTIVATIONS[self.activation](hidden)
        return linear(x.shape[-1], scale_init=nn.initializers.zeros, name="project")(
            hidden, train=train
        )


class Block(module.Layer):
    """Token mixing by MPFB, attention or both, then FFN; open choices 2 and 8.

    Attributes:
      token_mixer: makes the module of the slot from `name` and the shared settings,
        or None.
      head_dim: that of an attention, or None for no attention.
      ffn_ratio: 0 for no FFN.
      residual: add the token mixer's input to its output.
      norm, activation: see `FVNet`.
      drop_path_rate: of each branch.
    """

    token_mixer: Callable[..., module.Layer] | None
    head_dim: int | None
    ffn_ratio: float
    residual: bool = True
    norm: str = "batch"
    activation: str = "gelu"
    drop_path_rate: float = 0.0

    @nn.compact
    def __call__(
        self, x: jax.Array, carry: jax.Array | None, *, train: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns the next map and the carry that an MPFB leaves, else `carry`."""

        def dropped(branch: jax.Array, name: str) -> jax.Array:
            drop = drop_path.DropPath(self.drop_path_rate, name=name)
            return drop(branch, train=train)

        if self.token_mixer is not None:
            y = slot_norm(self, train=train, kind=self.norm, name="norm")(x)
            mixer = self.token_mixer(name="token_mixer", **self.inherited)
            if isinstance(mixer, fvnet_fluid.MultiPhaseFluidBlock):
                y, carry = mixer(y, carry, train=train)
            else:
                y = mixer(y, train=train)
            x = x + dropped(y, "token_drop_path") if self.residual else y
        if self.head_dim is not None:
            y = MultiHeadSelfAttention(
                self.head_dim, self.norm, name="attention", **self.inherited
            )(x, train=train)
            x = x + dropped(y, "attention_drop_path")
        if self.ffn_ratio:
            y = FeedForward(
                self.ffn_ratio, self.activation, name="channel_mixer", **self.inherited
            )(x, train=train)
            x = x + dropped(y, "channel_drop_path")
        return x, carry


class Downsample(module.Layer):
    """Halves the map, rounding up, and widens it: (B, H, W, C) -> (B, H', W', C').

    "The depth-wise and point-wise convolution to reduce the spatial resolution and
    modulate the channel dimension, respectively"; no activation, ours.

    Attributes:
      features: C'.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = conv_norm.ConvNorm(
            x.shape[-1],
            3,
            strides=2,
            groups=x.shape[-1],
            kernel_init=conv.trunc_normal(1 / 3),
            name="depthwise",
            **self.inherited,
        )(x, train=train)
        return conv_norm.ConvNorm(
            self.features,
            kernel_init=conv.trunc_normal(0.02),
            name="pointwise",
            **self.inherited,
        )(x, train=train)


class Stage(module.Layer):
    """A downsampling, except in stage 1, and blocks: (B, H, W, C) -> (B, H', W', C').

    Every MPFB receives the carry that entered; the last one's leaves.

    Attributes:
      features: C'.
      block: makes a block from `drop_path_rate`, `name` and the shared settings.
      drop_path_rates: one per block.
      downsample: halve height and width, rounding up.
      carry_form: what becomes of the carry that enters: "repeat" repeats its entries to
        this stage's width, "learned" widens it by a matrix, "none" drops it.
    """

    features: int
    block: Callable[..., Block]
    drop_path_rates: tuple[float, ...]
    downsample: bool
    carry_form: str = "repeat"

    @nn.compact
    def __call__(
        self, x: jax.Array, carry: jax.Array | None, *, train: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        if self.downsample:
            x = Downsample(self.features, name="downsample", **self.inherited)(
                x, train=train
            )
        carry = None if self.carry_form == "none" else self._widened(carry)
        leaving = carry
        for index, rate in enumerate(self.drop_path_rates):
            block = self.block(
                drop_path_rate=rate, name=f"block{index}", **self.inherited
            )
            x, leaving = block(x, carry, train=train)
        return x, leaving

    def _widened(self, carry: jax.Array) -> jax.Array:
        """The carry at this stage's width, (B or 1, C')."""
        repeats = self.features // carry.shape[-1]
        if self.carry_form == "repeat" or not self.downsample:
            return jnp.repeat(carry, repeats, axis=-1)

        def repetition(key: jax.Array, shape: tuple[int, int], dtype: Any) -> jax.Array:
            del key
            return jnp.repeat(jnp.eye(shape[0], dtype=dtype), repeats, axis=1)

        return fvnet_fluid.wide_dense(
            self, self.features, name="carry", use_bias=False, kernel_init=repetition
        )(carry)


class Stem(module.Layer):
    """Two convolutions and an FTFU: (B, H, W, 1 or 3) -> (B, H / 4, W / 4, C).

    Attributes:
      features: C.
      hidden_features: width after the first convolution.
      flow: makes the FTFU from `name` and the shared settings.
      activation: see `FVNet`.
    """

    features: int
    hidden_features: int
    flow: Callable[..., fvnet_fluid.MultiPhaseFluidBlock]
    activation: str = "gelu"

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the first liquid state and the first carry, (B or 1, C)."""
        halving = functools.partial(
            conv_norm.ConvNorm,
            kernel_size=3,
            strides=2,
            kernel_init=conv.trunc_normal(0.02),
            **self.inherited,
        )
        x = halving(self.hidden_features, name="embed0")(images, train=train)
        x = ACTIVATIONS[self.activation](x)
        x = halving(self.features, name="embed1")(x, train=train)
        return self.flow(name="flow", **self.inherited)(x, train=train)
