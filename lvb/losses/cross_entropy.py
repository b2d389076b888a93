"""Cross entropy with soft targets: one value per example."""

import jax
import jax.numpy as jnp
import optax


def smooth_one_hot(
    labels: jax.Array, *, num_classes: int, smoothing: float
) -> jax.Array:
    """Turns labels into target distributions with label smoothing.

        target = (1 - smoothing) one_hot(label) + smoothing / num_classes

    Args:
      labels: class indices, (B,), integer.
      num_classes: number of classes.
      smoothing: probability mass spread evenly over all classes, in [0, 1).

    Returns:
      Targets, (B, num_classes), float32, each row summing to 1.
    """
    if not 0.0 <= smoothing < 1.0:
        raise ValueError(
            f"smooth_one_hot: smoothing={smoothing} is outside [0, 1); the recipes "
            "use 0.1."
        )
    one_hot = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    return optax.smooth_labels(one_hot, smoothing)


def soft_cross_entropy(logits: jax.Array, *, targets: jax.Array) -> jax.Array:
    """Computes -sum_k target_k log softmax(logits)_k.

    Args:
      logits: (B, num_classes), any float type.
      targets: (B, num_classes), each row a distribution.

    Returns:
      One loss per example, (B,), float32.
    """
    if logits.shape != targets.shape:
        raise ValueError(
            f"soft_cross_entropy: logits {logits.shape} and targets {targets.shape} "
            "differ; make the targets with the head's num_classes."
        )
    return optax.softmax_cross_entropy(
        logits.astype(jnp.float32), targets.astype(jnp.float32)
    )
