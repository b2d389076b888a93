"""The confusion matrix against scikit-learn, and the words about it."""

import jax
import numpy as np
import pytest
from sklearn import metrics as reference

from lvb.metrics import confusion

NAMES = ("cat", "dog", "eel")


def test_counts_equal_scikit_learn_whatever_the_batches():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(60, 5)).astype(np.float32)
    labels = rng.integers(0, 5, size=60).astype(np.int32)
    mask = rng.random(60) < 0.8
    count = jax.jit(confusion.confusion_counts)
    parts = [
        count(logits[i : i + 20], labels=labels[i : i + 20], mask=mask[i : i + 20])
        for i in range(0, 60, 20)
    ]
    expected = reference.confusion_matrix(
        labels[mask], logits.argmax(axis=1)[mask], labels=range(5)
    )
    np.testing.assert_array_equal(sum(parts), expected)
    assert parts[0].dtype == np.int32


def test_summary_names_what_goes_wrong():
    text = confusion.confusion_summary(
        np.array([[8, 2, 0], [0, 10, 0], [1, 3, 6]]), class_names=NAMES
    )
    assert text.startswith("Confusion: 24 of 30 images right (80.00%).")
    lines = text.splitlines()
    hardest = lines.index("  hardest classes:")
    assert lines[hardest + 1] == "    eel: recall 6/10, precision 6/6"
    assert lines[hardest + 2] == "    cat: recall 8/10, precision 8/9"
    mistakes = lines.index("  commonest mistakes:")
    assert lines[mistakes + 1 :] == [
        "    eel taken for dog: 3 of 10",
        "    cat taken for dog: 2 of 10",
        "    eel taken for cat: 1 of 10",
    ]
    rows = [line for line in lines if line.startswith("   0 cat")]
    assert rows[0].split() == ["0", "cat", "8", "2", "."]


def test_perfect_summary_has_no_mistakes():
    text = confusion.confusion_summary(np.diag([3, 4, 5]), class_names=NAMES)
    assert "100.00%" in text
    assert "mistakes" not in text


def test_classes_without_images_and_never_called():
    text = confusion.confusion_summary(
        np.array([[2, 0, 0], [2, 0, 0], [0, 0, 0]]), class_names=NAMES
    )
    assert "dog: recall 0/2, precision never called" in text
    assert "eel: recall" not in text


def test_many_classes_are_listed_and_not_drawn():
    names = tuple(f"class{i}" for i in range(40))
    text = confusion.confusion_summary(np.eye(40, dtype=int), class_names=names)
    assert len(text.splitlines()) < 10


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"\(2, 2\) came with 3 class names"):
        confusion.confusion_summary(np.eye(2), class_names=NAMES)
    empty = confusion.confusion_summary(np.zeros((3, 3), int), class_names=NAMES)
    assert empty == "Confusion: no images."
