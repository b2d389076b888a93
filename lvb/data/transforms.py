"""Host transforms: one picture and a random generator in, uint8 pixels out.

Every transform is a picklable callable `(image, rng) -> (H, W, C) uint8`, and draws
from `rng` only, so that the pixels are a function of the picture and of the
generator's seed. Normalisation happens on the device.

Resampling is Pillow's, which antialiases when it shrinks: the filter of the
published recipes.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from PIL import Image

Transform = Callable[[Image.Image, np.random.Generator], np.ndarray]
PictureOp = Callable[[Image.Image, np.random.Generator], Image.Image]

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# Before its resize, evaluation cuts a longer picture to this aspect ratio: 1 x 100,000
# pixels would grow to gigabytes, of which the central crop sees next to nothing. Ours.
_MAX_ASPECT = 8
_CROP_ATTEMPTS = 10  # Of random_crop_box, as in the recipes' RandomResizedCrop.


@dataclasses.dataclass(frozen=True)
class _SizedTransform:
    """What every transform has.

    Attributes:
      size: side of the square output, pixels.
      channels: 3 (RGB) or 1 (grayscale).
      interpolation: a key of `FILTERS`.
    """

    size: int
    channels: int = 3
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.size < 1:
            raise ValueError(f"{name}: size={self.size} is not positive; give pixels.")
        if self.channels not in (1, 3):
            raise ValueError(
                f"{name}: channels={self.channels} does not fit; use 1 or 3."
            )
        if self.interpolation not in FILTERS:
            raise ValueError(
                f"{name}: interpolation={self.interpolation!r} is unknown; "
                f"use one of {sorted(FILTERS)}."
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the output, (H, W, C)."""
        return (self.size, self.size, self.channels)

    def _convert(self, image: Image.Image) -> Image.Image:
        mode = "L" if self.channels == 1 else "RGB"
        return image if image.mode == mode else image.convert(mode)

    def _resize(self, image: Image.Image) -> Image.Image:
        return image.resize((self.size, self.size), FILTERS[self.interpolation])

    def _pixels(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class TrainTransform(_SizedTransform):
    """Random resized crop, flip, then the given picture operations.

    Attributes:
      area: least and greatest share of the picture's area in the crop.
      ratio: least and greatest width / height of the crop.
      flip: probability of a horizontal flip.
      ops: further operations in order, such as RandAugment; each keeps the size.
    """

    area: tuple[float, float] = (0.08, 1.0)  # LSNet, ConvNeur, FMViT: as in DeiT.
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    ops: tuple[PictureOp, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, example in (("area", "(0.08, 1)"), ("ratio", "(0.75, 1.33)")):
            span = getattr(self, name)
            if len(span) != 2 or not 0 < span[0] <= span[1] < math.inf:
                raise ValueError(
                    f"TrainTransform: {name}={tuple(span)} is no range; give the least "
                    f"and the greatest value, for example {example}."
                )

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        image = self._convert(image)
        box = random_crop_box(image.size, rng, area=self.area, ratio=self.ratio)
        # Cropped first: given a box, resize would let its filter look outside it.
        image = self._resize(image.crop(box))
        return self._pixels(_flip_and_apply(image, rng, self.flip, self.ops))


@dataclasses.dataclass(frozen=True)
class ShiftTransform(_SizedTransform):
    """For small pictures: resize, shift by a few pixels, flip, picture operations.

    The usual augmentation of CIFAR (`shift=4`) and, without a flip, of digits.

    Attributes:
      shift: greatest shift in pixels along each axis; zeros come in at the border.
      flip: probability of a horizontal flip.
      ops: further operations in order; each keeps the size.
    """

    shift: int = 4
    flip: float = 0.5
    ops: tuple[PictureOp, ...] = ()

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        image = self._convert(image)
        if image.size != (self.size, self.size):
            image = self._resize(image)
        left, top = rng.integers(-self.shift, self.shift + 1, size=2).tolist()
        # Pillow fills what a crop takes from outside the picture with zeros.
        image = image.crop((left, top, left + self.size, top + self.size))
        return self._pixels(_flip_and_apply(image, rng, self.flip, self.ops))


@dataclasses.dataclass(frozen=True)
class EvalTransform(_SizedTransform):
    """Resize of the short side to `size / crop_ratio`, then the central crop.

    Attributes:
      crop_ratio: share of the short side in the crop; 0.875 is 256 -> 224.
      ops: operations on the whole picture before the resize, such as a corruption.
    """

    crop_ratio: float = 0.875
    ops: tuple[PictureOp, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.crop_ratio <= 1:
            raise ValueError(
                f"EvalTransform: crop_ratio={self.crop_ratio} is not in (0, 1]; "
                "0.875 resizes the short side to 256 for 224."
            )

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        image = self._convert(image)
        for op in self.ops:
            image = op(image, rng)
        image = image.crop(_central_box(image.size, _longest(image.size)))
        short_side = math.floor(self.size / self.crop_ratio)
        shortest = min(image.size)
        width, height = (side * short_side // shortest for side in image.size)
        image = image.resize((width, height), FILTERS[self.interpolation])
        return self._pixels(image.crop(_central_box(image.size, (self.size,) * 2)))


def random_crop_box(
    size: tuple[int, int],
    rng: np.random.Generator,
    *,
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """Draws the box of a random resized crop.

    Area is uniform and the logarithm of the aspect ratio is uniform. The first of ten
    draws that fits is placed uniformly; if none fits, the largest central box whose
    ratio lies in the range is taken.

    Args:
      size: width and height of the picture, pixels.
      rng: source of randomness; takes the same number of draws for every picture.
      area: least and greatest share of the picture's area.
      ratio: least and greatest width / height.

    Returns:
      Left, top, right, bottom in pixels.
    """
    width, height = size
    areas = rng.uniform(*area, size=_CROP_ATTEMPTS) * (width * height)
    ratios = np.exp(rng.uniform(*np.log(ratio), size=_CROP_ATTEMPTS))
    widths = np.rint(np.sqrt(areas * ratios))
    heights = np.rint(np.sqrt(areas / ratios))
    x, y = rng.random(2)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    if fits.any():
        first = int(fits.argmax())
        crop_width, crop_height = int(widths[first]), int(heights[first])
        left = int(x * (width - crop_width + 1))
        top = int(y * (height - crop_height + 1))
    else:
        crop_width = min(width, max(1, round(height * ratio[1])))
        crop_height = min(height, max(1, round(width / ratio[0])))
        left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def _central_box(
    size: tuple[int, int], size_out: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the central box of a given width and height."""
    left, top = (
        round((side - out) / 2) for side, out in zip(size, size_out, strict=True)
    )
    return left, top, left + size_out[0], top + size_out[1]


def _longest(size: tuple[int, int]) -> tuple[int, int]:
    """The size without what is longer than `_MAX_ASPECT` times the short side."""
    limit = _MAX_ASPECT * min(size)
    return min(size[0], limit), min(size[1], limit)


def _flip_and_apply(
    image: Image.Image,
    rng: np.random.Generator,
    flip: float,
    ops: tuple[PictureOp, ...],
) -> Image.Image:
    if rng.random() < flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for op in ops:
        image = op(image, rng)
    return image
