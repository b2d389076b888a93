"""ConvNeur: a convolutional branch gated by a neural memory.

"Efficiency Follows Global-Local Decoupling" (Yang et al.),
https://github.com/NUST-Machine-Intelligence-Laboratory/ConvNeur. Four stages of
ConvNeXt-like blocks; the first block of each is modulated by the sigmoid of a context
map that a small memory network computes while it learns the image, chunk by chunk.

**Choices the paper leaves open**, each with its field. "Counts" means that the
published parameters and FLOPs of Tables 1, 2 and 5 fit no other choice we tried.

 1. Where is the memory? In the first block of each stage (§3.5); `memory_at` has
    "every_block" and "none" for Table 5. G modulates only that block (counts of the
    concat row): `gate_scope`.
 2. How is it initialised? M_0 is learned, Glorot uniform with gain 0, the same for all
    images. Each image of a batch has a memory of its own; nothing leaks between them.
 3. Read before or after the write? Before, Eq. (2), so chunk t knows the chunks before
    it, chunk 1 knows nothing, and a map of one chunk (stages 3 and 4 at 224 px) sees a
    plain MLP per position, whose store gets no gradient: `read`, `chunk_size`.
 4. What if the tokens do not fill a chunk? The last one holds fewer; its padding has no
    step and is dropped.
 5. What is a chunk? 196 tokens in row-major order, "flatten, then partition" (§3.3);
    `chunk_layout="window"` takes 14 x 14 windows. COCO uses `chunk_size=4096`.
 6. What network is M? One hidden layer of 4 C_m, GELU, layer norm, gain and residual
    (counts; the titans-pytorch package), one memory head: `heads` admits only 1.
 7. Where is the inner gradient taken? At M_{t-1}, Eq. (3); the package takes it at M_0:
    `grad_at`. The latter can run all chunks in parallel: `recurrence`.
 8. Is Eq. (3) a sum or a mean over the chunk, and is there a limit? Eq. (3) as a sum
    with step 1 diverges within a few chunks, so we take the mean and clip the gradient
    smoothly: `token_reduce`, `inner_lr`, `inner_clip`. A sum with step 1 at L = 196 is
    a mean with step 196; COCO's literal 1e-3 at L = 4096 needs `token_reduce="sum"`, in
    a mean stay within 1 to 4.
 9. How fast does it forget? alpha starts at sigma(-3) = 5 % per chunk, eta at 1/2:
    `decay_bias`, `momentum_bias`. The layer norm inside M has epsilon 1e-3, because
    with 1e-5 the outer gradient grows a thousandfold over 80 chunks: `memory_norm_eps`.
10. How are chunk-wise rates read off? From an attention-pooled mean (counts): `pool`.
11. What follows through the memory? The full second-order gradient, in float32:
    `inner_second_order`, `inner_dtype`; `bptt_chunks` truncates it, for 80 chunks and
    more.
12. `preset="package"` sets 7 to 9 as titans-pytorch has them (initial, sum, step 1, no
    clip, b_alpha = 0, epsilon 1e-5): probably what was trained, but it overshoots.
13. Is C_m per stage? No (counts); it equals C_2, against the text's C_m < C:
    `memory_width`. No norm surrounds the branch.
14. What is the local branch? Depthwise 7x7, LN, 4x MLP with exact GELU and GRN, biases
    everywhere (M4's count decides for GRN): `kernel_size`, `block`, `layer_scale`.
15. How are G and F_loc joined? By the gate of Eq. (6), which starts at 1/2: `fusion`.
16. Stem 4x4 stride 4 and LN; stage entries LN and 2x2 stride 2 (counts). Sides that do
    not divide are padded with zeros at the bottom and on the right.
17. Drop-path is unpublished: `drop_path_rate`, 0 by default.
18. The rivals of Table 5 (CBAM, non-local, self-attention with 4 heads) take the place
    of the memory in the same scaffold: `global_branch`.

There is no batch norm and no parallel linear branch, so there is nothing to fuse: the
deployed network has the parameters of the trained one, unless `global_branch="cbam"`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lvb.layers import drop_path, module, remat
from lvb.models import convneur_blocks as blocks


class Variant(NamedTuple):
    """One row of Table 1; the chunk size, 196, is common to all."""

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    memory_width: int


# Table 1. tests/paper_tables.py holds the published parameter counts and FLOPs.
VARIANTS = {
    "M1": Variant(depths=(2, 2, 6, 2), dims=(40, 80, 160, 320), memory_width=80),
    "M2": Variant(depths=(2, 2, 6, 2), dims=(48, 96, 192, 384), memory_width=96),
    "M3": Variant(depths=(2, 2, 6, 2), dims=(64, 128, 256, 512), memory_width=128),
    "M4": Variant(depths=(2, 2, 8, 2), dims=(80, 160, 320, 640), memory_width=160),
}


class Preset(NamedTuple):
    """The fields of `ConvNeur` that the reading of Eqs. (3) and (4) decides."""

    grad_at: str
    token_reduce: str
    inner_lr: float
    inner_clip: float
    decay_bias: float
    momentum_bias: float
    memory_norm_eps: float


PRESETS = {
    "paper": Preset("previous", "mean", 1.0, 1.0, -3.0, 0.0, 1e-3),
    "package": Preset("initial", "sum", 1.0, 0.0, 0.0, 0.0, 1e-5),
}

STRIDES = (4, 8, 16, 32)  # Input pixels per position of stage1 ... stage4.


def idle_stores(
    image_size: int, *, chunk_size: int = 196, max_depth: int = 8
) -> tuple[str, ...]:
    """Paths of the memory parameters that get no gradient at an image size.

    A map of one chunk is never written (choice 3). Weight decay alone would shrink the
    kernels of its store by e^-9 over the paper's recipe, so recipes exempt them.

    Args:
      image_size: side of the square images, pixels.
      chunk_size: L, tokens.
      max_depth: blocks per stage to list, for `memory_at="every_block"`; M4 has 8.

    Returns:
      "stage3/block0/global_branch/memory/store" and the like.
    """
    return tuple(
        f"stage{stage}/block{block}/global_branch/memory/store"
        for stage, stride in enumerate(STRIDES, start=1)
        if (-(-image_size // stride)) ** 2 <= chunk_size
        for block in range(max_depth)
    )


# Undecayed besides vectors, as names for `lvb.training.optimizer.decay_mask`: the
# matrices of M_0, which the memory's own decay shrinks already, and the stores that are
# idle at the paper's 224 px.
NO_DECAY = ("initial_hidden", "initial_output", *idle_stores(224))

_CHOICES = {
    "preset": tuple(PRESETS),
    "memory_at": blocks.MEMORY_AT,
    "gate_scope": blocks.GATE_SCOPES,
    "fusion": blocks.FUSIONS,
    "block": blocks.LOCAL_BLOCKS,
    "global_branch": tuple(blocks.MIXERS),
}


class ConvNeur(module.Layer):
    """The backbone: (B, H, W, 1 or 3) -> {"stage1": ..., "stage4": ...}, NHWC.

    Any size of image fits. Fields marked * default to those of `preset`; the numbers
    in parentheses are those of the list at the top of this file.

    Attributes:
      depths: blocks per stage.
      dims: channels per stage.
      memory_width: C_m (13).
      preset: "paper" or "package" (12).
      grad_at: * "previous" or "initial" (7).
      token_reduce: * "mean" or "sum" (8).
      inner_lr: * largest inner step of a token (8).
      inner_clip: * bound of the inner gradient's norm; 0 is off (8).
      decay_bias: * initial logit of the decay (9).
      momentum_bias: * initial logit of the momentum (9).
      memory_norm_eps: * epsilon of the layer norm inside the memory (9).
      read: "before" or "after" (3).
      memory_at: "stage_start", "every_block" or "none" (1).
      gate_scope: "first_block" or "stage" (1).
      fusion: "gate", "add" or "concat" (15).
      block: "grn" or "layer_scale" (14).
      heads: memory heads, 1 (6).
      pool: "attention" or "mean" (10).
      chunk_size: L, tokens (5).
      chunk_layout: "raster" or "window" (5).
      inner_second_order: follow the outer gradient through the inner Hessian (11).
      inner_dtype: type of the factors of the fast-weight products (11).
      bptt_chunks: chunks between cuts of the outer gradient; None never cuts (11).
      recurrence: "scan" or "associative" (7).
      global_branch: a key of `convneur_blocks.MIXERS` (18).
      kernel_size: of the depthwise convolution, odd (14).
      layer_scale: initial layer scale; None is that of `block` (14).
      drop_path_rate: of the last block; grows linearly from 0 (17).
      remat: recompute each stage in the backward pass instead of storing it.
    """

    depths: tuple[int, ...] = VARIANTS["M3"].depths
    dims: tuple[int, ...] = VARIANTS["M3"].dims
    memory_width: int = VARIANTS["M3"].memory_width
    preset: str = "paper"
    grad_at: str | None = None
    token_reduce: str | None = None
    inner_lr: float | None = None
    inner_clip: float | None = None
    decay_bias: float | None = None
    momentum_bias: float | None = None
    memory_norm_eps: float | None = None
    read: str = "before"
    memory_at: str = "stage_start"
    gate_scope: str = "first_block"
    fusion: str = "gate"
    block: str = "grn"
    heads: int = 1
    pool: str = "attention"
    chunk_size: int = 196
    chunk_layout: str = "raster"
    inner_second_order: bool = True
    inner_dtype: DTypeLike = jnp.float32
    bptt_chunks: int | None = None
    recurrence: str = "scan"
    global_branch: str = "memory"
    kernel_size: int = 7
    layer_scale: float | None = None
    drop_path_rate: float = 0.0
    remat: bool = False

    @property
    def strides(self) -> tuple[int, ...]:
        """Input pixels per position of each map."""
        return STRIDES

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        self._check(images)
        x = blocks.Stem(self.dims[0], name="stem", **self.inherited)(images)
        rates = drop_path.rates(self.drop_path_rate, depths=self.depths)
        features = {}
        for index, (width, stage_rates) in enumerate(
            zip(self.dims, rates, strict=True)
        ):
            name = f"stage{index + 1}"
            stage = blocks.Stage(
                width,
                drop_path_rates=tuple(stage_rates),
                downsample=index > 0,
                memory_at=self.memory_at,
                gate_scope=self.gate_scope,
                block=self._block(),
                global_branch=self._global_branch(),
                name=name,
                **self.inherited,
            )
            x = remat.call(stage, x, train=train, remat=self.remat)
            features[name] = x
        return features

    def _block(self) -> Callable[..., nn.Module]:
        local_branch = functools.partial(
            blocks.LocalBranch,
            kernel_size=self.kernel_size,
            block=self.block,
            layer_scale=self.layer_scale,
        )
        return functools.partial(
            blocks.Block, local_branch=local_branch, fusion=self.fusion
        )

    def _global_branch(self) -> Callable[..., nn.Module]:
        options = self._memory_options() if self.global_branch == "memory" else {}
        return functools.partial(
            blocks.GlobalBranch,
            width=self.memory_width,
            mixer=self.global_branch,
            options=tuple(options.items()),
        )

    def _memory_options(self) -> dict[str, Any]:
        """Fields of `NeuralMemory`: those of the preset where ours are None."""
        chosen = {
            name: value if getattr(self, name) is None else getattr(self, name)
            for name, value in PRESETS[self.preset]._asdict().items()
        }
        return dict(
            **{name: chosen[name] for name in chosen if name != "memory_norm_eps"},
            norm_epsilon=chosen["memory_norm_eps"],
            chunk_size=self.chunk_size,
            chunk_layout=self.chunk_layout,
            read=self.read,
            inner_second_order=self.inner_second_order,
            inner_dtype=self.inner_dtype,
            pool=self.pool,
            bptt_chunks=self.bptt_chunks,
            recurrence=self.recurrence,
        )

    def _check(self, images: jax.Array) -> None:
        if images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise ValueError(
                f"ConvNeur: images have shape {images.shape}; pass (B, H, W, 1 or 3)."
            )
        if len(self.dims) != 4 or len(self.depths) != 4:
            raise ValueError(
                f"ConvNeur: dims={self.dims} and depths={self.depths} must name 4 "
                "stages."
            )
        for field, known in _CHOICES.items():
            if getattr(self, field) not in known:
                raise ValueError(
                    f"ConvNeur: {field}={getattr(self, field)!r} is unknown; use one "
                    f"of {', '.join(known)}."
                )
        if self.heads != 1:
            raise ValueError(
                f"ConvNeur: heads={self.heads}, but the published counts fit only one "
                "memory head of the full width; use heads=1."
            )
        for field in ("memory_width", "kernel_size"):
            if getattr(self, field) < 1:
                raise ValueError(
                    f"ConvNeur: {field}={getattr(self, field)}; use 1 or more."
                )
