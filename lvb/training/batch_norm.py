"""Recalibration of batch statistics: exact averages in place of running ones.

Running statistics lag behind the parameters, and those of averaged parameters (see
`ema`) are only an estimate. Recalibration keeps the parameters and measures the
statistics again on a stream of training batches ("precise BN", Wu and Johnson,
arXiv:2105.07576, Section 3).
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

Leaves = dict[tuple[Any, ...], np.ndarray]


def recalibrate_batch_norm(
    update_batch_stats: Callable[[Any, Any], Any],
    batches: Iterable[Any],
    *,
    batch_stats: Any,
    momentum: float = 0.9,
) -> Any:
    """Measures mean and variance of every batch normalisation over many batches.

    With K equal batches of means m_k and variances v_k, by the law of total variance:

        mean = sum_k m_k / K        var = sum_k (v_k + m_k^2) / K - mean^2

    Each batch is run on statistics of zero, whose update is (1 - momentum) times the
    batch's own statistics, without the rounding that a difference would bring.

    Args:
      update_batch_stats: (batch_stats, batch) -> updated batch_stats, a train-mode
        forward pass of the network to calibrate, best jitted, and best without drop
        path, which evaluation does not have either.
      batches: training batches of one size; consumed to the end, so slice an endless
        stream. A hundred batches are plenty for the recipes' batch sizes.
      batch_stats: statistics of the right structure, shapes and types; their values
        are not used.
      momentum: what the network's batch normalisations keep of the old statistics.

    Returns:
      The new batch_stats.

    Raises:
      ValueError: if there is no batch, or a statistic is not called mean or var.
    """
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), batch_stats)
    first: Leaves = {}
    second: Leaves = {}
    num_batches = 0
    for batch in batches:
        updated = jax.device_get(update_batch_stats(zeros, batch))
        means, variances = _means_and_variances(updated, scale=1.0 / (1.0 - momentum))
        for path, mean in means.items():
            first[path] = first.get(path, 0.0) + mean
            second[path] = second.get(path, 0.0) + variances[path] + np.square(mean)
        num_batches += 1
    if not num_batches:
        raise ValueError(
            "recalibrate_batch_norm: the stream held no batch; pass at least one, and "
            "not an iterator that is already used up."
        )

    def statistic(path: tuple[Any, ...], old: jax.Array) -> np.ndarray:
        *parent, name = path
        mean = first[tuple(parent)] / num_batches
        if name.key == "mean":
            return mean.astype(old.dtype)
        variance = second[tuple(parent)] / num_batches - np.square(mean)
        return np.maximum(variance, 0.0).astype(old.dtype)

    return jax.tree_util.tree_map_with_path(statistic, batch_stats)


def _means_and_variances(batch_stats: Any, *, scale: float) -> tuple[Leaves, Leaves]:
    """Splits statistics, times `scale` in float64, by the path of their layer."""
    split: dict[str, Leaves] = {"mean": {}, "var": {}}
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch_stats):
        *parent, name = path
        if name.key not in split:
            raise ValueError(
                f"recalibrate_batch_norm: statistic {jax.tree_util.keystr(path)} is "
                "neither a mean nor a var; only batch normalisation can be measured."
            )
        split[name.key][tuple(parent)] = np.asarray(leaf, np.float64) * scale
    return split["mean"], split["var"]
