"""Protocols on fixed logits: all classes, a subset masked before argmax, label sets."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from lvb.metrics import label_sets

# Four images, six classes. Row by row the best classes are 0, 5, 2 and (tied) 1 and 3.
LOGITS = np.array(
    [
        [9.0, 1.0, 8.0, 0.0, 0.0, 7.0],
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
        [1.0, 2.0, 6.0, 3.0, 4.0, 5.0],
        [0.0, 7.0, 1.0, 7.0, 2.0, 3.0],
    ]
)


def test_all_classes():
    scores = label_sets.score_labels(LOGITS, np.array([0, 0, 5, 3]))
    assert scores.prediction.tolist() == [0, 5, 2, 1]
    assert scores.top1.tolist() == [True, False, False, False]
    assert scores.top5.tolist() == [True, False, True, True]
    assert scores.counted.all()


def test_a_subset_is_masked_before_argmax():
    """Over {1, 2, 4}: the best logits 0, 5 and 3 may not win."""
    scores = label_sets.score_labels(LOGITS, np.array([2, 4, 2, 1]), classes=(1, 2, 4))
    assert scores.prediction.tolist() == [2, 4, 2, 1]
    assert scores.top1.all()
    assert scores.top5.all()
    # Probability among the three classes alone.
    expected = np.exp(8) / (np.exp(1) + np.exp(8) + np.exp(0))
    assert scores.confidence[0] == pytest.approx(expected)


def test_a_label_outside_the_subset_is_wrong():
    scores = label_sets.score_labels(LOGITS, np.array([0, 5, 3, 3]), classes=(1, 2, 4))
    assert not scores.top1.any()
    assert not scores.top5.any()


def test_label_sets_of_real():
    sets = [[0, 3], [], [3, 4], [1, 3]]
    scores = label_sets.score_label_sets(LOGITS, sets)
    assert scores.counted.tolist() == [True, False, True, True]
    assert scores.top1[scores.counted].tolist() == [True, False, True]
    assert scores.top5[scores.counted].tolist() == [True, True, True]


def test_equals_scikit_learn():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(400, 30)).astype(np.float32)
    labels = rng.integers(30, size=400)
    scores = label_sets.score_labels(logits, labels)
    assert scores.top1.mean() == sklearn_metrics.accuracy_score(
        labels, logits.argmax(axis=1)
    )
    assert scores.top5.mean() == sklearn_metrics.top_k_accuracy_score(
        labels, logits, k=5, labels=np.arange(30)
    )
    probabilities = np.exp(logits.astype(float))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(scores.confidence, probabilities.max(axis=1))
    subset = np.sort(rng.choice(30, 12, replace=False))
    inside = np.isin(labels, subset)
    ours = label_sets.score_labels(logits, labels, classes=subset)
    theirs = subset[logits[:, subset].argmax(axis=1)]
    np.testing.assert_array_equal(ours.prediction, theirs)
    assert not ours.top1[~inside].any()


def test_placing_classes():
    placed = label_sets.place_classes(LOGITS, [4, 0, -1, 7, 1, 2], num_classes=9)
    assert placed.shape == (4, 9)
    assert placed[0].tolist() == [1, 0, 7, -np.inf, 9, -np.inf, -np.inf, 0, -np.inf]
    scores = label_sets.score_labels(placed, np.array([4, 2, 3, 0]))
    assert scores.top1.tolist() == [True, True, False, True]
    assert not scores.top5[2]  # The model has no logit for class 3.


def test_large_and_few_logits():
    scores = label_sets.score_labels(np.array([[1e4, 0.0], [-1e4, -2e4]]), np.zeros(2))
    np.testing.assert_array_equal(scores.confidence, 1)
    assert scores.top1.all()


def test_refuses():
    with pytest.raises(ValueError, match="of image 1 of this batch is nan"):
        label_sets.score_labels(np.array([[0.0, 1], [np.nan, 2]]), np.zeros(2))
    with pytest.raises(ValueError, match="of image 0 of this batch is -inf"):
        label_sets.score_labels(np.full((1, 3), -np.inf), np.zeros(1))
    with pytest.raises(ValueError, match=r"classes 1\.\.999 do not fit 6 logits"):
        label_sets.score_labels(LOGITS, np.zeros(4), classes=(1, 999))
