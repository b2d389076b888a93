"""The liquid blocks of FVNet: FTFU, Eqs. (4)-(6), and MPFB, Eqs. (7), (8).

The open choices are numbered and explained in `lvb/models/fvnet.py`.
"""

import functools
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lvb.layers import conv, conv_norm, module, squeeze_excite
from lvb.ops import gelu, liquid

# (low, high) of tau per phase: short, mid, long. Ours: the paper gives no numbers.
TAU_SPANS = ((0.02, 0.25), (0.25, 0.75), (0.75, 1.5))
BETA_LIMIT = 2.0  # Ours; one step enlarges a state at most exp(BETA_LIMIT^2 / 4) times.

GATES = ("low_rank", "channelwise", "dense", "dense_per_phase")
FUSIONS = ("attention", "average", "concat", "se")
PROPAGATIONS = ("logit", "learned", "log_tau", "none")


def check_choice(owner: str, known: Iterable[Any], **fields: Any) -> None:
    """Raises ValueError for a field whose value is none of `known`."""
    for field, value in fields.items():
        if value not in known:
            raise ValueError(
                f"{owner}: {field}={value!r} is unknown; use one of "
                f"{', '.join(map(str, known))}."
            )


def low_rank_width(channels: int) -> int:
    """Hidden width of the maps behind global pooling; open choice 6."""
    return max(8, channels // 16)


def wide_dense(
    layer: module.Layer,
    features: int,
    *,
    name: str,
    use_bias: bool = True,
    kernel_init: conv.Initializer = nn.initializers.zeros,
) -> nn.Dense:
    """A linear layer on pooled vectors, float32 at least, zero unless initialised."""
    return nn.Dense(
        features,
        use_bias=use_bias,
        kernel_init=kernel_init,
        name=name,
        dtype=jnp.promote_types(layer.dtype, jnp.float32),
        param_dtype=layer.param_dtype,
    )


class TimeConstantGate(module.Layer):
    """The gate G of Eq. (4), all phases at once: (B, C) -> tau (N, B, C).

        u^n = s^n * G(pooled) + t^n + kappa * carry
        tau^n = low^n + (high^n - low^n) sigmoid(u^n)

    At initialisation tau is the centre of its span, whatever the image.

    Attributes:
      features: C.
      tau_spans: (low, high) per phase, both positive.
      gate: the linear map; "low_rank" and "dense" are shared by the phases,
        "channelwise" has no map but s, "dense_per_phase" has no s. Open choice 6.
      tau_map: "sigmoid" or "softplus"; open choice 5.
      propagate: what is handed to the next stage; open choice 7.
    """

    features: int
    tau_spans: tuple[tuple[float, float], ...]
    gate: str = "low_rank"
    tau_map: str = "sigmoid"
    propagate: str = "logit"

    @nn.compact
    def __call__(
        self, pooled: jax.Array | None, carry: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Computes the time constants.

        Args:
          pooled: GAP(X), (B, C); None makes tau a learned constant.
          carry: from the stage before, (B or 1, C), or None.

        Returns:
          tau, (N, B or 1, C), and the carry for the next stage, (B or 1, C).
        """
        check_choice("TimeConstantGate", GATES, gate=self.gate)
        check_choice("TimeConstantGate", PROPAGATIONS, propagate=self.propagate)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        per_phase = (len(self.tau_spans), self.features)
        t = self.param("t", self._init_t, per_phase, self.param_dtype)
        u = t[:, None].astype(wide)  # (N, 1, C)
        if pooled is not None:
            u = u + self._drive(pooled.astype(wide))  # (N, B, C)
        if carry is not None:
            kappa = self.param(
                "kappa",
                nn.initializers.constant(0.1),
                (self.features,),
                self.param_dtype,
            )
            u = u + (kappa[None].astype(wide) * carry)[None]
        tau = jnp.stack(
            [
                liquid.time_constant(u_n, span=span, tau_map=self.tau_map)
                for u_n, span in zip(u, self.tau_spans, strict=True)
            ]
        )
        self.sow("intermediates", "tau", tau)
        if self.propagate == "log_tau":
            centres = jnp.array([sum(span) / 2 for span in self.tau_spans], wide)
            return tau, jnp.log(tau / centres[:, None, None]).mean(axis=0)
        return tau, jnp.tanh(u.mean(axis=0))

    def _init_t(self, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        del key
        centres = [
            liquid.centre_logit(span, tau_map=self.tau_map) for span in self.tau_spans
        ]
        return jnp.broadcast_to(jnp.array(centres, dtype)[:, None], shape)

    def _drive(self, pooled: jax.Array) -> jax.Array:
        """The image-dependent part of u, zero at initialisation: (N, B, C)."""
        num_phases, features = len(self.tau_spans), self.features
        linear = functools.partial(wide_dense, self, use_bias=False)
        if self.gate == "dense_per_phase":
            drive = linear(num_phases * features, name="linear")(pooled)
            drive = jnp.reshape(drive, (-1, num_phases, features))  # (B, N, C)
            return jnp.moveaxis(drive, 1, 0)
        drive, s_init = pooled, nn.initializers.ones
        if self.gate == "low_rank":
            lecun = nn.initializers.lecun_normal()
            rank = low_rank_width(features)
            drive = linear(rank, name="reduce", kernel_init=lecun)(pooled)
            drive = linear(features, name="expand")(drive)
        elif self.gate == "dense":
            drive = linear(features, name="linear")(pooled)
        else:
            s_init = nn.initializers.zeros
        s = self.param("s", s_init, (num_phases, features), self.param_dtype)
        return s[:, None].astype(pooled.dtype) * drive[None]


class FluidTemporalFlowUnit(module.Layer):
    """FTFU, Eqs. (5), (6): (B, H, W, C) -> (B, H, W, C), float32 at least.

    Attributes:
      span: (low, high) of this phase's tau; its centre starts an untied decay rate.
      activation: of the temporal gate; Table 7.
      tie_tau: tau is both decay rate and step length, as in Eq. (5); otherwise the
        decay rate is a learned constant. Open choice 4.
    """

    span: tuple[float, float]
    activation: str = "tanh"
    tie_tau: bool = True

    @nn.compact
    def __call__(
        self, x: jax.Array, neighbourhood: jax.Array, tau: jax.Array
    ) -> jax.Array:
        """Advances the state by one step.

        Args:
          x: the state X, (B, H, W, C).
          neighbourhood: F of Eq. (5), (B, H, W, C).
          tau: (B or 1, C).

        Returns:
          Y of Eq. (5), (B, H, W, C).
        """
        beta_hat = liquid.inverse_soft_limit(1.0, BETA_LIMIT)  # beta = 1
        gate = liquid.temporal_gate(
            neighbourhood.astype(tau.dtype),
            beta=liquid.soft_limit(self._channelwise("beta", x, beta_hat), BETA_LIMIT),
            gamma=self._channelwise("gamma", x, 1.0),
            delta=self._channelwise("delta", x, 0.0),
            activation=self.activation,
        )
        decay = None
        if not self.tie_tau:
            centre = liquid.inverse_softplus(sum(self.span) / 2)
            decay = nn.softplus(self._channelwise("decay", x, centre))
        tau = tau[:, None, None]  # (B or 1, 1, 1, C)
        if self.is_mutable_collection("intermediates"):
            alpha = liquid.effective_decay(gate, tau=tau, decay=decay)
            alpha_tau = alpha * tau
            self.sow("intermediates", "gate", gate)
            self.sow(
                "intermediates",
                "alpha_tau_range",
                jnp.stack([alpha_tau.min(), alpha_tau.max()]),
            )
        amplitude = self._channelwise("A", x, 1.0)
        return liquid.liquid_step(x, gate, tau=tau, amplitude=amplitude, decay=decay)

    def _channelwise(self, name: str, x: jax.Array, value: float) -> jax.Array:
        """A learned vector that starts at `value`: (1, 1, 1, C)."""
        init = nn.initializers.constant(value)
        vector = self.param(name, init, (x.shape[-1],), self.param_dtype)
        return vector[None, None, None].astype(
            jnp.promote_types(self.dtype, jnp.float32)
        )


class PhaseFusion(module.Layer):
    """Fuses N phases, Eqs. (7), (8) and Table 7: N of (B, H, W, C) -> (B, H, W, C).

        attention: Y = sum_n w_n * Y^n,  w = softmax_n(W2 gelu(W1 pooled + b1) + b2)
        average:   Y = sum_n Y^n / N
        concat:    Y_c = sum_n k_nc Y^n_c + b_c, a grouped 1x1 convolution
        se:        Y = sum_n of the phases after one squeeze-and-excitation of all N C

    One phase is returned as it is.

    Attributes:
      fusion: "attention", "average", "concat" or "se".
    """

    fusion: str = "attention"

    @nn.compact
    def __call__(self, phases: list[jax.Array], pooled: jax.Array | None) -> jax.Array:
        """Fuses `phases`; `pooled` (B, C), or None for learned constant weights."""
        check_choice("PhaseFusion", FUSIONS, fusion=self.fusion)
        num_phases, channels = len(phases), phases[0].shape[-1]
        if num_phases == 1:
            return phases[0]
        # Phases are float32 and stay so: all that follows is as wide.
        inherited = {**self.inherited, "dtype": phases[0].dtype}
        if self.fusion == "average":
            return sum(phases) / num_phases
        if self.fusion == "concat":
            stacked = jnp.stack(phases, axis=-1)  # (B, H, W, C, N)
            stacked = jnp.reshape(stacked, (*stacked.shape[:3], channels * num_phases))
            return conv.Conv(
                channels,
                groups=channels,
                use_bias=True,
                kernel_init=nn.initializers.constant(1 / num_phases),
                name="concat",
                **inherited,
            )(stacked)
        if self.fusion == "se":
            excited = squeeze_excite.SqueezeExcite(
                low_rank_width(channels), name="squeeze_excite", **inherited
            )(jnp.concatenate(phases, axis=-1))  # (B, H, W, N C)
            return sum(jnp.split(excited, num_phases, axis=-1))
        weights = nn.softmax(self._logits(pooled, (num_phases, channels)), axis=1)
        self.sow("intermediates", "weights", weights)
        return sum(weights[:, n, None, None] * phase for n, phase in enumerate(phases))

    def _logits(self, pooled: jax.Array | None, shape: tuple[int, int]) -> jax.Array:
        """phi_n(GAP(X)) of Eq. (7), zero at initialisation: (B or 1, N, C)."""
        if pooled is None:
            zeros = nn.initializers.zeros
            return self.param("logits", zeros, shape, self.param_dtype)[None]
        small = conv.trunc_normal(0.02)
        width = low_rank_width(shape[1])
        hidden = wide_dense(self, width, name="reduce", kernel_init=small)(pooled)
        logits = wide_dense(self, shape[0] * shape[1], name="expand")(gelu.gelu(hidden))
        return jnp.reshape(logits, (-1, *shape))


class MultiPhaseFluidBlock(module.Layer):
    """MPFB, Eq. (8): normalised (B, H, W, C) -> (B, H, W, C), and the carry.

    N flow units see one state and one neighbourhood through time constants of disjoint
    spans. A block of one phase is an FTFU, Eqs. (4)-(6); that of the stem is one.

    Attributes:
      tau_spans: (low, high) of tau per phase; their number is N.
      gate, tau_map, propagate: see `TimeConstantGate`.
      activation, tie_tau: see `FluidTemporalFlowUnit`.
      fusion: see `PhaseFusion`.
      use_gap: tau and the fusion weights depend on the image; otherwise they are
        learned constants (Table 6, "w/o GAP").
      kernel_size: side of the neighbourhood F of Eq. (5); open choice 3.
      shared_local: one depthwise convolution for all phases; open choice 3.
      pointwise: a 1x1 convolution and batch norm behind the fusion; open choice 9.
    """

    tau_spans: tuple[tuple[float, float], ...] = TAU_SPANS
    gate: str = "low_rank"
    tau_map: str = "sigmoid"
    propagate: str = "logit"
    activation: str = "tanh"
    tie_tau: bool = True
    fusion: str = "attention"
    use_gap: bool = True
    kernel_size: int = 3
    shared_local: bool = True
    pointwise: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, carry: jax.Array | None = None, *, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Mixes the pixels of each channel.

        Args:
          x: the state, (B, H, W, C).
          carry: from the stage before, (B or 1, C), or None.
          train: whether batch norms see the batch.

        Returns:
          Y, (B, H, W, C), and the carry for the next stage, (B or 1, C).
        """
        channels = x.shape[-1]
        wide = jnp.promote_types(self.dtype, jnp.float32)
        pooled = x.mean(axis=(1, 2), dtype=wide) if self.use_gap else None  # (B, C)
        taus, carry = TimeConstantGate(
            channels,
            self.tau_spans,
            gate=self.gate,
            tau_map=self.tau_map,
            propagate=self.propagate,
            name="gate",
            **self.inherited,
        )(pooled, carry)
        neighbourhoods = self._neighbourhoods(x, train)
        phases = [
            FluidTemporalFlowUnit(
                span,
                activation=self.activation,
                tie_tau=self.tie_tau,
                name=f"phase{n}",
                **self.inherited,
            )(x, neighbourhoods[n], taus[n])
            for n, span in enumerate(self.tau_spans)
        ]
        y = PhaseFusion(self.fusion, name="fusion", **self.inherited)(phases, pooled)
        y = y.astype(self.dtype)
        if self.pointwise:
            y = conv_norm.ConvNorm(
                channels,
                kernel_init=conv.trunc_normal(0.02),
                name="pointwise",
                **self.inherited,
            )(y, train=train)
        return y, carry

    def _neighbourhoods(self, x: jax.Array, train: bool) -> list[jax.Array]:
        """F of Eq. (5) per phase; gamma and delta of Eq. (6) are its affine."""
        num_phases = len(self.tau_spans)
        names = [f"local{n}" for n in range(num_phases)]
        if self.shared_local:
            names = ["local"]
        maps = [
            conv_norm.ConvNorm(
                x.shape[-1],
                self.kernel_size,
                groups=x.shape[-1],
                kernel_init=conv.trunc_normal(1 / self.kernel_size),
                affine=False,
                name=name,
                **self.inherited,
            )(x, train=train)
            for name in names
        ]
        return maps * num_phases if self.shared_local else maps
