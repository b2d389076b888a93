"""Stochastic depth (Huang et al., 2016), per example."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class DropPath(nn.Module):
    """Zeroes the whole branch of an example: (B, ...) -> (B, ...).

    A kept branch is divided by the probability of keeping it. Draws from the random
    stream "drop_path".

    Attributes:
      rate: probability of dropping, in [0, 1).
    """

    rate: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if not 0 <= self.rate < 1:
            raise ValueError(f"DropPath: rate={self.rate} is not in [0, 1).")
        if not train or self.rate == 0:
            return x
        keep = 1 - self.rate
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        kept = jax.random.bernoulli(self.make_rng("drop_path"), keep, shape)
        return jnp.where(kept, x / jnp.asarray(keep, x.dtype), jnp.zeros((), x.dtype))


def rates(rate: float, *, depths: tuple[int, ...]) -> list[list[float]]:
    """Rates that grow linearly with depth, from 0 to `rate`, per stage and block.

    Args:
      rate: that of the last block.
      depths: blocks per stage.

    Returns:
      One list per stage.
    """
    total = max(sum(depths) - 1, 1)
    starts = [sum(depths[:stage]) for stage in range(len(depths))]
    return [
        [rate * (start + block) / total for block in range(depth)]
        for start, depth in zip(starts, depths, strict=True)
    ]
