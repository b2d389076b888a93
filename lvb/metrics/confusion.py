"""Which classes are taken for which: a matrix that adds up, and what to say of it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# Ours: matrices of more classes do not fit a terminal.
_PRINTED_CLASSES = 12
_LISTED = 5


def confusion_counts(
    logits: jax.Array, *, labels: jax.Array, mask: jax.Array
) -> jax.Array:
    """Counts the pairs of label and prediction in a batch.

    Args:
      logits: (B, num_classes).
      labels: class indices, (B,), integer.
      mask: which rows count, (B,), bool; the others pad the batch.

    Returns:
      (num_classes, num_classes) int32, a row per label, a column per prediction; those
      of several batches are added.
    """
    num_classes = logits.shape[-1]
    counts = jnp.zeros((num_classes, num_classes), jnp.int32)
    predictions = jnp.argmax(logits, axis=-1)  # (B,)
    return counts.at[labels, predictions].add(mask.astype(jnp.int32))


def confusion_summary(
    counts: np.ndarray, *, class_names: Sequence[str], listed: int = _LISTED
) -> str:
    """Describes a confusion matrix in lines to print.

    Args:
      counts: (num_classes, num_classes) integers, a row per label.
      class_names: in the order of the labels.
      listed: how many of the hardest classes and commonest mistakes are named.

    Returns:
      Accuracy; the matrix, if it is small; recall (of a class's images, those found)
      and precision (of the images called so, those that are) of the classes with the
      lowest recall; and the commonest mistakes.

    Raises:
      ValueError: if matrix and names do not fit.
    """
    counts = np.asarray(counts)
    if counts.shape != (len(class_names),) * 2:
        raise ValueError(
            f"confusion_summary: a matrix of shape {counts.shape} came with "
            f"{len(class_names)} class names; give one name per row."
        )
    total, right = int(counts.sum()), int(counts.trace())
    if not total:
        return "Confusion: no images."
    lines = [f"Confusion: {right:,} of {total:,} images right ({right / total:.2%})."]
    if len(class_names) <= _PRINTED_CLASSES:
        lines += ["", *_matrix(counts, class_names)]
    lines += ["", *_hardest(counts, class_names, listed)]
    mistakes = _mistakes(counts, class_names, listed)
    return "\n".join([*lines, *(["", *mistakes] if mistakes else [])])


def _matrix(counts: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """The matrix, its columns numbered as its rows are."""
    width = max(len(str(counts.max())), len(str(len(class_names) - 1)))
    names = [f"  {row:>2} {name}" for row, name in enumerate(class_names)]
    indent = max(map(len, names)) + 2
    columns = " ".join(f"{column:>{width}}" for column in range(len(class_names)))
    lines = ["  a row per label, a column per prediction:", " " * indent + columns]
    for name, row in zip(names, counts.tolist(), strict=True):
        cells = " ".join(f"{count or '.':>{width}}" for count in row)
        lines.append(name.ljust(indent) + cells)
    return lines


def _hardest(counts: np.ndarray, class_names: Sequence[str], listed: int) -> list[str]:
    """The classes with the lowest recall, of those that have images."""
    right, labelled, called = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    with_images = np.flatnonzero(labelled)
    recall = right[with_images] / labelled[with_images]
    lines = ["  hardest classes:"]
    for index in with_images[np.argsort(recall, kind="stable")][:listed].tolist():
        precision = (
            f"{right[index]}/{called[index]}" if called[index] else "never called"
        )
        lines.append(
            f"    {class_names[index]}: recall {right[index]}/{labelled[index]}, "
            f"precision {precision}"
        )
    return lines


def _mistakes(counts: np.ndarray, class_names: Sequence[str], listed: int) -> list[str]:
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:listed]
    pairs = [divmod(int(place), len(counts)) for place in order]
    lines = [
        f"    {class_names[label]} taken for {class_names[called]}: "
        f"{wrong[label, called]} of {counts[label].sum()}"
        for label, called in pairs
        if wrong[label, called]
    ]
    return ["  commonest mistakes:", *lines] if lines else []
