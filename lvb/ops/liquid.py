"""Liquid neural dynamics in closed form, FVNet Eqs. (3)-(6).

Symbols: x state, tau time constant, f gate, A reversal potential, alpha = tau + f. The
closed form holds f and alpha fixed over the step; both may be negative or zero.
Everything is computed in float32 at least: in bfloat16, 1 - exp(-z) is 0 for small z.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

# Below this |z| phi is summed as its Taylor series; 8 and 16 terms leave truncation
# errors under 1e-8 and 1e-19, below the rounding of float32 and float64.
_SERIES_RADIUS = 0.5
_SERIES_TERMS = {4: 8, 8: 16}  # By bytes per number.

# f grows with the range of act, and the state with exp(f^2 / 4): unbounded functions
# are clipped. Ours; tanh and sigmoid stay inside by themselves.
_ACTIVATION_LIMIT = 2.0

GATE_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "relu": lambda x: jnp.clip(x, 0.0, _ACTIVATION_LIMIT),
    "linear": lambda x: jnp.clip(x, -_ACTIVATION_LIMIT, _ACTIVATION_LIMIT),
}
TAU_MAPS = ("sigmoid", "softplus")

# Range of the "softplus" time constants: above 0, and exp(-tau^2) is nothing at 4.
_SOFTPLUS_RANGE = (0.01, 4.0)


def phi(z: jax.Array) -> jax.Array:
    """(1 - exp(-z)) / z, with the value 1 at z = 0: positive, decreasing, entire.

    Exact to rounding, in value and in derivative, for every real z: near zero the
    quotient's derivative would lose all digits, so a series takes over there.

    Args:
      z: any shape, dimensionless.

    Returns:
      phi(z), same shape, float32 at least.
    """
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    small = jnp.abs(z) < _SERIES_RADIUS
    # Each branch sees a harmless z where the other one is used: a NaN or an infinity
    # in the unused branch would reach the gradient through a product with zero.
    near, far = jnp.where(small, z, 0.0), jnp.where(small, 1.0, z)
    num_terms = _SERIES_TERMS[z.dtype.itemsize]
    series = jnp.zeros_like(z)
    for k in reversed(range(num_terms)):  # sum_k (-z)^k / (k + 1)!
        series = 1 / math.factorial(k + 1) - near * series
    return jnp.where(small, series, -jnp.expm1(-far) / far)


def liquid_step(
    x: jax.Array,
    gate: jax.Array,
    *,
    tau: jax.Array,
    amplitude: jax.Array,
    decay: jax.Array | None = None,
) -> jax.Array:
    """Advances a liquid cell by one closed-form step, FVNet Eq. (5).

        y = x exp(-alpha tau) + gate * amplitude * (1 - exp(-alpha tau)) / alpha
        alpha = tau + gate

    Args:
      x: cell state, (B, H, W, C).
      gate: f_c(F) of Eq. (6), same shape as x; signed, because it is a tanh.
      tau: step length, and in Eq. (5) also the decay rate, (B, 1, 1, C), positive.
      amplitude: reversal potential A, (1, 1, 1, C).
      decay: a decay rate of its own as in Eqs. (1)-(3), where tau is the step length
        only: alpha = decay + gate. None is Eq. (5).

    Returns:
      The next state, (B, H, W, C), float32 at least.
    """
    alpha = effective_decay(gate, tau=tau, decay=decay)
    x = x.astype(alpha.dtype)
    # With phi(z) = (1 - e^-z) / z, Eq. (5) needs no division by alpha, which changes
    # sign, and tau -> 0 gives x without cancellation.
    return x + tau * phi(alpha * tau) * (gate * amplitude - alpha * x)


def effective_decay(
    gate: jax.Array, *, tau: jax.Array, decay: jax.Array | None = None
) -> jax.Array:
    """The effective decay rate alpha of Eqs. (2), (5), float32 at least.

    Args:
      gate: f_c(F), (B, H, W, C).
      tau: (B, 1, 1, C).
      decay: see `liquid_step`.

    Returns:
      alpha, (B, H, W, C).
    """
    alpha = (tau if decay is None else decay) + gate
    return alpha.astype(jnp.promote_types(alpha.dtype, jnp.float32))


def temporal_gate(
    neighbourhood: jax.Array,
    *,
    beta: jax.Array,
    gamma: jax.Array,
    delta: jax.Array,
    activation: str = "tanh",
) -> jax.Array:
    """The channel-wise temporal gate, FVNet Eq. (6).

        f = beta * tanh(gamma * F + delta)

    Args:
      neighbourhood: F, (B, H, W, C).
      beta: magnitude, (1, 1, 1, C).
      gamma: sensitivity, (1, 1, 1, C).
      delta: bias, (1, 1, 1, C).
      activation: a row of Table 7 in the place of tanh: "tanh", "sigmoid", "relu" or
        "linear"; the last two are clipped to [-2, 2].

    Returns:
      f, (B, H, W, C).

    Raises:
      ValueError: if the activation is unknown.
    """
    if activation not in GATE_ACTIVATIONS:
        raise ValueError(
            f"temporal_gate: activation={activation!r} is unknown; use one of "
            f"{', '.join(GATE_ACTIVATIONS)}."
        )
    return beta * GATE_ACTIVATIONS[activation](gamma * neighbourhood + delta)


def soft_limit(x: jax.Array, limit: float) -> jax.Array:
    """Bends x into (-limit, limit): limit * tanh(x / limit).

    Bounds beta of Eq. (6): alpha tau >= -beta^2 / 4 whatever tau is, so one step
    enlarges a state at most exp(limit^2 / 4) times.
    """
    return limit * jnp.tanh(x / limit)


def inverse_soft_limit(y: float, limit: float) -> float:
    """The x with soft_limit(x, limit) = y."""
    return limit * math.atanh(y / limit)


def time_constant(
    u: jax.Array, *, span: tuple[float, float], tau_map: str = "sigmoid"
) -> jax.Array:
    """Maps a real number to a time constant: the range of tau in Eq. (4).

        sigmoid:  tau = low + (high - low) sigmoid(u), inside (low, high)
        softplus: tau = min(log(1 + exp(u)) + 0.01, 4), whatever the span

    Args:
      u: any shape.
      span: (low, high).
      tau_map: one of `TAU_MAPS`.

    Returns:
      tau > 0, same shape.

    Raises:
      ValueError: if `tau_map` is unknown.
    """
    if tau_map == "sigmoid":
        return span[0] + (span[1] - span[0]) * jax.nn.sigmoid(u)
    if tau_map == "softplus":
        floor, ceiling = _SOFTPLUS_RANGE
        return jnp.minimum(jax.nn.softplus(u) + floor, ceiling)
    raise ValueError(
        f"time_constant: tau_map={tau_map!r} is unknown; use one of "
        f"{', '.join(TAU_MAPS)}."
    )


def centre_logit(span: tuple[float, float], *, tau_map: str = "sigmoid") -> float:
    """The u at which `time_constant` is the centre of the span."""
    if tau_map == "sigmoid":
        return 0.0
    return inverse_softplus((span[0] + span[1]) / 2 - _SOFTPLUS_RANGE[0])


def inverse_softplus(y: float) -> float:
    """The x with log(1 + exp(x)) = y > 0."""
    return math.log(math.expm1(y))
