"""Expected calibration error against scikit-learn's reliability curve."""

import numpy as np
import pytest
from sklearn import calibration as sklearn_calibration

from lvb.metrics import calibration


def predictions(count, seed=0):
    rng = np.random.default_rng(seed)
    confidence = rng.beta(3, 1, count)
    return confidence, rng.random(count) < confidence**1.5


@pytest.mark.parametrize("bins", [5, 10, 15])
def test_equals_scikit_learn(bins):
    confidence, correct = predictions(3000)
    accuracy, mean = sklearn_calibration.calibration_curve(
        correct, confidence, n_bins=bins
    )
    edges = np.linspace(0, 1, bins + 1)
    count = np.histogram(confidence, edges)[0]
    expected = np.sum(count[count > 0] * np.abs(accuracy - mean)) / 3000
    ours = calibration.expected_calibration_error(confidence, correct, bins=bins)
    assert ours == pytest.approx(expected, abs=1e-12)
    assert 0.02 < ours < 0.2


def test_limits():
    ones = np.ones(10)
    assert calibration.expected_calibration_error(ones, ones) == 0
    assert calibration.expected_calibration_error(ones, 0 * ones) == 1
    # Ten images at 0.75, of which eight are right: |0.8 - 0.75|.
    correct = np.arange(10) < 8
    ours = calibration.expected_calibration_error(np.full(10, 0.75), correct)
    assert ours == pytest.approx(0.05)


def test_an_edge_belongs_to_the_bin_below():
    bins = calibration.CalibrationBins.of(
        np.array([0.0, 0.2, 0.20001, 1.0]), np.ones(4), bins=5
    )
    assert bins.count.tolist() == [2, 1, 0, 0, 1]


def test_shards_add_up():
    confidence, correct = predictions(1000)
    whole = calibration.CalibrationBins.of(confidence, correct)
    parts = [
        calibration.CalibrationBins.of(confidence[s], correct[s])
        for s in (slice(0, 137), slice(137, None))
    ]
    added = calibration.CalibrationBins(*map(sum, zip(*parts, strict=True)))
    assert added.count.tolist() == whole.count.tolist()
    assert added.expected_error() == pytest.approx(whole.expected_error(), abs=1e-12)


def test_refuses():
    with pytest.raises(ValueError, match=r"\(3,\) confidences and \(2,\) outcomes"):
        calibration.expected_calibration_error(np.ones(3), np.ones(2))
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        calibration.expected_calibration_error(np.array([0.5, np.nan]), np.ones(2))
