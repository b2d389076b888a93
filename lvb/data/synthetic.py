"""Generated pictures, for smoke runs, benchmarks and tests."""

import numpy as np

from lvb.data import sources

CONTENTS = ("patterns", "noise")

_GRID = 8  # Cells along one side of a class pattern.
_PATTERN_STREAM, _NOISE_STREAM = 0, 1
_SPLIT_STREAMS = {"train": 0, "val": 1}


def open_synthetic(
    split: str,
    *,
    seed: int = 0,
    length: int = 512,
    size: int = 32,
    num_classes: int = 10,
    channels: int = 3,
    content: str = "patterns",
) -> "SyntheticSource":
    """Returns a source whose every picture is a function of (seed, split, index).

    Args:
      split: "train" or "val": the same classes, other pictures.
      seed: of everything that is drawn.
      length: number of examples.
      size: side of the pictures, pixels.
      num_classes: number of classes; labels go round through them.
      channels: 1 or 3.
      content: "patterns", a random mosaic for each class under noise, which a network
        can learn; or "noise" alone, which it can only memorise.

    Raises:
      ValueError: a number or the content does not fit.
    """
    wrong = [
        f"{name}={value}"
        for name, value in (
            ("length", length),
            ("size", size),
            ("num_classes", num_classes),
        )
        if value < 1
    ]
    if wrong:
        raise ValueError(f"synthetic: {', '.join(wrong)} must be at least 1.")
    if channels not in (1, 3):
        raise ValueError(f"synthetic: channels={channels} does not fit; use 1 or 3.")
    if content not in CONTENTS:
        raise ValueError(
            f"synthetic: content={content!r} is unknown; use one of {list(CONTENTS)}."
        )
    rng = np.random.default_rng((seed, _PATTERN_STREAM))
    mosaics = rng.integers(0, 256, (num_classes, _GRID, _GRID, channels), np.uint8)
    return SyntheticSource(
        mosaics,
        split=split,
        seed=seed,
        length=length,
        size=size,
        patterned=content == "patterns",
    )


class SyntheticSource:
    """Pictures made when they are asked for; `open_synthetic` tells the arguments.

    Attributes:
      class_names: "class0", "class1" and so on.
    """

    def __init__(
        self,
        mosaics: np.ndarray,
        *,
        split: str,
        seed: int,
        length: int,
        size: int,
        patterned: bool,
    ) -> None:
        self.class_names = tuple(f"class{label}" for label in range(len(mosaics)))
        self._mosaics = mosaics  # (num_classes, 8, 8, C) uint8
        self._split = split
        self._seed = seed
        self._length = length
        self._size = size
        self._patterned = patterned

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> sources.Example:
        stream = (self._seed, _NOISE_STREAM, _SPLIT_STREAMS[self._split], index)
        rng = np.random.default_rng(stream)
        shape = (self._size, self._size, self._mosaics.shape[-1])
        pixels = rng.integers(0, 256, shape, np.uint8)
        label = index % len(self._mosaics)
        if self._patterned:
            cells = np.arange(self._size) * _GRID // self._size
            pattern = self._mosaics[label][cells][:, cells]  # (size, size, C)
            # Three parts of the class to one of noise, which cannot exceed 255.
            pixels = pattern // 4 * 3 + pixels // 4
        return sources.Example(pixels, label)

    def describe(self, index: int) -> str:
        """Names example `index` in messages."""
        return f"synthetic/{self._split}[{index}]"
