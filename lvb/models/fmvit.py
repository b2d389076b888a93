"""FMViT: A multiple-frequency mixing Vision Transformer (arXiv 2311.05707).

https://arxiv.org/abs/2311.05707. The authors released neither code nor weights, and
Table 1 is ambiguous, so this is a reconstruction: for all five sizes it comes within
2.1 % of the parameters and 6.3 % of the FLOPs of Table 2. The blocks are in
`lvb.models.fmvit_blocks`.

Choices the paper leaves open, with the field that changes them:

1. Blocks per stage (`depths`). Table 1 has lost cells, and its CFB row (3, 3, 3, 6)
   contradicts the FLOPs of Table 2: M has 1.8 G with 3 CFBs, 1.9 G with 4, published
   2.0 G. `VARIANTS` is a fit to Table 2; `PRESETS["table1_literal"]` keeps the printed
   digits, `PRESETS["best_fit"]` is closer to Table 2 (3.0 %) with four choices more.
2. Depthwise kernels (`token_kernel`, `mlp_kernel`): 3 and 7, as in FastViT, from which
   the paper takes its stem.
3. Branches beside each convolution (`groups`, `dw_branches`): groups 2, 2, 4 beside
   every 1x1 reproduce the 72.1 M and 94.9 M of Table 3, which are training-time
   parameters; a 1x1 and a batch norm beside every depthwise one ("standard").
4. Widths. "Channels" of Table 1 is read as (patch embedding, inner, output), and the
   output is always five times "FM-Channels": five features are concatenated.
5. Width of the CFBs in an FMB (`cfb_width`): the inner one, "inner"; with "pe" they
   keep the embedding's and only the attention is wider (`PRESETS["pe_fit"]`).
6. What the x of Concat(x, z1, ..., z4) is (`fm_x_from`): the output of the block's own
   patch embedding, "pe", since z1 = f1(x) must have its width; or the raw "input".
7. Patch embeddings: a stage's has its 1x1 convolution even where the width does not
   change (`stage_pe_always`), as Table 1 lists it; a later block maps straight to the
   inner width (`block_pe_to_stage_width`); 64 -> 96 precedes all CFBs of stage 1
   (`first_cfb_at_stem_width`).
8. Attention: scores are scaled by 1/sqrt(32), which Eq. (4) omits (`attn_scale`); a
   batch norm precedes and a projection follows, as in Next-ViT (`attn_prenorm`,
   `attn_out_proj`); no residual, since z4 = f4(z3) (`attn_residual`).
9. Long inputs: attention is exact and runs block by block above 2,048 tokens
   (`attention_block_size`); Next-ViT's pooled keys are off (`sr_ratio`).
10. The 3x1 and 1x3 branches of the "initial convolutions" stand beside both 3x3 ones of
   the stem (`stem_asym_on_dw`).
11. The head normalises before pooling, as Next-ViT does; it is `ClassifierHead` with
   norm="batch_before_pool", not part of the backbone. Stage outputs carry no norm.
12. Initialisation: normal of deviation 0.02, biases 0, as in Next-ViT.
13. Stochastic depth falls on both residuals of a CFB and on the MLP of an FMB, one rate
   per block, linear in depth (`drop_path_rate`).
14. Published FLOPs leave out the two products of the attention: at 512 x 512 they
   would add 10 G to the 22.2 G of Table 4. `FMViT.unpublished_macs` gives them.
15. Table 5 does not say how wide or deep FMViT-T0 is: we use T with `depths`
   (3, 1, 2, 1), row 4. Row 1 is `attention="mhsa"`, `channel_mixer="mlp"` and
   `mix_frequencies=False`, row 2 the first back at its default, row 3 the second too.
   Its tick marks are shifted by a row; rows 1 to 3 are not reproduced.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from lvb.layers import conv, drop_path, multi_branch_conv, remat
from lvb.layers.multi_branch_conv import Branch
from lvb.models import fmvit_blocks
from lvb.ops import pooling

STRIDES = (4, 8, 16, 32)
NO_DECAY = ()  # Besides norms and biases.


class Variant(NamedTuple):
    """One column of Table 1.

    Attributes:
      stem_dim: width of the stem.
      stage1_dim: width of stage 1.
      embed_dims: widths of the patch embeddings of stages 2 to 4.
      attention_dims: widths of their CFBs and attention.
      frequency_dims: their FM-Channels; five times these are the output widths.
      depths: CFBs of stage 1, FMBs of stages 2 to 4.
    """

    stem_dim: int
    stage1_dim: int
    embed_dims: tuple[int, int, int]
    attention_dims: tuple[int, int, int]
    frequency_dims: tuple[int, int, int]
    depths: tuple[int, int, int, int]


# Table 1; depths and FM-Channels of stages 2 and 3 by open choices 1 and 4.
VARIANTS = {
    "T": Variant(32, 32, (32, 80, 160), (64, 128, 192), (16, 32, 64), (3, 1, 1, 1)),
    "S": Variant(48, 48, (48, 160, 320), (96, 192, 384), (32, 64, 128), (3, 1, 1, 1)),
    "M": Variant(64, 96, (96, 160, 480), (128, 320, 512), (32, 96, 192), (4, 1, 1, 1)),
    "B": Variant(64, 96, (96, 320, 480), (256, 384, 640), (64, 96, 256), (6, 1, 2, 1)),
    "L": Variant(64, 96, (96, 320, 480), (256, 384, 640), (64, 96, 256), (12, 1, 5, 1)),
}

_BEST_FIT = dict(
    token_kernel=7,
    mlp_kernel=5,
    block_pe_to_stage_width=True,
    first_cfb_at_stem_width=True,
)
_PE_FIT = dict(cfb_width="pe", attn_out_proj=False)

# Other readings of Table 1: fields to put over those of a variant, open choices 1, 5.
PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "table1_literal": {
        "T": dict(mlp_kernel=5, depths=(3, 1, 1, 1)),
        "S": dict(mlp_kernel=5, depths=(3, 1, 1, 1)),
        "M": dict(mlp_kernel=5, depths=(3, 2, 1, 1)),
        "B": dict(mlp_kernel=5, depths=(6, 1, 2, 1)),
        "L": dict(mlp_kernel=5, depths=(6, 2, 5, 1)),
    },
    "best_fit": {
        "T": dict(**_BEST_FIT, depths=(3, 1, 1, 1)),
        "S": dict(**_BEST_FIT, depths=(3, 1, 1, 1)),
        "M": dict(**_BEST_FIT, depths=(5, 1, 1, 1)),
        "B": dict(**_BEST_FIT, depths=(6, 1, 2, 1)),
        "L": dict(**_BEST_FIT, depths=(12, 1, 5, 1)),
    },
    "pe_fit": {
        "T": dict(**_PE_FIT, depths=(3, 2, 2, 1)),
        "S": dict(**_PE_FIT, depths=(3, 1, 2, 1)),
        "M": dict(**_PE_FIT, depths=(3, 2, 2, 1)),
        # B has the widths of M in this reading.
        "B": {**VARIANTS["M"]._asdict(), **_PE_FIT, "depths": (3, 2, 9, 1)},
        "L": dict(**_PE_FIT, depths=(6, 3, 7, 1)),
    },
}


class Stem(fmvit_blocks.FMViTLayer, kw_only=True):
    """Conv 3x3 s2, DWConv 3x3 s2, Conv 1x1: (B, H, W, 3) -> (B, H / 4, W / 4, s).

    Attributes:
      features: s, width of all three.
      stem_asym_on_dw: 3x1 and 1x3 branches beside the depthwise one too.
    """

    features: int
    stem_asym_on_dw: bool = True

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = nn.relu(self._conv(1, True, name="conv")(images, train=train))
        depthwise = self._conv(self.features, self.stem_asym_on_dw, name="depthwise")
        x = nn.relu(depthwise(x, train=train))
        return nn.relu(self.pointwise(self.features, name="mix")(x, train=train))

    def _conv(
        self, groups: int, asymmetric: bool, name: str
    ) -> multi_branch_conv.MultiBranchConv:
        extra = ((3, 1), (1, 3)) if asymmetric else ()
        return multi_branch_conv.MultiBranchConv(
            self.features,
            branches=tuple(Branch(size, groups) for size in (3, *extra)),
            strides=2,
            kernel_init=conv.trunc_normal(0.02),
            name=name,
            **self.inherited,
        )


class ConvolutionStage(fmvit_blocks.FMViTLayer, kw_only=True):
    """Stage 1, CFBs only: (B, H, W, stem) -> (B, H, W, features).

    Attributes:
      features: output width.
      drop_path_rates: one per CFB.
      first_cfb_at_stem_width: widen after the first CFB; open choice 7.
    """

    features: int
    drop_path_rates: tuple[float, ...]
    first_cfb_at_stem_width: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        widen_before = 1 if self.first_cfb_at_stem_width else 0
        for index, rate in enumerate(self.drop_path_rates):
            if index == widen_before and x.shape[-1] != self.features:
                x = self.pointwise(self.features, name="embed")(x, train=train)
            x = fmvit_blocks.ConvolutionalFusionBlock(
                drop_path_rate=rate, name=f"block{index}", **self.choices
            )(x, train=train)
        return x


class FrequencyStage(fmvit_blocks.FMViTLayer, kw_only=True):
    """Stages 2 to 4, FMBs: (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 5 f).

    Attributes:
      embed_dim: P, width of the patch embedding (average pooling and a 1x1).
      attention_dim: m, see `MultiFrequencyFusionBlock`.
      frequency_dim: f, see there.
      drop_path_rates: one per FMB.
      sr_ratio: see `SelfAttention`.
      stage_pe_always: convolve even where the width does not change; open choice 7.
    """

    embed_dim: int
    attention_dim: int
    frequency_dim: int
    drop_path_rates: tuple[float, ...]
    sr_ratio: int = 1
    stage_pe_always: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = pooling.average_pool(x, window=2)
        if self.stage_pe_always or x.shape[-1] != self.embed_dim:
            x = self.pointwise(self.embed_dim, name="embed")(x, train=train)
        for index, rate in enumerate(self.drop_path_rates):
            x = fmvit_blocks.MultiFrequencyFusionBlock(
                embed_dim=self.embed_dim,
                attention_dim=self.attention_dim,
                frequency_dim=self.frequency_dim,
                sr_ratio=self.sr_ratio,
                drop_path_rate=rate,
                name=f"block{index}",
                **self.choices,
            )(x, train=train)
        return x


class FMViT(fmvit_blocks.FMViTLayer, kw_only=True):
    """The backbone: (B, H, W, 1 or 3) -> {"stage1": ..., "stage4": ...}, NHWC.

    H and W are 32 or more, odd ones too; stage k has ceil(H / 2^(k + 1)) rows.

    Attributes:
      stem_dim: see `Variant`, as the next five.
      stage1_dim: see `Variant`.
      embed_dims: see `Variant`.
      attention_dims: see `Variant`.
      frequency_dims: see `Variant`.
      depths: see `Variant`.
      sr_ratio: pooling of keys and values in stages 2 to 4; open choice 9.
      stage_pe_always: open choice 7.
      first_cfb_at_stem_width: open choice 7.
      stem_asym_on_dw: open choice 10.
      drop_path_rate: of the last block; it grows linearly from 0 at the first.
      remat: recompute each stage in the backward pass instead of storing it.
    """

    stem_dim: int
    stage1_dim: int
    embed_dims: tuple[int, int, int]
    attention_dims: tuple[int, int, int]
    frequency_dims: tuple[int, int, int]
    depths: tuple[int, int, int, int]
    sr_ratio: tuple[int, int, int] = (1, 1, 1)
    stage_pe_always: bool = True
    first_cfb_at_stem_width: bool = False
    stem_asym_on_dw: bool = True
    drop_path_rate: float = 0.0
    remat: bool = False

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the four stages, in input pixels."""
        return STRIDES

    @property
    def dims(self) -> tuple[int, ...]:
        """Widths of the four stages."""
        return (self.stage1_dim, *(5 * width for width in self.frequency_dims))

    def unpublished_macs(self, image_size: tuple[int, int]) -> int:
        """Multiply-adds of Q K^T and A V for one image, which the paper leaves out.

        Args:
          image_size: rows and columns of the image.

        Returns:
          The sum over all attentions, with the queries that fill the last block.
        """
        total = 0
        for index, channels in enumerate(self.attention_dims):
            stride, ratio = STRIDES[index + 1], self.sr_ratio[index]
            rows, columns = (-(-side // stride) for side in image_size)
            queries, keys = rows * columns, -(-rows // ratio) * -(-columns // ratio)
            block = min(self.query_block(queries) or queries, queries)
            queries = -(-queries // block) * block
            total += self.depths[index + 1] * 2 * queries * keys * channels
        return total

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        self._check_fields()
        _check_images(images.shape)
        x = images.astype(self.dtype)
        x = Stem(
            features=self.stem_dim,
            stem_asym_on_dw=self.stem_asym_on_dw,
            name="stem",
            **self.choices,
        )(x, train=train)

        features = {}
        for index, stage in enumerate(self._stages(), start=1):
            x = remat.call(stage, x, train=train, remat=self.remat)
            features[f"stage{index}"] = x
        return features

    def _stages(self) -> list[nn.Module]:
        rates = drop_path.rates(self.drop_path_rate, depths=self.depths)
        first = ConvolutionStage(
            features=self.stage1_dim,
            drop_path_rates=tuple(rates[0]),
            first_cfb_at_stem_width=self.first_cfb_at_stem_width,
            name="stage1",
            **self.choices,
        )
        return [first] + [
            FrequencyStage(
                embed_dim=self.embed_dims[index],
                attention_dim=self.attention_dims[index],
                frequency_dim=self.frequency_dims[index],
                drop_path_rates=tuple(rates[index + 1]),
                sr_ratio=self.sr_ratio[index],
                stage_pe_always=self.stage_pe_always,
                name=f"stage{index + 2}",
                **self.choices,
            )
            for index in range(3)
        ]

    def _check_fields(self) -> None:
        for field, known in (
            ("attention", fmvit_blocks.ATTENTIONS),
            ("channel_mixer", fmvit_blocks.CHANNEL_MIXERS),
            ("fm_x_from", fmvit_blocks.X_SOURCES),
            ("cfb_width", fmvit_blocks.CFB_WIDTHS),
            ("attn_prenorm", fmvit_blocks.PRENORMS),
        ):
            if getattr(self, field) not in known:
                raise ValueError(
                    f"FMViT: {field}={getattr(self, field)!r} is unknown; use one of "
                    f"{', '.join(known)}."
                )
        unknown = [
            name for name in self.dw_branches if name not in fmvit_blocks.DW_BRANCHES
        ]
        if unknown:
            raise ValueError(
                f"FMViT: dw_branches has {unknown[0]!r}; use any of "
                f"{', '.join(fmvit_blocks.DW_BRANCHES)}."
            )
        self._check_lengths()
        for channels in self.attention_dims:
            if channels % self.head_dim:
                raise ValueError(
                    f"FMViT: attention_dims={self.attention_dims} are not multiples of "
                    f"head_dim={self.head_dim}; change one of the two."
                )

    def _check_lengths(self) -> None:
        of_stages_2_to_4 = "embed_dims", "attention_dims", "frequency_dims", "sr_ratio"
        for field in ("depths", *of_stages_2_to_4):
            length = 3 if field in of_stages_2_to_4 else 4
            if len(getattr(self, field)) != length:
                raise ValueError(
                    f"FMViT: {field}={getattr(self, field)} does not have {length} "
                    f"entries, one for each of stages {5 - length} to 4."
                )


def _check_images(shape: tuple[int, ...]) -> None:
    if len(shape) != 4 or shape[-1] not in (1, 3) or min(shape[1:3]) < 32:
        raise ValueError(
            f"FMViT: images of shape {shape} do not fit; pass (B, H, W, 1 or 3) with H "
            "and W of 32 or more."
        )
