"""Calibration: does a confidence of 80 % mean right in 80 % of the cases?

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, Section 2.
"""

from typing import NamedTuple, Self

import numpy as np

DEFAULT_BINS = 15  # Guo et al., Section 4.


class CalibrationBins(NamedTuple):
    """Sums over confidence bins (m-1)/M < confidence <= m/M; they add over shards.

    Attributes:
      count: examples in each bin, (M,).
      confidence: sum of their confidences, (M,).
      correct: how many of them are right, (M,).
    """

    count: np.ndarray
    confidence: np.ndarray
    correct: np.ndarray

    @classmethod
    def of(
        cls, confidence: np.ndarray, correct: np.ndarray, *, bins: int = DEFAULT_BINS
    ) -> Self:
        """Bins examples.

        Args:
          confidence: probability given to the predicted class, (N,), in [0, 1].
          correct: whether the prediction is right, (N,).
          bins: M.

        Raises:
          ValueError: when the lengths differ or a confidence is no probability.
        """
        confidence = np.asarray(confidence, np.float64)
        correct = np.asarray(correct, np.float64)
        if confidence.shape != correct.shape:
            raise ValueError(
                f"calibration: {confidence.shape} confidences and {correct.shape}"
                " outcomes; give one of each per example."
            )
        if not np.all((confidence >= 0) & (confidence <= 1)):
            raise ValueError("calibration: a confidence lies outside [0, 1].")
        index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
        return cls(
            np.bincount(index, minlength=bins),
            np.bincount(index, confidence, minlength=bins),
            np.bincount(index, correct, minlength=bins),
        )

    def expected_error(self) -> float:
        """ECE = sum_m count_m / N |accuracy_m - confidence_m|, in [0, 1]."""
        gaps = np.abs(self.correct - self.confidence)
        return float(gaps.sum() / max(self.count.sum(), 1))


def expected_calibration_error(
    confidence: np.ndarray, correct: np.ndarray, *, bins: int = DEFAULT_BINS
) -> float:
    """The expected calibration error of a set of predictions, Guo et al. Eq. (3).

    Args:
      confidence: probability given to the predicted class, (N,).
      correct: whether the prediction is right, (N,).
      bins: number of equally wide bins.

    Returns:
      A number in [0, 1]; 0 is perfectly calibrated.
    """
    return CalibrationBins.of(confidence, correct, bins=bins).expected_error()
