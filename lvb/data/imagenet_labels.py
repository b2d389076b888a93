"""Which ImageNet class is meant: order of the classes, subsets, ReaL labels."""

import functools
import json
import os
import pathlib
import re
from collections.abc import Sequence

import numpy as np

NUM_CLASSES = 1000
VAL_IMAGES = 50_000

_HERE = pathlib.Path(__file__).parent
_VAL_FILE = re.compile(r"ILSVRC2012_val_(\d{8})\b")


@functools.cache
def synsets() -> tuple[str, ...]:
    """The 1,000 WordNet ids in class order, which is their sorted order."""
    return tuple((_HERE / "imagenet_synsets.txt").read_text().split())


@functools.cache
def subset(name: str) -> tuple[int, ...]:
    """The classes of a smaller benchmark, ascending.

    Args:
      name: "imagenet_a" or "imagenet_r", 200 classes each.
    """
    return tuple(json.loads((_HERE / "imagenet_subsets.json").read_text())[name])


def class_indices(names: Sequence[str]) -> np.ndarray:
    """The ImageNet class of each class name, -1 where there is none.

    Names are WordNet ids ("n01440764"), or, when all are numbers, class indices: the
    folders of ImageNet-V2 are called 0 to 999.

    Args:
      names: class names of a data set or of a model.

    Returns:
      (len(names),) int.
    """
    if all(name.isdecimal() for name in names):
        known = {str(index): index for index in range(NUM_CLASSES)}
    else:
        known = {synset: index for index, synset in enumerate(synsets())}
    return np.array([known.get(name, -1) for name in names], int)


def val_image_number(text: str) -> int | None:
    """1 to 50,000 for a text that names a file of the validation set, else None."""
    match = _VAL_FILE.search(text)
    return int(match[1]) if match else None


def load_real_labels(path: str | os.PathLike[str]) -> list[list[int]]:
    """ReaL's label sets (Beyer et al., 2020), entry k for validation image k + 1.

    Args:
      path: `real.json` of github.com/google-research/reassessed-imagenet.

    Raises:
      ValueError: when the file does not hold 50,000 lists of class indices.
    """
    try:
        labels = json.loads(pathlib.Path(path).read_text())
        fits = len(labels) == VAL_IMAGES and all(
            0 <= index < NUM_CLASSES for row in labels for index in row
        )
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(
            f"ReaL: {path} does not hold 50,000 lists of class indices; download"
            " real.json of github.com/google-research/reassessed-imagenet again."
        )
    return labels
