"""Is a network's inner dynamics healthy? Numbers of a forward pass, and warnings.

FVNet's flow units and ConvNeur's memories are dynamical systems inside the network;
they can blow up, freeze or saturate while the loss still falls. Their layers sow what
is needed under "intermediates"; here it becomes a few numbers per layer.

FVNet, per block:
  tau_min, tau_mean, tau_max        time constants of all phases
  alpha_tau_min, alpha_tau_max      exponent of Eq. (5); a state grows where it is < 0
  gate_saturation                   share of gate values at their channel's limit

ConvNeur, per memory:
  inner_loss_before, inner_loss_after   J_t at M_{t-1} and at M_t
  inner_step, momentum, decay           means over chunks and images
  memory_norm, update_norm, gradient_norm    largest over chunks and images
and per gated block gate_saturation, the share of sigma(G) within 0.05 of 0 or 1.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Layers = dict[str, dict[str, Any]]

# Families whose layers sow what is measured here.
FAMILIES = ("fvnet", "convneur")

_SATURATED = 0.05  # Distance to the limit, as a share of the range. Ours.


class Limit(NamedTuple):
    """When to warn about a number, and what it means.

    Attributes:
      low: warn below.
      high: warn above.
      meaning: of a number outside.
    """

    low: float
    high: float
    meaning: str


_INF = float("inf")
# Ours, all of them: far from what healthy runs of the quick start show.
LIMITS = {
    "tau_min": Limit(1e-3, _INF, "time stands still in some channels"),
    "tau_max": Limit(-_INF, 10.0, "one step forgets the state"),
    # With beta < 2, Eq. (6), alpha tau > -1 whatever tau is.
    "alpha_tau_min": Limit(-0.9, _INF, "states grow by more than exp(0.9) in a step"),
    "alpha_tau_max": Limit(-_INF, 20.0, "one step forgets the state"),
    "gate_saturation": Limit(-_INF, 0.9, "the gate has stopped to follow its input"),
    "inner_loss_ratio": Limit(-_INF, 1.05, "writing makes the memory worse"),
    "inner_step": Limit(1e-4, _INF, "the memory is hardly written"),
    "momentum": Limit(-_INF, 0.995, "the memory hardly forgets a gradient"),
    "decay": Limit(-_INF, 0.9, "the memory forgets nearly all between chunks"),
    "memory_norm": Limit(-_INF, 1e3, "the memory's weights blow up"),
    "update_norm": Limit(-_INF, 1e2, "the memory's updates blow up"),
}
# How a number is taken over layers: the worst side where there is one.
_OVER_LAYERS: dict[str, Callable[[list[float]], float]] = {
    **dict.fromkeys(("tau_min", "alpha_tau_min"), min),
    **dict.fromkeys(
        (
            *("tau_max", "alpha_tau_max", "gate_saturation", "inner_loss_ratio"),
            *("memory_norm", "update_norm", "gradient_norm"),
        ),
        max,
    ),
}


def measure(intermediates: Mapping[str, Any]) -> Layers:
    """Reduces what the layers sowed to scalars; pure, for use under jit.

    Args:
      intermediates: the collection of a forward pass.

    Returns:
      Layer path to name to float32 scalar; empty for other families.
    """
    layers: Layers = {}
    for path, sown in _modules(intermediates):
        numbers: dict[str, jax.Array] = {}
        if "tau" in sown:
            tau = sown["tau"]  # (N, B or 1, C)
            numbers |= _range_of(tau)
        if "alpha_tau_range" in sown:
            low, high = sown["alpha_tau_range"]
            numbers |= {"alpha_tau_min": low, "alpha_tau_max": high}
            numbers["gate_saturation"] = _at_own_limit(sown["gate"])
        elif "gate" in sown:
            numbers["gate_saturation"] = _at_zero_or_one(sown["gate"])
        if "loss_before" in sown:
            numbers |= _memory(sown)
        if numbers:
            layers[path] = {k: v.astype(jnp.float32) for k, v in numbers.items()}
    return layers


def _range_of(tau: jax.Array) -> dict[str, jax.Array]:
    return {"tau_min": tau.min(), "tau_mean": tau.mean(), "tau_max": tau.max()}


def summary(layers: Layers) -> dict[str, float]:
    """The whole network in one number each: the worst layer, or the mean of all.

    Args:
      layers: from `measure`, on the host.
    """
    values: dict[str, list[float]] = {}
    for numbers in layers.values():
        for name, value in _with_ratio(numbers).items():
            values.setdefault(name, []).append(float(value))
    return {
        name: _OVER_LAYERS.get(name, lambda x: sum(x) / len(x))(several)
        for name, several in sorted(values.items())
    }


def warnings(layers: Layers) -> list[str]:
    """A sentence per number outside its limits, each naming its worst layer.

    Args:
      layers: from `measure`, on the host.
    """
    sentences = []
    for name, limit in LIMITS.items():
        outside = [
            (path, float(numbers[name]))
            for path, numbers in ((p, _with_ratio(n)) for p, n in layers.items())
            if name in numbers and not limit.low <= float(numbers[name]) <= limit.high
        ]
        if outside:
            path, value = max(outside, key=lambda pair: _distance(pair[1], limit))
            bound = f"< {limit.low:g}" if value < limit.low else f"> {limit.high:g}"
            bound = bound if value == value else "not a number"
            sentences.append(
                f"health: {name} = {value:.3g} ({bound}) in {path}: {limit.meaning}."
            )
    return sentences


def _modules(
    tree: Mapping[str, Any], path: tuple[str, ...] = ()
) -> list[tuple[str, dict[str, Any]]]:
    """All modules that sowed something: path and name to the last value sown."""
    found, own = [], {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found += _modules(value, (*path, name))
        elif isinstance(value, tuple) and value:
            own[name] = value[-1]
    return [("/".join(path), own), *found] if own else found


def _at_own_limit(gate: jax.Array) -> jax.Array:
    """Share of (B, H, W, C) within 5 % of the channel's largest magnitude.

    A gate that tanh saturates, or that is constant, has them all there.
    """
    size = jnp.abs(gate)
    limit = size.max(axis=(0, 1, 2), keepdims=True)
    return jnp.mean(size >= (1 - _SATURATED) * limit)


def _at_zero_or_one(gate: jax.Array) -> jax.Array:
    return jnp.mean((gate < _SATURATED) | (gate > 1 - _SATURATED))


def _memory(sown: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    numbers = {
        "inner_loss_before": sown["loss_before"].mean(),
        "inner_loss_after": sown["loss_after"].mean(),
        "inner_step": sown["step"].mean(),
        "momentum": sown["momentum"].mean(),
        "decay": sown["decay"].mean(),
        "memory_norm": sown["weight_norm"].max(),
        "gradient_norm": sown["gradient_norm"].max(),
    }
    if "update_norm" in sown:
        numbers["update_norm"] = sown["update_norm"].max()
    return numbers


def _with_ratio(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """With inner loss after / before; the latter is 0 where nothing is written."""
    if "inner_loss_before" not in numbers:
        return dict(numbers)
    before = float(numbers["inner_loss_before"])
    after = float(numbers["inner_loss_after"])
    return {**numbers, "inner_loss_ratio": after / before if before else 1.0}


def _distance(value: float, limit: Limit) -> float:
    """How far outside; a value that is not a number is farthest."""
    if value != value:
        return _INF
    return max(limit.low - value, value - limit.high)
