"""The parts of ConvNeur, from small to large; `lvb.models.convneur` assembles them."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lvb.layers import context_branch, conv, drop_path, memory_branch, module
from lvb.ops import gelu, response_norm

FUSIONS = ("gate", "add", "concat")
GATE_SCOPES = ("first_block", "stage")
LOCAL_BLOCKS = ("grn", "layer_scale")
MEMORY_AT = ("stage_start", "every_block", "none")

_LAYER_SCALE = 1e-6  # ConvNeXt's, where the block has one and no value is given.
_NORM_EPSILON = 1e-6
_STEM_STRIDE, _STAGE_STRIDE = 4, 2


class Mixer(NamedTuple):
    """What mixes positions in the global branch.

    Attributes:
      build: a layer (B, H, W, C_m) -> (B, H, W, C_m).
      skip: whether its input is added to what it returns.
    """

    build: Callable[..., nn.Module]
    skip: bool


# Table 5, branch type.
MIXERS = {
    "memory": Mixer(memory_branch.NeuralMemory, skip=False),
    "cbam": Mixer(context_branch.CBAM, skip=False),
    "nonlocal": Mixer(context_branch.NonLocal, skip=True),
    "attention": Mixer(context_branch.SelfAttention, skip=False),
}


class GlobalResponseNorm(module.Layer):
    """GRN of ConvNeXt V2, the identity at initialisation: (B, H, W, C) -> same."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape, zeros = (x.shape[-1],), nn.initializers.zeros
        return response_norm.global_response_norm(
            x,
            scale=self.param("scale", zeros, shape, self.param_dtype),
            bias=self.param("bias", zeros, shape, self.param_dtype),
        )


class LocalBranch(module.Layer):
    """The locality-preserving branch F_loc, §3.2: (B, H, W, C) -> (B, H, W, C).

        F_loc = W_2 GRN(gelu(W_1 LN(DWConv(x))))

    Attributes:
      kernel_size: of the depthwise convolution.
      block: "grn", or "layer_scale": a learned factor per channel behind W_2
        instead of GRN.
      layer_scale: initial factor; None is none for "grn" and 1e-6 for "layer_scale".
    """

    kernel_size: int = 7
    block: str = "grn"
    layer_scale: float | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        y = conv.Conv(
            channels,
            self.kernel_size,
            groups=channels,
            use_bias=True,
            kernel_init=conv.trunc_normal(0.02),
            name="depthwise",
            **self.inherited,
        )(x)
        y = layer_norm(self, name="norm")(y)
        y = dense(self, 4 * channels, name="expand")(y)  # (B, H, W, 4C)
        y = gelu.gelu(y)
        if self.block == "grn":
            y = GlobalResponseNorm(name="grn", **self.inherited)(y)
        y = dense(self, channels, name="project")(y)
        initial = self.layer_scale
        if initial is None and self.block == "layer_scale":
            initial = _LAYER_SCALE
        if initial is None:
            return y
        factor = self.param(
            "layer_scale",
            nn.initializers.constant(initial),
            (channels,),
            self.param_dtype,
        )
        return y * factor.astype(y.dtype)[None, None, None]


