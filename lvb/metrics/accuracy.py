"""Accuracy and loss as (total, count) pairs, which add up over batches and hosts."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

TOP_K = 5


class Mean(NamedTuple):
    """A mean in two parts; pairs of several batches are added, then divided.

    `clu.metrics.Average` keeps its total in float32, which stops counting at 2^24;
    here the total of a count is an integer, so that accuracy is exact.

    Attributes:
      total: sum over the examples, a scalar.
      count: number of examples, int32 scalar.
    """

    total: jax.Array
    count: jax.Array


def correct_at(logits: jax.Array, *, labels: jax.Array, k: int) -> jax.Array:
    """Whether the label is among the k largest logits.

    Of equal logits the one of the lower class comes first, as in argmax. A row with a
    NaN is wrong whatever its label.

    Args:
      logits: (B, num_classes).
      labels: class indices, (B,), integer.
      k: number of guesses, at least 1.

    Returns:
      (B,), bool.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)  # (B, 1)
    classes = jnp.arange(logits.shape[-1])[None, :]  # (1, num_classes)
    earlier = (logits == own) & (classes < labels[:, None])
    rank = jnp.sum((logits > own) | earlier, axis=-1)  # (B,)
    return (rank < k) & ~jnp.isnan(logits).any(axis=-1)


def classification_metrics(
    logits: jax.Array, *, labels: jax.Array, losses: jax.Array, mask: jax.Array
) -> dict[str, Mean]:
    """Loss, top-1 and, with more than 5 classes, top-5 of the unmasked examples.

    Args:
      logits: (B, num_classes).
      labels: class indices, (B,), integer.
      losses: one loss per example, (B,).
      mask: which rows count, (B,), bool; the others pad the batch.

    Returns:
      {"loss": ..., "top1": ..., "top5": ...}; the totals of accuracies are int32.
    """
    count = mask.sum(dtype=jnp.int32)
    total = jnp.where(mask, losses.astype(jnp.float32), 0.0).sum()
    metrics = {"loss": Mean(total, count)}
    for name, k in (("top1", 1), (f"top{TOP_K}", TOP_K)):
        if k < logits.shape[-1]:
            right = correct_at(logits, labels=labels, k=k) & mask
            metrics[name] = Mean(right.sum(dtype=jnp.int32), count)
    return metrics
