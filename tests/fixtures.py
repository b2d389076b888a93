"""Variables that are neither zero nor one anywhere."""

import jax
import jax.numpy as jnp


def randomised(variables, *, seed=7):
    """Replaces every leaf by random values; variances stay positive.

    Args:
      variables: {"params": ..., "batch_stats": ...}.
      seed: of the draw.

    Returns:
      The same tree, parameters around their own values, statistics around 0 and 1,
      in float64 where that is enabled (Flax keeps statistics in float32).
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(variables)
    keys = jax.random.split(jax.random.key(seed), len(leaves))

    dtype = jnp.result_type(float)

    def draw(path, leaf, key):
        noise = jax.random.uniform(key, leaf.shape, dtype, -0.5, 0.5)
        if path[-1].key in ("var", "scale"):
            return 1 + noise
        return leaf.astype(dtype) + jnp.asarray(0.3, dtype) * noise

    return jax.tree.unflatten(
        tree,
        [draw(path, leaf, key) for (path, leaf), key in zip(leaves, keys, strict=True)],
    )
