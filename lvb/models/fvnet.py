"""FVNet: Harnessing Liquid Neural Dynamics for Lightweight Visual Representation.

Hou, Chu, Hu, Li, Liu, AAAI 2026, https://github.com/HZZRua/FVNet (no code there).

Choices the paper leaves open (the field that changes each in brackets):

1. Feed-forward network and stem width [`preset`; `ffn_ratio`, `stem_width`]. The paper
   names neither, but MPFB has no budget for pointwise products: every row of Tables 6
   and 7 prints 0.4 G. The preset "fit_all" meets all figures of Table 1 to their
   rounding, with narrower networks in N; but "we only vary the block numbers and
   embedding dim", and no single rule for N, T and S does: T and S imply 1.45 M for N
   (1.2 M printed). "fit_ts" is the rule of T and S alone, "balanced" the one with the
   smallest largest error over all rows, N 15 % off.
2. Block [`residual`, `norm`, `activation`]: x + MPFB(BN(x)), then x + FFN(x). FFN is
   1x1, BN, GELU, 1x1, BN with that last scale starting at 0.
3. Neighbourhood F of Eq. (5) [`kernel_size`, `shared_local`]: a 3x3 depthwise
   convolution, shared by the phases since F has no phase index, and a batch norm
   without scale and offset, which are gamma and delta of Eq. (6).
4. tau is decay rate and step length in Eq. (5) [`tie_tau`]. False separates them as in
   Eq. (3), with a learned decay rate per channel and phase; the bound of 11 is lost.
5. Phases [`num_phases`, `tau_spans`, `stem_tau_span`, `stage_span_factor`, `tau_map`]:
   three, with tau in (0.02, 0.25), (0.25, 0.75), (0.75, 1.5) in stage 1, longer in
   deeper stages. A sigmoid keeps each in its span, positive and ordered.
6. The gate G of Eq. (4) [`gate`]: linear of rank max(8, C / 16), with a scale and an
   offset per phase. C x C maps do not fit the published parameters. The weights of
   Eq. (7) come from a two-layer network of the same width. The text also says tau
   follows local statistics; Eq. (4) pools globally, and so do we.
7. "The time-constant in former stages is also propagated" [`propagate`]: the mean
   logit of tau over the phases of a stage's last MPFB, through tanh, joins every logit
   of the next stage with a learned weight kappa; channels repeat as they double. It is
   dimensionless, so it survives the change of spans. Stages without MPFB pass it on.
8. Placement [`mpfb_stages`, `mhsa_stages`]: MPFB in stages 1 to 3, attention in stage
   4, because "+Stage3" and "w/o MHSA" are one row of Table 6. Attention has heads of 32
   channels and a depthwise convolution on the values in place of a position code.
9. No pointwise convolution in MPFB [`mixer_pointwise`], see 1.
10. Stem: two 3x3 convolutions of stride 2 and one FTFU in place of its input, without
    residual; its time constants start the propagation.
11. beta of Eq. (6) is bounded by 2, so |f| < 2 and a step enlarges a state at most e
    times. The activations of Table 7 without a bound of their own are clipped to
    [-2, 2]: |f| < 4, at most 55 times.
12. `token_mixer="depthwise"` is the DWConv row of Table 6, 3x3 and batch norm.

Deployed, batch norms are folded into convolutions and into the q, k, v layer; that in
front of MPFB stays, because the liquid state itself is its output. With 1,000 classes
N, T and S then have 1,237,656, 3,086,304 and 6,803,400 parameters; none are published.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax

from lvb.layers import conv, conv_norm, drop_path, module, remat
from lvb.models import fvnet_blocks, fvnet_fluid
from lvb.ops import liquid


class Variant(NamedTuple):
    """A row of Table 1, and the ratios with which "fit_all" meets its counts."""

    depths: tuple[int, int, int, int]
    dims: tuple[int, int, int, int]
    fitted_ffn_ratio: tuple[float, float, float, float]


class Preset(NamedTuple):
    """Open choice 1: widths in multiples of C; no ratio means the variant's fitted."""

    stem_width: float
    ffn_ratio: tuple[float, float, float, float] | None


