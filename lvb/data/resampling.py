"""Evaluation crops, resized as different libraries do it.

Published tables differ by up to a point from preprocessing alone. Pillow widens its
filter when it shrinks (antialiasing); OpenCV, and PyTorch on tensors by default, read
only the 2 x 2 or 4 x 4 pixels around each sample.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from lvb.data import transforms

# A longer picture is cut to this aspect ratio first, as in `transforms.EvalTransform`.
_MAX_ASPECT = 8


def _linear_weight(distance: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(distance), 0)


def _cubic_weight(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution with a = -0.75, as OpenCV and PyTorch choose it."""
    a, x = -0.75, np.abs(distance)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


# Filters that do not widen when they shrink: weight of a distance, number of taps.
_FEW_TAPS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
    "opencv_bilinear": (_linear_weight, 2),
    "bicubic_no_antialias": (_cubic_weight, 4),
}

METHODS = (*transforms.FILTERS, *_FEW_TAPS)


def resize(image: Image.Image, size: tuple[int, int], *, method: str) -> Image.Image:
    """Resizes an image.

    Args:
      image: mode "RGB" or "L".
      size: width and height of the result in pixels.
      method: one of `METHODS`; the first ones are Pillow's filters.
    """
    if method in transforms.FILTERS:
        return image.resize(size, transforms.FILTERS[method])
    weight, taps = _FEW_TAPS[method]
    pixels = np.asarray(image).astype(np.float64)
    for axis, length in ((0, size[1]), (1, size[0])):
        # Sample i lies in the middle of its share of the image; edges repeat outside.
        known = pixels.shape[axis]
        position = (np.arange(length) + 0.5) * known / length - 0.5
        first = np.floor(position).astype(int) - taps // 2 + 1
        aligned = (-1,) + (1,) * (pixels.ndim - axis - 1)
        pixels = sum(
            weight(position - index).reshape(aligned)
            * np.take(pixels, np.clip(index, 0, known - 1), axis=axis)
            for index in (first + tap for tap in range(taps))
        )
    levels = np.floor(np.clip(pixels, 0, 255) + 0.5)
    return Image.fromarray(levels.astype(np.uint8))


@dataclasses.dataclass(frozen=True)
class CropTransform:
    """One, five or ten crops of a picture whose short side is `size / crop_ratio`.

    One crop with a filter of Pillow's gives the pixels of `transforms.EvalTransform`.

    Attributes:
      size: side of a crop, pixels.
      channels: 3 (RGB) or 1 (grayscale).
      method: one of `METHODS`.
      crop_ratio: share of the short side in a crop, in (0, 1].
      crops: 1: the centre; 5: the corners too; 10: these and their mirror images
        (Krizhevsky et al., NeurIPS 2012, Section 4.1).
    """

    size: int
    channels: int = 3
    method: str = "bicubic"
    crop_ratio: float = 0.875
    crops: int = 1

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(
                f"crops: no resampling {self.method!r}; use {', '.join(METHODS)}."
            )
        if self.crops not in (1, 5, 10):
            raise ValueError(f"crops: {self.crops} crops are not offered; 1, 5 or 10.")
        if self.size < 1 or not 0 < self.crop_ratio <= 1:
            raise ValueError(
                f"crops: size={self.size} and crop_ratio={self.crop_ratio} do not fit;"
                " give a positive size and a ratio in (0, 1], such as 0.875."
            )

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """Returns uint8 (H, W, C), or (crops, H, W, C) when there are several."""
        if self.crops == 1 and self.method in transforms.FILTERS:
            return transforms.EvalTransform(
                self.size, self.channels, self.method, self.crop_ratio
            )(image, rng)
        mode = "L" if self.channels == 1 else "RGB"
        image = image if image.mode == mode else image.convert(mode)
        image = _cut_long(image)
        short_side = math.floor(self.size / self.crop_ratio)
        size = [side * short_side // min(image.size) for side in image.size]
        pixels = np.asarray(resize(image, (size[0], size[1]), method=self.method))
        views = [
            pixels[top : top + self.size, left : left + self.size]
            for left, top in self._corners(size)
        ]
        if self.crops == 10:
            views += [view[:, ::-1] for view in views]
        crops = np.stack(views).reshape(-1, self.size, self.size, self.channels)
        return crops[0] if self.crops == 1 else crops

    def _corners(self, size: list[int]) -> list[tuple[int, int]]:
        """Left and top of the centre, then of the corners row by row."""
        right, bottom = (side - self.size for side in size)
        centre = (round(right / 2), round(bottom / 2))
        if self.crops == 1:
            return [centre]
        return [centre, (0, 0), (right, 0), (0, bottom), (right, bottom)]

    def describe(self) -> str:
        """Words for a table: "resize 256 bicubic, centre crop 224"."""
        crop = {1: "centre crop", 5: "5 crops", 10: "10 crops"}[self.crops]
        if self.crop_ratio == 1:
            return f"short side to {self.size} ({self.method}), {crop} {self.size}"
        short_side = math.floor(self.size / self.crop_ratio)
        return f"resize {short_side} ({self.method}), {crop} {self.size}"


def _cut_long(image: Image.Image) -> Image.Image:
    """The central part of a picture longer than `_MAX_ASPECT` times its short side."""
    longest = _MAX_ASPECT * min(image.size)
    width, height = (min(side, longest) for side in image.size)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