class GlobalBranch(module.Layer):
    """The compressed global branch, §3.3: block input X to context map G.

        G = W_expand mix(W_reduce X),  (B, H, W, C) -> (B, H, W, C)

    Attributes:
      width: C_m, of the tokens.
      mixer: a key of `MIXERS`.
      options: fields of the mixer, as (name, value) pairs.
    """

    width: int
    mixer: str = "memory"
    options: tuple[tuple[str, object], ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        tokens = dense(self, self.width, name="reduce")(x)  # (B, H, W, C_m)
        build, skip = MIXERS[self.mixer]
        mix = build(name=self.mixer, **dict(self.options), **self.inherited)
        y = mix(tokens, train=train)
        if skip:
            y = tokens + y
        return dense(self, x.shape[-1], name="expand")(y)


class Block(module.Layer):
    """One block, Eq. (6): X and an earlier block's G to F_out and the G it used.

        F_out = X + DropPath(sigma(G) * F_loc)

    Without a G it is X + DropPath(F_loc). Sows the gate sigma(G).

    Attributes:
      local_branch: builds the local branch.
      global_branch: builds the global branch; None uses the G it is handed, if any.
      fusion: "gate"; "add", F_loc + G; or "concat", W [F_loc, G].
      drop_path_rate: probability of dropping the branch of an example.
    """

    local_branch: Callable[..., nn.Module] = LocalBranch
    global_branch: Callable[..., nn.Module] | None = None
    fusion: str = "gate"
    drop_path_rate: float = 0.0

    @nn.compact
    def __call__(
        self, x: jax.Array, context: jax.Array | None = None, *, train: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        branch = self.local_branch(name="local", **self.inherited)(x)
        if self.global_branch is not None:
            context = self.global_branch(name="global_branch", **self.inherited)(
                x, train=train
            )
        if context is not None:
            branch = self._combine(branch, context)
        branch = drop_path.DropPath(self.drop_path_rate, name="drop_path")(
            branch, train=train
        )
        return x + branch, context

    def _combine(self, local: jax.Array, context: jax.Array) -> jax.Array:
        if self.fusion == "add":
            return local + context
        if self.fusion == "concat":
            both = jnp.concatenate([local, context], axis=-1)  # (B, H, W, 2C)
            return dense(self, local.shape[-1], name="concat")(both)
        wide = jnp.promote_types(context.dtype, jnp.float32)
        gate = nn.sigmoid(context.astype(wide))  # A of Eq. (6)
        self.sow("intermediates", "gate", gate)
        return gate.astype(local.dtype) * local


class Stem(module.Layer):
    """Patches of 4 x 4: (B, H, W, 1 or 3) -> (B, ceil(H / 4), ceil(W / 4), features).

    Attributes:
      features: C_1.
    """

    features: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = _patch_conv(self, self.features, _STEM_STRIDE)(
            pad_to_multiple(images, _STEM_STRIDE)
        )
        return layer_norm(self, name="norm")(x)


class Downsample(module.Layer):
    """Entry of stages 2 to 4: (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), features).

    Attributes:
      features: of the stage.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = pad_to_multiple(layer_norm(self, name="norm")(x), _STAGE_STRIDE)
        return _patch_conv(self, self.features, _STAGE_STRIDE)(x)


class Stage(module.Layer):
    """A stage: (B, H, W, C) -> (B, H', W', features).

    Attributes:
      features: of all its blocks.
      drop_path_rates: one for each block.
      downsample: whether it halves the map first.
      memory_at: "stage_start": the first block has a global branch; "every_block";
        "none".
      gate_scope: "first_block": G acts in the block that computed it; "stage": in all
        later ones too.
      block: builds a block.
      global_branch: builds a global branch.
    """

    features: int
    drop_path_rates: tuple[float, ...]
    downsample: bool = True
    memory_at: str = "stage_start"
    gate_scope: str = "first_block"
    block: Callable[..., nn.Module] = Block
    global_branch: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if self.downsample:
            x = Downsample(self.features, name="downsample", **self.inherited)(x)
        context = None
        for index, rate in enumerate(self.drop_path_rates):
            has_branch = self.memory_at == "every_block" or (
                self.memory_at == "stage_start" and index == 0
            )
            x, context = self.block(
                global_branch=self.global_branch if has_branch else None,
                drop_path_rate=rate,
                name=f"block{index}",
                **self.inherited,
            )(x, context, train=train)
            if self.gate_scope == "first_block":
                context = None
        return x


def pad_to_multiple(x: jax.Array, multiple: int) -> jax.Array:
    """Pads rows and columns with zeros at the bottom and on the right.

    Args:
      x: (B, H, W, C).
      multiple: that both sides of the result are divisible by.

    Returns:
      (B, H', W', C), less than `multiple` larger on each axis.
    """
    bottom, right = (-side % multiple for side in x.shape[1:3])
    return jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0)))


def dense(layer: module.Layer, features: int, *, name: str) -> nn.Dense:
    """A 1x1 convolution with bias: kernel normal(0.02), bias 0."""
    return nn.Dense(
        features, kernel_init=conv.trunc_normal(0.02), name=name, **layer.dtypes
    )


def layer_norm(layer: module.Layer, *, name: str) -> nn.LayerNorm:
    """Layer norm over channels; its statistics are float32 at least."""
    return nn.LayerNorm(
        epsilon=_NORM_EPSILON, use_fast_variance=False, name=name, **layer.dtypes
    )


def _patch_conv(layer: module.Layer, features: int, size: int) -> conv.Conv:
    """Convolution of non-overlapping patches of size x size."""
    return conv.Conv(
        features,
        size,
        strides=size,
        padding=0,
        use_bias=True,
        kernel_init=conv.trunc_normal(0.02),
        name="conv",
        **layer.inherited,
    )
