"""Bootstrap intervals: how far a figure would move with another draw of the images.

Percentile bootstrap (Efron and Tibshirani, 1993, Section 13.3) over images. It covers
the choice of test images only, not training with another seed.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000  # Ours: the ends of a 95 % interval are then good to a tenth of it.


class Interval(NamedTuple):
    """Ends of a confidence interval, in the unit of the figure."""

    low: float
    high: float


def mean_interval(
    values: np.ndarray,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Interval of the mean of per-image values.

    The mean of a resample of zeros and ones is a binomial count over N, which is drawn
    directly; other values are resampled one by one.

    Args:
      values: one per image, (N,), bool or float.
      level: share of resamples inside the interval.
      resamples: how many are drawn.
      seed: of the draw; the interval is a function of its arguments.

    Raises:
      ValueError: when there is no value, or `level` is not between 0 and 1.
    """
    values = np.asarray(values)
    if values.dtype != bool:
        return statistic_interval(
            np.mean, values, level=level, resamples=resamples, seed=seed
        )
    _check(len(values), level)
    rng = np.random.default_rng(seed)
    means = rng.binomial(len(values), values.mean(), size=resamples) / len(values)
    return _percentiles(means, level)


def statistic_interval(
    statistic: Callable[..., float],
    *columns: np.ndarray,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Interval of any statistic of per-image columns, resampled together.

    Args:
      statistic: takes the resampled columns, returns a number.
      *columns: (N,) each; row i belongs to image i.
      level: share of resamples inside the interval.
      resamples: how many are drawn.
      seed: of the draw.

    Raises:
      ValueError: when there is no row, or `level` is not between 0 and 1.
    """
    count = len(columns[0])
    _check(count, level)
    rng = np.random.default_rng(seed)
    figures = np.empty(resamples)
    for i in range(resamples):
        rows = rng.integers(count, size=count)
        figures[i] = statistic(*(column[rows] for column in columns))
    return _percentiles(figures, level)


def _check(count: int, level: float) -> None:
    if count == 0:
        raise ValueError("bootstrap: no images, so no interval; give at least one.")
    if not 0 < level < 1:
        raise ValueError(f"bootstrap: level={level}; use a share such as 0.95.")


def _percentiles(figures: np.ndarray, level: float) -> Interval:
    low, high = np.quantile(figures, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
