"""The blocks of FMViT (arXiv 2311.05707, Section 3), from small to large.

The open choices that their comments number are listed in `lvb.models.fmvit`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lvb.layers import conv, conv_norm, drop_path, module, multi_branch_conv, norm
from lvb.layers.multi_branch_conv import Branch
from lvb.ops import attention, pooling, reparam

ATTENTIONS = ("rlmhsa", "mhsa")
CHANNEL_MIXERS = ("gmlp", "mlp")
X_SOURCES = ("pe", "input")
CFB_WIDTHS = ("inner", "pe")
PRENORMS = ("batch", "none")
DW_BRANCHES = ("pointwise", "identity")

EXPANSION = 2  # "The expansion ratio for each MLP layer is set at 2", below Table 1.
# Ours: more query tokens than this are attended block by block. 2,048 squared scores
# of 8 heads are 128 MiB per image; 224 x 224 images have 784 tokens at most.
DENSE_TOKENS = 2048
BLOCK_SIZE = 256  # Ours: 256 queries against 16,800 keys, 8 heads: 131 MiB per image.

_INIT = conv.trunc_normal(0.02)  # Open choice 12.


class FMViTLayer(module.Layer, kw_only=True):
    """A module of the family: the choices the paper leaves open, handed to all parts.

    Attributes:
      token_kernel: side of the depthwise token mixer in a CFB; open choice 2.
      mlp_kernel: side of the depthwise convolution in an MLP; open choice 2.
      groups: groups of the branches beside each 1x1 convolution; open choice 3.
      dw_branches: what stands beside each depthwise convolution, of `DW_BRANCHES`;
        open choice 3.
      cfb_width: width of the CFBs in an FMB, one of `CFB_WIDTHS`; open choice 5.
      fm_x_from: what is x in Concat(x, z1, ...), one of `X_SOURCES`; open choice 6.
      block_pe_to_stage_width: every FMB first maps its input to the width of the
        stage's patch embedding; open choice 7.
      attention: "rlmhsa" or "mhsa" (Table 5).
      channel_mixer: "gmlp" or "mlp", which has one branch per convolution (Table 5).
      mix_frequencies: concatenate z1 to z4 (Table 5); otherwise only z4 goes on.
      head_dim: width of an attention head, 32 in the paper.
      attn_scale: factor on the attention scores; None is head_dim ** -0.5; open
        choice 8.
      attn_prenorm: "batch" or "none"; open choice 8.
      attn_residual: add the attention's input to its output; open choice 8.
      attn_out_proj: project the attention's output; open choice 8.
      attention_block_size: queries attended at a time; None is `BLOCK_SIZE` for maps
        of more than `DENSE_TOKENS` tokens and all of them below. Values are equal.
    """

    token_kernel: int = 3
    mlp_kernel: int = 7
    groups: tuple[int, ...] = (2, 2, 4)
    dw_branches: tuple[str, ...] = ("pointwise", "identity")
    cfb_width: str = "inner"
    fm_x_from: str = "pe"
    block_pe_to_stage_width: bool = False
    attention: str = "rlmhsa"
    channel_mixer: str = "gmlp"
    mix_frequencies: bool = True
    head_dim: int = 32
    attn_scale: float | None = None
    attn_prenorm: str = "batch"
    attn_residual: bool = False
    attn_out_proj: bool = True
    attention_block_size: int | None = None

    @property
    def choices(self) -> dict[str, Any]:
        """All settings, as arguments for another module of the family."""
        names = [field.name for field in dataclasses.fields(FMViTLayer)]
        return {n: getattr(self, n) for n in names if n not in ("parent", "name")}

    def query_block(self, num_tokens: int) -> int | None:
        """Queries attended at a time on a map of so many tokens; None is all."""
        if self.attention_block_size is not None:
            return self.attention_block_size
        return BLOCK_SIZE if num_tokens > DENSE_TOKENS else None

    def pointwise(
        self, features: int, *, name: str
    ) -> multi_branch_conv.MultiBranchConv:
        """A 1x1 convolution with its multi-group branches, Eq. (2)."""
        return self.branched(features, groups=self.groups, name=name)

    def branched(
        self, features: int, *, groups: tuple[int, ...], name: str
    ) -> multi_branch_conv.MultiBranchConv:
        """A dense 1x1 convolution plus one of each number of `groups`."""
        return multi_branch_conv.MultiBranchConv(
            features,
            branches=(Branch(1, 1), *(Branch(1, number) for number in groups)),
            kernel_init=_INIT,
            name=name,
            **self.inherited,
        )

    def depthwise(
        self,
        features: int,
        kernel_size: int,
        *,
        extra: tuple[str, ...],
        shortcut: bool,
        name: str,
    ) -> multi_branch_conv.MultiBranchConv:
        """A depthwise convolution plus the branches `extra` (`dw_branches`)."""
        main = Branch(kernel_size, features)
        point = (Branch(1, features),) if "pointwise" in extra else ()
        return multi_branch_conv.MultiBranchConv(
            features,
            branches=(main, *point),
            identity_norm="identity" in extra,
            shortcut=shortcut,
            kernel_init=_INIT,
            name=name,
            **self.inherited,
        )


class MultiGroupMLP(FMViTLayer, kw_only=True):
    """The gMLP, Eq. (2): (B, H, W, C) -> (B, H, W, C).

        h = ReLU(CONV'1(x));  h = ReLU(h + DW(h));  y = CONV'2(h)

    The shortcut around DW becomes part of its centre tap when deployed. The plain MLP
    of Table 5 is the same network without the parallel branches: the table gives both
    the same inference cost.
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        multi_group = self.channel_mixer == "gmlp"
        groups = self.groups if multi_group else ()
        channels = x.shape[-1]
        h = self.branched(EXPANSION * channels, groups=groups, name="expand")
        h = nn.relu(h(x, train=train))  # (B, H, W, 2 C)
        h = nn.relu(
            self.depthwise(
                EXPANSION * channels,
                self.mlp_kernel,
                extra=self.dw_branches if multi_group else (),
                shortcut=True,
                name="depthwise",
            )(h, train=train)
        )
        return self.branched(channels, groups=groups, name="reduce")(h, train=train)


class ConvolutionalFusionBlock(FMViTLayer, kw_only=True):
    """CFB, a MetaFormer block of convolutions: (B, H, W, C) -> (B, H, W, C).

        y = x + DW(x);  out = y + gMLP(y)

    No norm stands in front: the branches are normalised, and a norm before a
    zero-padded convolution could not be fused exactly at the border.

    Attributes:
      drop_path_rate: of both residual branches.
    """

    drop_path_rate: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        dropping = train and self.drop_path_rate > 0
        mixed = self.depthwise(
            x.shape[-1],
            self.token_kernel,
            extra=self.dw_branches,
            # Part of the convolution's centre tap when deployed.
            shortcut=not dropping,
            name="token_mixer",
        )(x, train=train)
        if dropping:
            drop = drop_path.DropPath(self.drop_path_rate, name="drop_token_mixer")
            mixed = x + drop(mixed, train=train)
        update = MultiGroupMLP(name="channel_mixer", **self.choices)(mixed, train=train)
        drop = drop_path.DropPath(self.drop_path_rate, name="drop_channel_mixer")
        return mixed + drop(update, train=train)


class PreNorm(module.Layer):
    """A batch norm that is a bare affine map when deployed: (..., C) -> (..., C).

    It stands before RLMHSA, where it cannot be folded into W: Q is its output too.
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if not self.deploy:
            return norm.batch_norm(self, train=train, name="norm")(x)
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        rank = (1,) * (x.ndim - 1)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        y = x.astype(wide) * jnp.reshape(scale, (*rank, -1)).astype(wide)
        return (y + jnp.reshape(bias, (*rank, -1)).astype(wide)).astype(self.dtype)

    def fuse(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the norm with its statistics as scale and bias."""
        affine = reparam.batch_norm_affine(
            variables["params"]["norm"],
            variables["batch_stats"]["norm"],
            epsilon=norm.EPSILON,
        )
        return {
            "params": {
                "scale": np.asarray(affine.scale, self.param_dtype),
                "bias": np.asarray(affine.offset, self.param_dtype),
            }
        }


class SelfAttention(FMViTLayer, kw_only=True):
    """RLMHSA, Eq. (4), or MHSA, Eq. (3), on a map: (B, H, W, C) -> (B, H, W, C).

        RLMHSA: X = BN(x);  K' = V' = X W;  out = Softmax(s X K'^T) V' per head
        MHSA:   Q = X Wq, K = X Wk, V = X Wv;  out = Softmax(s Q K^T) V per head

    both followed by an output projection. Head i owns channels 32 i to 32 i + 31, in
    X and in K' alike.

    Attributes:
      sr_ratio: keys and values are means over windows of this side; open choice 9.
    """

    sr_ratio: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        channels = x.shape[-1]
        normed = x
        if self.attn_prenorm == "batch":
            normed = PreNorm(name="prenorm", **self.inherited)(x, train=train)
        pooled = normed
        if self.sr_ratio > 1:
            pooled = pooling.average_pool(normed, window=self.sr_ratio)
        if self.attention == "rlmhsa":
            query = normed
            key = value = self.pointwise(channels, name="shared")(pooled, train=train)
        else:
            query = self._projection(channels, "query")(normed, train=train)
            key = self._projection(channels, "key")(pooled, train=train)
            value = self._projection(channels, "value")(pooled, train=train)
        mixed = attention.dot_product_attention(
            self._heads(query),
            self._heads(key),
            value=self._heads(value),
            scale=self.head_dim**-0.5 if self.attn_scale is None else self.attn_scale,
            block_size=self.query_block(query.shape[1] * query.shape[2]),
        )  # (B, N, h, D)
        y = jnp.reshape(mixed, x.shape)
        if self.attn_out_proj:
            project = self.pointwise if self.attention == "rlmhsa" else self._projection
            y = project(channels, name="projection")(y, train=train)
        return x + y if self.attn_residual else y

    def _projection(self, features: int, name: str) -> conv_norm.ConvNorm:
        """A 1x1 convolution of the plain MHSA, without parallel branches."""
        return conv_norm.ConvNorm(
            features, kernel_init=_INIT, name=name, **self.inherited
        )

    def _heads(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H W, C / D, D)."""
        return jnp.reshape(
            x, (x.shape[0], -1, x.shape[-1] // self.head_dim, self.head_dim)
        )


class MultiFrequencyFusionBlock(FMViTLayer, kw_only=True):
    """FMB: (B, H, W, C) -> (B, H, W, 5 f) with f = `frequency_dim`.

        x = PE(input);  z1 = CFB(x);  z2 = CFB(z1);  z3 = CFB(z2);  z4 = RLMHSA(z3)
        z = Concat(PE0(x), PE1(z1), PE2(z2), PE3(z3), PE4(z4));  out = z + gMLP(z)

    Without mixing (Table 5): y = z4 + MLP(z4), out = PE(y). The features (x, z1, z2,
    z3, z4) leave as the intermediate `frequencies` (Fig. 4).

    Attributes:
      embed_dim: P, width of the stage's patch embedding.
      attention_dim: m, width of the CFBs and of the attention.
      frequency_dim: f, "FM-Channels" of Table 1.
      sr_ratio: see `SelfAttention`.
      drop_path_rate: of every residual branch.
    """

    embed_dim: int
    attention_dim: int
    frequency_dim: int
    sr_ratio: int = 1
    drop_path_rate: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        raw = x
        if self.block_pe_to_stage_width:
            x = self._embed(x, self.embed_dim, train, name="stage_embed")
        inner = self.embed_dim if self.cfb_width == "pe" else self.attention_dim
        x = self._embed(x, inner, train, name="embed")
        features = [raw if self.fm_x_from == "input" else x]
        for index in range(3):
            x = ConvolutionalFusionBlock(
                drop_path_rate=self.drop_path_rate, name=f"cfb{index}", **self.choices
            )(x, train=train)
            features.append(x)
        x = self._embed(x, self.attention_dim, train, name="attention_embed")
        x = SelfAttention(sr_ratio=self.sr_ratio, name="attention", **self.choices)(
            x, train=train
        )
        features.append(x)
        self.sow("intermediates", "frequencies", tuple(features))
        if not self.mix_frequencies:
            x = self._mlp_residual(x, train)
            return self.pointwise(5 * self.frequency_dim, name="fusion")(x, train=train)
        fused = [
            self.pointwise(self.frequency_dim, name=f"fusion{index}")(z, train=train)
            for index, z in enumerate(features)
        ]
        return self._mlp_residual(jnp.concatenate(fused, axis=-1), train)

    def _embed(self, x: jax.Array, features: int, train: bool, name: str) -> jax.Array:
        """Patch embedding at equal resolution: nothing if the width is right."""
        if x.shape[-1] == features:
            return x
        return self.pointwise(features, name=name)(x, train=train)

    def _mlp_residual(self, z: jax.Array, train: bool) -> jax.Array:
        update = MultiGroupMLP(name="channel_mixer", **self.choices)(z, train=train)
        drop = drop_path.DropPath(self.drop_path_rate, name="drop_channel_mixer")
        return z + drop(update, train=train)
