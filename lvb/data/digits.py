"""The handwritten digits that scikit-learn ships.

1,797 grayscale pictures of 8 x 8 pixels with 17 levels: the test part of the Optical
Recognition of Handwritten Digits set of the UCI repository (Alpaydin and Kaynak,
1998). No download, so a first run needs nothing else.
"""

import numpy as np

from lvb.data import sources

CLASS_NAMES = tuple("0123456789")
NUM_VAL = 360  # One fifth of 1,797, rounded up so that every class has 36.

_MAX_LEVEL = 16  # Levels are 0..16.


def open_digits(split: str) -> sources.ArraySource:
    """Returns the digits of one split, pixels (8, 8, 1) uint8.

    "val" has 36 digits of each class, drawn once and for all with a fixed seed; "train"
    has the other 1,437. The split does not depend on the run's seed, so that accuracies
    of different runs can be compared.

    Args:
      split: "train" or "val".
    """
    from sklearn import datasets

    digits = datasets.load_digits()
    held_out = _held_out(digits.target)
    chosen = held_out if split == "val" else ~held_out
    levels = digits.images[chosen]  # (N, 8, 8) floats, whole numbers
    images = np.rint(levels * (255 / _MAX_LEVEL)).astype(np.uint8)[..., None]
    return sources.ArraySource(
        images,
        digits.target[chosen],
        class_names=CLASS_NAMES,
        name=f"digits/{split}",
    )


def _held_out(labels: np.ndarray) -> np.ndarray:
    """Marks 36 examples of each class, (N,) bool."""
    # RandomState and not Generator: NumPy guarantees its stream across versions.
    rng = np.random.RandomState(0)
    held_out = np.zeros(labels.size, bool)
    per_class = NUM_VAL // len(CLASS_NAMES)
    for label in range(len(CLASS_NAMES)):
        held_out[rng.permutation(np.flatnonzero(labels == label))[:per_class]] = True
    return held_out
