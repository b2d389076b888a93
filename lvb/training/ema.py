"""Exponential moving average of the parameters and the batch statistics."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Ema(NamedTuple):
    """The averages, each a pytree shaped like what it averages."""

    params: Any
    batch_stats: Any


def init_ema(params: Any, batch_stats: Any) -> Ema:
    """Starts the averages at the initial values, in buffers of their own.

    The copy matters under donation: one buffer must not serve both the raw and the
    averaged parameters of a donated train state.
    """
    return Ema(*jax.tree.map(jnp.copy, (params, batch_stats)))


def ema_rate(step: jax.typing.ArrayLike, *, decay: float, warmup: bool) -> jax.Array:
    """Returns 1 - (decay in force), the weight of the newest values.

        rate = 1 - min(decay, (1 + step) / (10 + step))
             = max(1 - decay, 9 / (10 + step))            with a warm-up

    Without a warm-up a decay of 0.99996 remembers the random initial values for some
    25,000 steps; with it the average spans about a tenth of the steps taken so far
    until `decay` takes over. The constants are TensorFlow's `num_updates` rule. The
    rate is a function of the step alone, so a resumed run repeats it bit for bit.

    Args:
      step: number of averaging updates made before this one, from 0.
      decay: final decay, in [0, 1).
      warmup: whether to ramp the decay up.

    Returns:
      The rate, a float32 scalar in (0, 1].
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(
            f"ema: decay={decay} is outside [0, 1); use 0.99996 as LSNet does, or "
            "less for short runs."
        )
    # In Python, because in float32 1 - 0.99996 is wrong in the fourth digit.
    rate = jnp.float32(1.0 - decay)
    if not warmup:
        return rate
    return jnp.maximum(rate, 9.0 / (10.0 + jnp.asarray(step, jnp.float32)))


def update_ema(
    ema: Ema,
    params: Any,
    batch_stats: Any,
    *,
    step: jax.typing.ArrayLike,
    decay: float,
    warmup: bool = True,
) -> Ema:
    """Moves the averages towards the newest parameters and batch statistics.

        average <- average + rate * (new - average)

    `optax.incremental_update` computes rate * new + (1 - rate) * average; rounding
    1 - rate to float32 makes its weights miss 1 by up to 3e-8, which at a rate of 4e-5
    pulls a constant parameter off by up to 7e-4 of its size. The form here leaves a
    constant exactly where it is.

    Args:
      ema: the averages so far.
      params: newest parameters.
      batch_stats: newest batch statistics; averaged too, because the statistics have
        to belong to the averaged network, not to the raw one.
      step: number of averaging updates made before this one, from 0.
      decay: final decay, in [0, 1).
      warmup: whether to ramp the decay up, see `ema_rate`.

    Returns:
      The new averages.
    """
    rate = ema_rate(step, decay=decay, warmup=warmup)

    def move(average: jax.Array, new: jax.Array) -> jax.Array:
        return average + rate.astype(average.dtype) * (new - average)

    return Ema(
        params=jax.tree.map(move, ema.params, params),
        batch_stats=jax.tree.map(move, ema.batch_stats, batch_stats),
    )
