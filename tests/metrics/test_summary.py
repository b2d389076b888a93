"""Figures from records: counts, intervals and ImageNet-C's means."""

import numpy as np
import pytest

from lvb.data import corruptions
from lvb.metrics import label_sets, summary

FACTS = corruptions.imagenet_c_facts()
BASELINE, CLEAN = FACTS["alexnet_error"], FACTS["alexnet_clean_error"]


def scores(top1, top5=None, confidence=0.75, counted=None):
    top1 = np.asarray(top1, bool)
    return label_sets.Scores(
        prediction=np.zeros(len(top1), int),
        confidence=np.full(len(top1), confidence),
        top1=top1,
        top5=top1 if top5 is None else np.asarray(top5, bool),
        counted=np.ones(len(top1), bool) if counted is None else np.asarray(counted),
    )


def test_counts():
    figures = summary.summarize(scores([1, 1, 0, 0], [1, 1, 1, 0]), num_classes=10)
    assert figures["images"] == 4
    assert figures["top1"]["correct"] == 2
    assert figures["top1"]["percent"] == 50
    assert figures["top5"]["correct"] == 3
    assert figures["ece"]["percent"] == pytest.approx(25)
    assert figures["top1"]["low"] < 50 < figures["top1"]["high"]
    assert figures["ece"]["low"] <= figures["ece"]["high"]


def test_images_without_labels_do_not_count():
    figures = summary.summarize(
        scores([1, 0, 0, 0], counted=[True, True, False, False]), num_classes=10
    )
    assert figures["images"] == 2
    assert figures["top1"]["percent"] == 50


def test_top5_needs_more_than_five_classes():
    assert summary.summarize(scores([1, 0]), num_classes=5)["top5"] is None


def corrupted(parts, clean_error=None):
    return summary.summarize_corrupted(
        parts,
        num_classes=1000,
        baseline=BASELINE,
        baseline_clean_error=CLEAN,
        clean_error=clean_error,
    )


def all_parts(right):
    return {
        (name, severity): scores(right(name, severity))
        for name in corruptions.BENCHMARK
        for severity in corruptions.SEVERITIES
    }


def test_a_perfect_and_a_hopeless_classifier():
    perfect = corrupted(all_parts(lambda n, s: [1] * 6), clean_error=0.0)
    assert perfect["corruption_error"]["mce"] == {"value": 0, "low": 0, "high": 0}
    assert perfect["corruption_error"]["relative_mce"] == 0
    assert perfect["top1"]["percent"] == 100
    assert perfect["images"] == 75 * 6
    hopeless = corrupted(all_parts(lambda n, s: [0] * 6))
    expected = 100 * np.mean([1 / error for error in BASELINE.values()])
    assert hopeless["corruption_error"]["mce"]["value"] == pytest.approx(expected)
    assert hopeless["corruption_error"]["relative_mce"] is None


def test_by_corruption_and_severity():
    """Image i of 10 is right below severity s unless i < 2 s."""
    parts = all_parts(lambda n, s: [i >= 2 * s for i in range(10)])
    figures = corrupted(parts, clean_error=0.0)
    fog = figures["corruption_error"]["corruptions"]["fog"]
    assert fog["accuracy"] == pytest.approx(
        {"1": 80, "2": 60, "3": 40, "4": 20, "5": 0}
    )
    assert fog["mean_accuracy"] == pytest.approx(40)
    assert fog["ce"] == pytest.approx(100 * 0.6 / BASELINE["fog"])
    assert figures["top1"]["percent"] == pytest.approx(40)
    mce = figures["corruption_error"]["mce"]
    expected = 100 * np.mean([0.6 / error for error in BASELINE.values()])
    assert mce["value"] == pytest.approx(expected)
    assert mce["low"] < expected < mce["high"]
    relative = 100 * np.mean([0.6 / (error - CLEAN) for error in BASELINE.values()])
    assert figures["corruption_error"]["relative_mce"] == pytest.approx(relative)


def test_versions_of_an_image_are_resampled_together():
    """Half of the images always right: 75 copies do not narrow the interval."""
    parts = all_parts(lambda n, s: [i % 2 for i in range(100)])
    figures = corrupted(parts)
    half = (figures["top1"]["high"] - figures["top1"]["low"]) / 2
    assert half == pytest.approx(1.96 * 5, rel=0.15)  # 5 % for 100 images.


def test_extra_corruptions_enter_no_mean():
    parts = all_parts(lambda n, s: [1, 1, 0, 0])
    parts |= {("spatter", s): scores([0, 0, 0, 0]) for s in corruptions.SEVERITIES}
    figures = corrupted(parts)
    assert figures["top1"]["percent"] == 50
    spatter = figures["corruption_error"]["corruptions"]["spatter"]
    assert spatter["mean_accuracy"] == 0
    assert spatter["ce"] is None
    assert figures["corruption_error"]["mce"]["value"] > 0


def test_a_part_of_the_benchmark_has_no_mce():
    parts = {("fog", s): scores([1, 0]) for s in (1, 2, 3, 4, 5)}
    parts |= {("snow", s): scores([1, 1]) for s in (1, 2)}
    figures = corrupted(parts, clean_error=0.2)["corruption_error"]
    assert figures["mce"] is None
    assert figures["relative_mce"] is None
    assert figures["corruptions"]["fog"]["ce"] > 0
    assert figures["corruptions"]["snow"]["ce"] is None


def test_parts_of_different_size_are_refused():
    parts = {("fog", 1): scores([1, 0]), ("fog", 2): scores([1])}
    with pytest.raises(ValueError, match="the parts hold 1 to 2 images"):
        corrupted(parts)