# Table 1. tests/paper_tables.py holds the published parameter counts and FLOPs.
VARIANTS = {
    "N": Variant((2, 2, 6, 2), (24, 48, 96, 192), (3.5, 3.5, 3.5, 1.5)),
    "T": Variant((2, 3, 6, 3), (32, 64, 128, 256), (4, 4, 4, 2.5)),
    "S": Variant((3, 4, 6, 3), (48, 96, 192, 384), (4, 4, 4, 2.5)),
}

PRESETS = {
    "fit_all": Preset(1.0, None),
    "fit_ts": Preset(1.0, (4, 4, 4, 2.5)),
    "balanced": Preset(0.5, (4, 4, 4, 2)),
}

# Parameters that the recipe leaves undecayed besides norms and biases: the constants
# of the dynamics, Eqs. (4)-(6). Ours.
NO_DECAY = ("A", "beta", "gamma", "delta", "decay", "s", "t", "kappa", "logits")

TOKEN_MIXERS = ("mpfb", "depthwise")


class FVNet(module.Layer):
    """The backbone, Fig. 2: (B, H, W, 1 or 3) -> {"stage1": ..., ..., "stage4": ...}.

    Stage i is (B, ceil(H / 2^(i+1)), ceil(W / 2^(i+1)), dims[i-1]); H, W >= 32.
    Numbers in brackets are those of the open choices above.

    Attributes:
      depths: blocks per stage.
      dims: channels per stage, each a multiple of the one before.
      fitted_ffn_ratio: the FFN ratios of the preset "fit_all" [1].
      preset: "fit_all", "fit_ts" or "balanced" [1].
      ffn_ratio: hidden width of FFN per stage in multiples of C, 0 for no FFN; None
        is the preset's [1].
      stem_width: width of the first convolution in multiples of dims[0]; None is the
        preset's [1].
      residual: x + MPFB(x) instead of MPFB(x) alone [2].
      norm: "batch" or "layer", in front of MPFB and attention [2].
      activation: "gelu", "relu" or "silu", in stem and FFN [2].
      kernel_size: side of the neighbourhood F [3].
      shared_local: one neighbourhood for all phases [3].
      tie_tau: tau is the decay rate as well as the step length [4].
      num_phases: N of Eq. (8) [5].
      tau_spans: (low, high) of tau in stage 1, one per phase, or None for the table of
        three phases; another number of phases divides the same range evenly [5].
      stem_tau_span: (low, high) of tau in the stem [5].
      stage_span_factor: what each stage multiplies the spans by [5].
      tau_map: "sigmoid" or "softplus" [5].
      gate: "low_rank", "channelwise", "dense" or "dense_per_phase" [6].
      propagate: "logit"; "learned", which widens it by a matrix; "log_tau", which hands
        on the mean of log(tau / centre); or "none" [7].
      mpfb_stages: stages with `token_mixer` [8].
      mhsa_stages: stages with attention [8].
      head_dim: channels per attention head [8].
      mixer_pointwise: end MPFB with a 1x1 convolution [9].
      token_mixer: "mpfb" or "depthwise" [12].
      gate_activation: "tanh", "sigmoid", "relu" or "linear", Table 7.
      fusion: "attention", "average", "concat" or "se", Table 7.
      use_gap: tau and fusion weights depend on the image, Table 6.
      drop_path_rate: that of the last block; grows linearly from 0.
      remat: recompute each stage in the backward pass.
    """

    depths: tuple[int, int, int, int] = VARIANTS["T"].depths
    dims: tuple[int, int, int, int] = VARIANTS["T"].dims
    fitted_ffn_ratio: tuple[float, float, float, float] = (4, 4, 4, 2.5)
    preset: str = "fit_all"
    ffn_ratio: tuple[float, float, float, float] | None = None
    stem_width: float | None = None
    residual: bool = True
    norm: str = "batch"
    activation: str = "gelu"
    kernel_size: int = 3
    shared_local: bool = True
    tie_tau: bool = True
    num_phases: int = 3
    tau_spans: tuple[tuple[float, float], ...] | None = None
    stem_tau_span: tuple[float, float] = (0.02, 0.5)
    stage_span_factor: tuple[float, float, float, float] = (1.0, 1.33, 1.67, 2.0)
    tau_map: str = "sigmoid"
    gate: str = "low_rank"
    propagate: str = "logit"
    mpfb_stages: tuple[int, ...] = (1, 2, 3)
    mhsa_stages: tuple[int, ...] = (4,)
    head_dim: int = 32
    mixer_pointwise: bool = False
    token_mixer: str = "mpfb"
    gate_activation: str = "tanh"
    fusion: str = "attention"
    use_gap: bool = True
    drop_path_rate: float = 0.0
    remat: bool = False

    @property
    def strides(self) -> tuple[int, int, int, int]:
        """Input pixels per pixel of stage1..stage4."""
        return (4, 8, 16, 32)

    def unpublished_macs(self, image_size: tuple[int, int]) -> int:
        """Multiply-adds that the paper's FLOPs leave out: none that we know of."""
        del image_size
        return 0

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        self._check_choices()
        self._check_sizes()
        self._check_spans()
        self._check_images(images)
        x, carry = self._stem()(images, train=train)
        features = {}
        for number in (1, 2, 3, 4):
            stage = self._stage(number)
            x, carry = remat.call(stage, x, carry, train=train, remat=self.remat)
            features[f"stage{number}"] = x
        return features

    def _widths(self) -> Preset:
        """The preset with the fields that override it."""
        preset = PRESETS[self.preset]
        ffn_ratio = preset.ffn_ratio or self.fitted_ffn_ratio
        return Preset(
            preset.stem_width if self.stem_width is None else self.stem_width,
            ffn_ratio if self.ffn_ratio is None else self.ffn_ratio,
        )

    def _stem(self) -> fvnet_blocks.Stem:
        return fvnet_blocks.Stem(
            self.dims[0],
            int(self._widths().stem_width * self.dims[0]),
            self._fluid_block((self.stem_tau_span,), pointwise=False),
            self.activation,
            name="stem",
            **self.inherited,
        )

    def _stage(self, number: int) -> fvnet_blocks.Stage:
        index = number - 1
        block = functools.partial(
            fvnet_blocks.Block,
            token_mixer=self._token_mixer(number),
            head_dim=self.head_dim if number in self.mhsa_stages else None,
            ffn_ratio=self._widths().ffn_ratio[index],
            residual=self.residual,
            norm=self.norm,
            activation=self.activation,
        )
        rates = drop_path.rates(self.drop_path_rate, depths=tuple(self.depths))
        return fvnet_blocks.Stage(
            self.dims[index],
            block,
            tuple(rates[index]),
            downsample=number > 1,
            carry_form=self._carry_form(number),
            name=f"stage{number}",
            **self.inherited,
        )

    def _carry_form(self, number: int) -> str:
        """How a stage takes the carry in; behind the last MPFB nobody needs it."""
        last = max(self.mpfb_stages, default=0) if self.token_mixer == "mpfb" else 0
        if self.propagate == "none" or number > last:
            return "none"
        return "learned" if self.propagate == "learned" else "repeat"

    def _token_mixer(self, number: int) -> Callable[..., module.Layer] | None:
        """What fills the slot in front of FFN in a stage."""
        if number not in self.mpfb_stages:
            return None
        if self.token_mixer == "depthwise":
            channels = self.dims[number - 1]
            return functools.partial(
                conv_norm.ConvNorm,
                features=channels,
                kernel_size=3,
                groups=channels,
                kernel_init=conv.trunc_normal(1 / 3),
            )
        factor = self.stage_span_factor[number - 1]
        return self._fluid_block(
            tuple((low * factor, high * factor) for low, high in self._spans()),
            pointwise=self.mixer_pointwise,
        )

    def _fluid_block(
        self, spans: tuple[tuple[float, float], ...], *, pointwise: bool
    ) -> Callable[..., fvnet_fluid.MultiPhaseFluidBlock]:
        return functools.partial(
            fvnet_fluid.MultiPhaseFluidBlock,
            tau_spans=spans,
            gate=self.gate,
            tau_map=self.tau_map,
            propagate=self.propagate,
            activation=self.gate_activation,
            tie_tau=self.tie_tau,
            fusion=self.fusion,
            use_gap=self.use_gap,
            kernel_size=self.kernel_size,
            shared_local=self.shared_local,
            pointwise=pointwise,
        )

    def _spans(self) -> tuple[tuple[float, float], ...]:
        """(low, high) of tau per phase in stage 1."""
        if self.tau_spans is not None:
            return self.tau_spans
        if self.num_phases == len(fvnet_fluid.TAU_SPANS):
            return fvnet_fluid.TAU_SPANS
        low, high = fvnet_fluid.TAU_SPANS[0][0], fvnet_fluid.TAU_SPANS[-1][1]
        step = (high - low) / self.num_phases
        return tuple(
            (low + n * step, low + (n + 1) * step) for n in range(self.num_phases)
        )

    def _check_choices(self) -> None:
        check = functools.partial(fvnet_fluid.check_choice, "FVNet")
        check(PRESETS, preset=self.preset)
        check(TOKEN_MIXERS, token_mixer=self.token_mixer)
        check(fvnet_fluid.FUSIONS, fusion=self.fusion)
        check(fvnet_fluid.GATES, gate=self.gate)
        check(fvnet_fluid.PROPAGATIONS, propagate=self.propagate)
        check(liquid.TAU_MAPS, tau_map=self.tau_map)
        check(liquid.GATE_ACTIVATIONS, gate_activation=self.gate_activation)
        check(fvnet_blocks.NORMS, norm=self.norm)
        check(fvnet_blocks.ACTIVATIONS, activation=self.activation)
        for number in self.mpfb_stages:
            check((1, 2, 3, 4), mpfb_stages=number)
        for number in self.mhsa_stages:
            check((1, 2, 3, 4), mhsa_stages=number)

    def _check_sizes(self) -> None:
        per_stage = dict(
            depths=self.depths,
            dims=self.dims,
            ffn_ratio=self._widths().ffn_ratio,
            stage_span_factor=self.stage_span_factor,
        )
        for field, value in per_stage.items():
            if len(value) != 4:
                raise ValueError(
                    f"FVNet: {field}={value} has {len(value)} entries; give one for "
                    "each of the 4 stages."
                )
        for before, after in itertools.pairwise(self.dims):
            if after % before:
                raise ValueError(
                    f"FVNet: dims={self.dims}, but {after} is not a multiple of "
                    f"{before}; the time constants of a stage repeat in the next."
                )
        widths = self._widths()
        ratios = {"stem_width": (widths.stem_width, self.dims[0])}
        for dim, ratio in zip(self.dims, widths.ffn_ratio, strict=True):
            if ratio:
                ratios[f"ffn_ratio at {dim} channels"] = (ratio, dim)
        for field, (ratio, dim) in ratios.items():
            if ratio * dim < 1:
                raise ValueError(
                    f"FVNet: {field} of {ratio} leaves no channel; use at least "
                    f"{1 / dim:g}."
                )

    def _check_spans(self) -> None:
        if self.num_phases < 1 or len(self._spans()) != self.num_phases:
            raise ValueError(
                f"FVNet: num_phases={self.num_phases} does not fit "
                f"tau_spans={self.tau_spans}; give one (low, high) per phase."
            )
        for low, high in (*self._spans(), self.stem_tau_span):
            if not 0 < low < high:
                raise ValueError(
                    f"FVNet: the span ({low}, {high}) of tau is not positive and "
                    "increasing; use 0 < low < high."
                )

    def _check_images(self, images: jax.Array) -> None:
        if images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise ValueError(
                f"FVNet: images of shape {images.shape} do not fit; "
                "pass (B, H, W, 1 or 3)."
            )
        if min(images.shape[1:3]) < 32:
            raise ValueError(
                f"FVNet: images of {images.shape[1]}x{images.shape[2]} pixels are too "
                "small; both sides must be at least 32."
            )
