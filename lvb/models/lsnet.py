"""LSNet, "LSNet: See Large, Focus Small" (CVPR 2025), https://arxiv.org/abs/2503.23135.

Three stages of LS blocks (a large static kernel perceives, a small dynamic kernel
aggregates) and one of attention blocks, at strides 8, 16, 32 and 64.

**Choices the paper leaves open**; "released" is the authors' PyTorch network, whose
weights `lvb.models.lsnet_weights` converts.

 1. Which channels share a kernel of Eq. (8)? The paper divides channels into groups,
    read as contiguous; the released weights interleave: channel c uses kernel c mod G.
    We interleave; `ska_grouping`.
 2. Are the generated weights normalised? Released: a group norm over the K_S^2 taps of
    each kernel and all positions, so one weight depends on the whole map. Kept.
 3. What surrounds the LS convolution? Released: a batch norm behind it and the skip
    connection around both. Kept.
 4. Where are the "extra depth-wise convolution and SE layer"? Released: blocks
    alternate; those of even depth mix by a 3x3 depthwise convolution with a parallel
    1x1 and identity branch, then SE of a quarter of the width, and those of odd depth
    by the LS convolution or, in stage 4, by attention. Kept; `local_mixer="identity"`
    and `squeeze_excite=False` are "w/o DW" and "w/o SE" of Table 8.
 5. The 1x1 branch of 4: the logs of the released LSNet-B count 15,360 parameters less,
    which is that branch. We keep it for all three; `rep_branch=False` drops it.
 6. Attention details: released are 4 heads of width 16, a 3x3 depthwise convolution on
    the queries, a ReLU before the projection and a learned bias per absolute offset on
    a 4 x 4 grid, the map of stage 4 at 224 px; `num_heads`, `key_dim`.
 7. Biases on other maps: as the released detectors, the 16 x 16 bias matrix is resized
    like an image; `bias_mode="exact_offsets"` resizes the table of offsets instead,
    and `bias_table_size` sets its side (14 for detection and segmentation).
 8. "w/o SKA" (Table 7): a linear layer to C channels and a static K_S x K_S depthwise
    convolution, each with a batch norm, in place of weights, aggregation and norm;
    `aggregate=False`. "w/o LKP" drops the K_L x K_L convolution; `perceive=False`.
 9. Initialisation: released are PyTorch's uniform kernels and zero scales of the batch
    norms that end attention and feed-forward branches. Kept.
10. Stochastic depth: none in the paper; `drop_path_rate` acts on the branches of the LS
    convolution, attention and feed-forward layers.
"""

from typing import NamedTuple

import flax.linen as nn
import jax

from lvb.layers import drop_path, remat
from lvb.models import lsnet_blocks
from lvb.ops import dynamic_conv, relative_bias

NO_DECAY = ("attention_biases",)  # Besides all 1-D parameters; released recipe.
_MIN_SIDE = 32  # Pixels.
_SIZES = (
    "ls_kernel_size",
    "small_kernel",
    "group_width",
    "num_heads",
    "key_dim",
    "bias_table_size",
    "mlp_ratio",
)


class Variant(NamedTuple):
    """One column of Table 11: channels and blocks of the four stages."""

    dims: tuple[int, ...]
    depths: tuple[int, ...]


VARIANTS = {
    "T": Variant(dims=(64, 128, 256, 384), depths=(0, 2, 8, 10)),
    "S": Variant(dims=(96, 192, 320, 448), depths=(1, 2, 8, 10)),
    "B": Variant(dims=(128, 256, 384, 512), depths=(4, 6, 8, 10)),
}


class LSNet(lsnet_blocks.LSLayer):
    """The backbone, Fig. 3(b): (B, H, W, 1 or 3) -> {"stage1": ..., "stage4": ...}.

    The maps have ceil(H / s) x ceil(W / s) positions at strides s = 8, 16, 32, 64 and
    `dims` channels. LSNet-T has no block in stage 1: its first map is the stem's.

    Attributes:
      dims: channels of the stages; fields of `VARIANTS`.
      depths: blocks of the stages.
      drop_path_rate: of the last block; linear in depth from 0.
      remat: recompute each stage in the backward pass instead of storing it.
    """

    dims: tuple[int, ...] = VARIANTS["T"].dims
    depths: tuple[int, ...] = VARIANTS["T"].depths
    drop_path_rate: float = 0.0
    remat: bool = False

    @property
    def strides(self) -> tuple[int, ...]:
        """Input pixels per position of each map."""
        return (8, 16, 32, 64)

    def unpublished_macs(self, image_size: tuple[int, int]) -> int:
        """Multiply-adds that the paper's FLOPs leave out: none."""
        del image_size
        return 0

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        self._check(images)
        x = lsnet_blocks.Stem(self.dims[0], name="stem", **self.inherited)(
            images.astype(self.dtype), train=train
        )
        rates = drop_path.rates(self.drop_path_rate, depths=self.depths)
        features = {}
        for index, (width, stage_rates) in enumerate(
            zip(self.dims, rates, strict=True)
        ):
            name = f"stage{index + 1}"
            stage = lsnet_blocks.Stage(
                features=width,
                downsample=index > 0,
                odd_mixer="attention" if index == 3 else "large_small",
                drop_path_rates=tuple(stage_rates),
                name=name,
                **self.choices,
            )
            x = features[name] = remat.call(stage, x, train=train, remat=self.remat)
        return features

    def _check(self, images: jax.Array) -> None:
        if images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise ValueError(
                f"LSNet: images have shape {images.shape}; pass (B, H, W, 1 or 3)."
            )
        if min(images.shape[1:3]) < _MIN_SIDE:
            raise ValueError(
                f"LSNet: images are {images.shape[1]} x {images.shape[2]} px; sides "
                f"must be {_MIN_SIDE} px or more."
            )
        if len(self.dims) != 4 or len(self.depths) != 4:
            raise ValueError(
                f"LSNet: dims={self.dims} and depths={self.depths} must name 4 stages."
            )
        for field, known in (
            ("token_mixer", lsnet_blocks.TOKEN_MIXERS),
            ("local_mixer", lsnet_blocks.LOCAL_MIXERS),
            ("bias_mode", relative_bias.MODES),
            ("ska_grouping", dynamic_conv.GROUPINGS),
        ):
            if getattr(self, field) not in known:
                raise ValueError(
                    f"LSNet: {field}={getattr(self, field)!r} is unknown; use one of "
                    f"{', '.join(known)}."
                )
        for field in _SIZES:
            if getattr(self, field) < 1:
                raise ValueError(
                    f"LSNet: {field}={getattr(self, field)}; it must be 1 or more."
                )
