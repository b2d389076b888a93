"""Which predictions count as right: over all classes, a subset, or sets of labels.

NumPy on the host: an evaluation scores the same logits under several protocols, one
result per image, so that every figure is a count of images.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Scores(NamedTuple):
    """One entry per image, (N,) each.

    Attributes:
      prediction: the class with the largest logit; the first of several.
      confidence: its probability among the classes of the protocol, float64.
      top1: whether the prediction is right.
      top5: whether one of the five largest logits is right.
      counted: whether the image counts; ReaL leaves images without labels out.
    """

    prediction: np.ndarray
    confidence: np.ndarray
    top1: np.ndarray
    top5: np.ndarray
    counted: np.ndarray


def mask_classes(logits: np.ndarray, classes: Sequence[int] | None) -> np.ndarray:
    """Sets the logits of all other classes to -inf, so argmax cannot choose them.

    Args:
      logits: (N, num_classes).
      classes: the classes of the protocol; None for all.

    Raises:
      ValueError: when a class lies outside the logits.
    """
    if classes is None:
        return logits
    index = np.asarray(classes)
    if index.min() < 0 or index.max() >= logits.shape[1]:
        raise ValueError(
            f"class subset: classes {index.min()}..{index.max()} do not fit"
            f" {logits.shape[1]} logits; evaluate a model with 1,000 ImageNet classes."
        )
    masked = np.full_like(logits, -np.inf)
    masked[:, index] = logits[:, index]
    return masked


def place_classes(
    logits: np.ndarray, columns: Sequence[int], *, num_classes: int
) -> np.ndarray:
    """Moves a model's logits to the numbering of a benchmark, -inf elsewhere.

    Args:
      logits: (N, len(columns)).
      columns: the benchmark's class of each logit; -1 drops it.
      num_classes: of the benchmark.

    Returns:
      (N, num_classes).
    """
    columns = np.asarray(columns)
    kept = columns >= 0
    placed = np.full((len(logits), num_classes), -np.inf, logits.dtype)
    placed[:, columns[kept]] = logits[:, kept]
    return placed


def score_labels(
    logits: np.ndarray, labels: np.ndarray, *, classes: Sequence[int] | None = None
) -> Scores:
    """Scores single labels.

    Args:
      logits: (N, num_classes), finite or -inf.
      labels: (N,) integers.
      classes: the classes of the protocol; None for all.

    Raises:
      ValueError: when a logit is not a number or a row has no finite logit.
    """
    order, confidence = _rank(mask_classes(logits, classes))
    hits = order == np.asarray(labels)[:, None]  # (N, 5)
    counted = np.ones(len(logits), bool)
    return Scores(order[:, 0], confidence, hits[:, 0], hits.any(axis=1), counted)


def score_label_sets(logits: np.ndarray, label_sets: Sequence[Sequence[int]]) -> Scores:
    """Scores sets of labels as ReaL does (Beyer et al., 2020, arXiv 2006.07159).

    A prediction is right when it is in the image's set; images with an empty set do not
    count.

    Args:
      logits: (N, num_classes).
      label_sets: the correct classes of each image.
    """
    order, confidence = _rank(logits)
    hits = np.zeros(order.shape, bool)
    for row, labels in enumerate(label_sets):
        hits[row] = np.isin(order[row], labels)
    counted = np.array([len(labels) > 0 for labels in label_sets], bool)
    return Scores(order[:, 0], confidence, hits[:, 0], hits.any(axis=1), counted)


def score_views(
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    views: Mapping[str, Sequence[int] | None],
    label_sets: Sequence[Sequence[int]] | None = None,
) -> dict[str, Scores]:
    """Scores the same logits under several rules.

    Args:
      logits: (N, num_classes).
      labels: (N,) integers.
      views: the classes of each rule; None for all.
      label_sets: the correct classes of each image, in place of the labels.
    """
    if label_sets is None:
        return {
            name: score_labels(logits, labels, classes=classes)
            for name, classes in views.items()
        }
    return {name: score_label_sets(logits, label_sets) for name in views}


def _rank(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The five best classes, -1 for impossible ones, (N, 5); the best's probability."""
    logits = np.asarray(logits, np.float64)
    best = logits.max(axis=1)
    if not np.isfinite(best).all():
        row = int(np.flatnonzero(~np.isfinite(best))[0])
        raise ValueError(
            f"scores: the best logit of image {row} of this batch is {best[row]}; the"
            " model computes no finite number, or none for a class of this protocol."
        )
    order = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    values = np.take_along_axis(logits, order, axis=1)
    confidence = 1 / np.exp(logits - best[:, None]).sum(axis=1)
    return np.where(np.isneginf(values), -1, order), confidence
