"""Bootstrap intervals against SciPy's and against theory."""

import numpy as np
import pytest
from scipy import stats

from lvb.metrics import calibration, intervals


def test_binomial_and_image_resampling_agree():
    correct = np.random.default_rng(0).random(500) < 0.7
    fast = intervals.mean_interval(correct, resamples=8000)
    slow = intervals.mean_interval(correct.astype(float), resamples=8000)
    # An end of 8,000 resamples has a standard error of about 0.0005.
    assert fast == pytest.approx(slow, abs=0.004)


def test_equals_scipys_percentile_bootstrap():
    values = np.random.default_rng(1).gamma(2.0, size=300)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=8000, method="percentile", rng=3
    ).confidence_interval
    ours = intervals.mean_interval(values, resamples=8000)
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.015)


def test_width_of_an_accuracy():
    """50,000 images at 75 %: plus or minus 1.96 standard errors."""
    correct = np.arange(50_000) < 37_500
    low, high = intervals.mean_interval(correct)
    half = 1.96 * np.sqrt(0.75 * 0.25 / 50_000)
    assert low == pytest.approx(0.75 - half, abs=3e-4)
    assert high == pytest.approx(0.75 + half, abs=3e-4)


def test_covers_as_often_as_it_says():
    """Of 300 data sets, 95 % contain the truth; 99.99 % of such counts exceed 267."""
    rng = np.random.default_rng(2)
    inside = 0
    for trial in range(300):
        low, high = intervals.mean_interval(
            rng.random(400) < 0.6, resamples=500, seed=trial
        )
        inside += low <= 0.6 <= high
    assert 267 < inside < 300


def test_columns_are_resampled_together():
    rng = np.random.default_rng(3)
    confidence = rng.random(200)
    correct = rng.random(200) < confidence

    def checked(a, b):
        assert set(zip(a, b, strict=True)) <= pairs
        return calibration.expected_calibration_error(a, b)

    pairs = set(zip(confidence, correct, strict=True))
    low, high = intervals.statistic_interval(
        checked, confidence, correct, resamples=200
    )
    assert 0 < low < high < 1


def test_is_a_function_of_its_arguments():
    values = np.random.default_rng(4).random(50)
    assert intervals.mean_interval(values) == intervals.mean_interval(values.copy())
    assert intervals.mean_interval(values) != intervals.mean_interval(values, seed=1)
    wide = intervals.mean_interval(values, level=0.99)
    narrow = intervals.mean_interval(values, level=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_limits_and_refusals():
    assert intervals.mean_interval(np.ones(7, bool)) == (1, 1)
    assert intervals.mean_interval(np.array([0.25])) == (0.25, 0.25)
    with pytest.raises(ValueError, match="no images, so no interval"):
        intervals.mean_interval(np.zeros(0, bool))
    with pytest.raises(ValueError, match="level=95; use a share"):
        intervals.mean_interval(np.ones(3, bool), level=95)
