"""What was predicted for every image: collected once, kept on disk, read back.

Every figure of an evaluation is a function of these records, so that two models can be
compared image by image later.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from lvb.metrics import label_sets


class Record(NamedTuple):
    """The scores of a whole set of images.

    Attributes:
      label: of each image, (N,), in the order of the data set.
      views: the scores under each view of the benchmark, by its name.
      num_classes: the model could choose from.
      note: what a reader of the figures must know, else "".
    """

    label: np.ndarray
    views: Mapping[str, label_sets.Scores]
    num_classes: int
    note: str = ""


class Collector:
    """Gathers scored batches of images, in any order, each image once."""

    def __init__(self, num_examples: int) -> None:
        self._num_examples = num_examples
        self._index: list[np.ndarray] = []
        self._label: list[np.ndarray] = []
        self._views: list[Mapping[str, label_sets.Scores]] = []

    def add(
        self,
        index: np.ndarray,
        label: np.ndarray,
        views: Mapping[str, label_sets.Scores],
    ) -> None:
        """Adds a batch without its padding.

        Args:
          index: which images these are, (B,).
          label: (B,).
          views: scores by view, (B,) each.
        """
        self._index.append(index)
        self._label.append(label)
        self._views.append(views)

    def finish(self, *, num_classes: int, note: str = "") -> Record:
        """Puts the images in order.

        Args:
          num_classes: the model could choose from.
          note: see `Record`.

        Raises:
          RuntimeError: unless every image came exactly once.
        """
        index = np.concatenate(self._index or [np.zeros(0, int)])
        if not np.array_equal(np.sort(index), np.arange(self._num_examples)):
            raise RuntimeError(
                f"evaluation counted {len(index)} images, {len(np.unique(index))} of"
                f" them different, where there are {self._num_examples}; the batches or"
                " their masks are wrong."
            )
        order = np.argsort(index)
        views = {
            name: label_sets.Scores(
                *(
                    np.concatenate(
                        [getattr(views[name], field) for views in self._views]
                    )[order]
                    for field in label_sets.Scores._fields
                )
            )
            for name in self._views[0]
        }
        return Record(np.concatenate(self._label)[order], views, num_classes, note)


def write_record(path: pathlib.Path, record: Record, *, fingerprint: str) -> None:
    """Writes a record, whole or not at all.

    Args:
      path: ends in ".npz"; folders are made.
      record: of one part of a benchmark.
      fingerprint: of all that decides the record; `read_record` compares it.
    """
    arrays = {"label": record.label, "fingerprint": np.array(fingerprint)}
    arrays["views"] = np.array(list(record.views))
    arrays["num_classes"] = np.array(record.num_classes)
    arrays["note"] = np.array(record.note)
    for number, scores in enumerate(record.views.values()):
        for field, values in scores._asdict().items():
            arrays[f"{number}_{field}"] = values
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    temporary.replace(path)


def read_record(path: pathlib.Path, *, fingerprint: str) -> Record | None:
    """Reads a record back.

    Args:
      path: from `write_record`.
      fingerprint: what it must have been written with.

    Returns:
      The record; None when there is none, it is damaged or it is of something else.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if str(arrays["fingerprint"]) != fingerprint:
                return None
            views = {
                str(name): label_sets.Scores(
                    *(arrays[f"{k}_{field}"] for field in label_sets.Scores._fields)
                )
                for k, name in enumerate(arrays["views"])
            }
            num_classes, note = int(arrays["num_classes"]), str(arrays["note"])
            return Record(arrays["label"], views, num_classes, note)
    except Exception:  # A damaged archive raises what its parser meets.
        return None
