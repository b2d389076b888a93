"""Corruption errors of ImageNet-C (Hendrycks and Dietterich, ICLR 2019, Section 4.2).

    CE_c = 100 sum_s E_{s,c} / sum_s B_{s,c}              mCE = mean of CE_c over c
    relative CE_c = 100 sum_s (E_{s,c} - E_clean) / sum_s (B_{s,c} - B_clean)

E is the top-1 error of the model and B that of AlexNet, over severities s = 1..5. Only
the mean of B over the severities is published, which is all the sums need.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

SEVERITY_COUNT = 5


def corruption_errors(
    errors: Mapping[str, Sequence[float]], *, baseline: Mapping[str, float]
) -> dict[str, float]:
    """CE of every corruption, in percent of the baseline's error.

    Args:
      errors: top-1 error in [0, 1] at severities 1 to 5, for each corruption.
      baseline: AlexNet's mean error over the severities, for each corruption.

    Raises:
      ValueError: when a severity or a baseline is missing.
    """
    result = {}
    for name, row in errors.items():
        _check_row(name, row, baseline)
        result[name] = 100 * (_mean(row) / baseline[name])
    return result


def mean_corruption_error(
    errors: Mapping[str, Sequence[float]], *, baseline: Mapping[str, float]
) -> float:
    """MCE: 100 for AlexNet, 0 for a classifier without errors.

    Args:
      errors: as for `corruption_errors`; exactly the corruptions of the baseline.
      baseline: AlexNet's mean error over the severities, for each corruption.

    Raises:
      ValueError: when a corruption is missing, or one too many is given.
    """
    _check_names(errors, baseline)
    return _mean(corruption_errors(errors, baseline=baseline).values())


def relative_mean_corruption_error(
    errors: Mapping[str, Sequence[float]],
    *,
    clean_error: float,
    baseline: Mapping[str, float],
    baseline_clean_error: float,
) -> float:
    """Relative mCE: the growth of the error by corruption, AlexNet's growth being 100.

    Args:
      errors: as for `mean_corruption_error`.
      clean_error: the model's top-1 error on the uncorrupted validation set.
      baseline: AlexNet's mean error over the severities, for each corruption.
      baseline_clean_error: AlexNet's error on the uncorrupted validation set.
    """
    _check_names(errors, baseline)
    ratios = [
        (_mean(row) - clean_error) / (baseline[name] - baseline_clean_error)
        for name, row in errors.items()
    ]
    return 100 * _mean(ratios)


def image_corruption_errors(
    wrong: Mapping[str, np.ndarray], *, baseline: Mapping[str, float]
) -> np.ndarray:
    """Each image's share of the mCE; their mean is the mCE. For paired intervals.

    Args:
      wrong: whether each image is misclassified, bool (5, N) for each corruption, with
        the images in the same order everywhere.
      baseline: AlexNet's mean error over the severities, for each corruption.

    Returns:
      (N,) float64.
    """
    _check_names(wrong, baseline)
    for name, table in wrong.items():
        _check_row(name, table, baseline)
    shares = [table.mean(axis=0) / baseline[name] for name, table in wrong.items()]
    return 100 * np.mean(shares, axis=0)


def _mean(values: Iterable[float]) -> float:
    """In exact arithmetic, so that AlexNet's own table gives exactly 100."""
    return statistics.mean(float(value) for value in values)


def _check_row(
    name: str, row: Sequence[float] | np.ndarray, baseline: Mapping[str, float]
) -> None:
    if name not in baseline:
        raise ValueError(
            f"mCE: no baseline error for {name!r}; use {', '.join(baseline)}."
        )
    if len(row) != SEVERITY_COUNT:
        raise ValueError(
            f"mCE: {name} has {len(row)} severities; the metric needs 1 to 5."
        )


def _check_names(names: Mapping[str, object], baseline: Mapping[str, float]) -> None:
    missing, extra = baseline.keys() - names.keys(), names.keys() - baseline.keys()
    if missing or extra:
        odd = [f"{name} is missing" for name in sorted(missing)]
        odd += [f"{name} does not belong" for name in sorted(extra)]
        raise ValueError(f"mCE is over {len(baseline)} corruptions: {', '.join(odd)}.")
