"""Global response normalisation, ConvNeXt V2 (Woo et al., CVPR 2023)."""

import jax
import jax.numpy as jnp


def global_response_norm(
    x: jax.Array, *, scale: jax.Array, bias: jax.Array, epsilon: float = 1e-6
) -> jax.Array:
    """Scales each channel by its energy relative to the mean of all channels.

        n_c = |x_c| / (mean_c |x_c| + epsilon),  |x_c| the norm over H and W
        y = x + scale * (x * n) + bias

    The norms are taken in float32 at least. Their gradient is 0 where a channel is 0
    everywhere.

    Args:
      x: (B, H, W, C).
      scale: gamma, (C,).
      bias: beta, (C,).
      epsilon: against a division by zero.

    Returns:
      (B, H, W, C) in x's dtype.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    energy = jnp.sum(jnp.square(x.astype(wide)), axis=(1, 2), keepdims=True)
    # sqrt has no finite slope at 0, and 0 times that slope is NaN: keep 0 away from it.
    alive = energy > 0
    norm = jnp.where(alive, jnp.sqrt(jnp.where(alive, energy, 1)), 0)  # (B, 1, 1, C)
    relative = norm / (jnp.mean(norm, axis=-1, keepdims=True) + epsilon)
    factor = 1 + scale.astype(wide)[None, None, None] * relative
    return x * factor.astype(x.dtype) + bias.astype(x.dtype)[None, None, None]
