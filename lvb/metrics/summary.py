"""Figures of an evaluation from its records, ready for JSON. Shares are in percent."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lvb.metrics import calibration, corruption_error, intervals, label_sets

ECE_RESAMPLES = 500  # Ours: a resample of 50,000 images takes about a millisecond.


def summarize(
    scores: label_sets.Scores, *, num_classes: int, seed: int = 0
) -> dict[str, Any]:
    """Accuracy and calibration of one set of images under one view.

    Args:
      scores: of every image.
      num_classes: the model could choose from; top-5 needs more than five.
      seed: of the bootstrap.

    Returns:
      "images", the number counted; "top1", "top5" and "ece", each with "percent",
      "low" and "high" (95 % bootstrap interval); the first two with "correct".
      "top5" is None for five classes or fewer.
    """
    counted = scores.counted
    confidence, top1 = scores.confidence[counted], scores.top1[counted]
    ece = calibration.expected_calibration_error(confidence, top1)
    interval = intervals.statistic_interval(
        calibration.expected_calibration_error,
        confidence,
        top1,
        resamples=ECE_RESAMPLES,
        seed=seed,
    )
    return {
        "images": int(counted.sum()),
        "top1": _accuracy(top1, seed),
        "top5": _accuracy(scores.top5[counted], seed) if num_classes > 5 else None,
        "ece": {
            "percent": 100 * ece,
            "low": 100 * interval.low,
            "high": 100 * interval.high,
        },
    }


def summarize_corrupted(
    parts: Mapping[tuple[str, int], label_sets.Scores],
    *,
    num_classes: int,
    baseline: Mapping[str, float],
    baseline_clean_error: float,
    clean_error: float | None,
    seed: int = 0,
) -> dict[str, Any]:
    """The figures of ImageNet-C.

    Args:
      parts: scores by corruption and severity, the same images in each part.
      num_classes: the model could choose from.
      baseline: AlexNet's mean error for each corruption of the benchmark; others, the
        extra ones, are listed and enter no mean.
      baseline_clean_error: AlexNet's error on the uncorrupted validation set.
      clean_error: the model's, in [0, 1]; None when it was not evaluated.
      seed: of the bootstrap, which resamples images with all their versions.

    Returns:
      As `summarize`, with means over the parts of the benchmark's corruptions; and
      "corruption_error": "corruptions", for each its accuracy by severity, their mean
      and its CE (None unless all severities are there and AlexNet's error is known);
      "mce" with its interval, None unless all corruptions are there; "relative_mce",
      None without `clean_error` too.

    Raises:
      ValueError: when the parts differ in size.
    """
    sizes = {len(scores.top1) for scores in parts.values()}
    if len(sizes) > 1:
        raise ValueError(
            f"ImageNet-C: the parts hold {min(sizes)} to {max(sizes)} images; a part is"
            " not whole, unpack it again."
        )
    wrong: dict[str, dict[int, np.ndarray]] = {}
    for (name, severity), scores in parts.items():
        wrong.setdefault(name, {})[severity] = ~scores.top1
    main = [scores for (name, _), scores in parts.items() if name in baseline]
    main = main or list(parts.values())
    confidence = np.concatenate([scores.confidence for scores in main])
    right = np.concatenate([scores.top1 for scores in main])
    ece = calibration.expected_calibration_error(confidence, right)
    top5 = np.mean([scores.top5 for scores in main], axis=0)
    return {
        "images": sum(len(scores.top1) for scores in parts.values()),
        "top1": _accuracy(np.mean([scores.top1 for scores in main], axis=0), seed),
        "top5": _accuracy(top5, seed) if num_classes > 5 else None,
        "ece": {"percent": 100 * ece},
        "corruption_error": _corruption_error(
            wrong, baseline, baseline_clean_error, clean_error, seed
        ),
    }


def _corruption_error(
    wrong: Mapping[str, Mapping[int, np.ndarray]],
    baseline: Mapping[str, float],
    baseline_clean_error: float,
    clean_error: float | None,
    seed: int,
) -> dict[str, Any]:
    errors = {
        name: {severity: float(rows.mean()) for severity, rows in table.items()}
        for name, table in wrong.items()
    }
    complete = {
        name: list(row.values())
        for name, row in errors.items()
        if name in baseline and len(row) == corruption_error.SEVERITY_COUNT
    }
    ce = corruption_error.corruption_errors(complete, baseline=baseline)
    result: dict[str, Any] = {
        "corruptions": {
            name: {
                "accuracy": {str(s): 100 * (1 - error) for s, error in row.items()},
                "mean_accuracy": 100 * (1 - float(np.mean(list(row.values())))),
                "ce": ce.get(name),
            }
            for name, row in errors.items()
        },
        "mce": None,
        "relative_mce": None,
    }
    if complete.keys() != baseline.keys():
        return result
    tables = {name: np.stack(list(wrong[name].values())) for name in baseline}
    shares = corruption_error.image_corruption_errors(tables, baseline=baseline)
    result["mce"] = {
        "value": corruption_error.mean_corruption_error(complete, baseline=baseline),
        **intervals.mean_interval(shares, seed=seed)._asdict(),
    }
    if clean_error is not None:
        result["relative_mce"] = corruption_error.relative_mean_corruption_error(
            complete,
            clean_error=clean_error,
            baseline=baseline,
            baseline_clean_error=baseline_clean_error,
        )
    return result


def _accuracy(right: np.ndarray, seed: int) -> dict[str, float | int]:
    """Of one value per image: whether it is right, or how often over its versions."""
    interval = intervals.mean_interval(right, seed=seed)
    figure = {
        "percent": 100 * float(right.mean()),
        "low": 100 * interval.low,
        "high": 100 * interval.high,
    }
    return figure | ({"correct": int(right.sum())} if right.dtype == bool else {})
