"""The image operations of AutoAugment and RandAugment, on Pillow images.

Each is a function of an image (mode "RGB" or "L") and at most one number, without
randomness and of the same size and mode as its input: AutoAugment (arXiv:1805.09501),
Table 6, with the conventions of timm, whose policy strings the papers' recipes cite.
The tables `ORIGINAL` and `INCREASING` say what the number is at a given magnitude.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

from PIL import Image, ImageEnhance, ImageOps

# Magnitudes are quoted on a scale of 10 (RandAugment, arXiv:1909.13719).
FULL_MAGNITUDE = 10.0


class Warp(NamedTuple):
    """How geometric operations resample.

    Attributes:
      fill: RGB colour, 0 to 255, of pixels from outside the image.
      resample: Pillow's interpolation filter.
    """

    fill: tuple[int, int, int]
    resample: Image.Resampling

    def options(self, image: Image.Image) -> dict[str, object]:
        """Returns the keywords of `Image.transform` and `Image.rotate`."""
        return {"fillcolor": fill_of(image, self.fill), "resample": self.resample}


def fill_of(image: Image.Image, fill: tuple[int, int, int]) -> int | tuple[int, ...]:
    """Returns the fill colour in the image's mode: its luma for "L", else RGB."""
    if image.mode != "L":
        return fill
    red, green, blue = fill
    return round(0.299 * red + 0.587 * green + 0.114 * blue)  # ITU-R 601, as Pillow


def _affine(image: Image.Image, matrix: tuple[float, ...], warp: Warp) -> Image.Image:
    """Output pixel (x, y) comes from (a x + b y + c, d x + e y + f) of the input."""
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, **warp.options(image)
    )


def shear_x(image: Image.Image, factor: float, *, warp: Warp) -> Image.Image:
    """Shifts each row to the left by `factor` times its distance from the top."""
    return _affine(image, (1, factor, 0, 0, 1, 0), warp)


def shear_y(image: Image.Image, factor: float, *, warp: Warp) -> Image.Image:
    """Shifts each column up by `factor` times its distance from the left."""
    return _affine(image, (1, 0, 0, factor, 1, 0), warp)


def translate_x(image: Image.Image, share: float, *, warp: Warp) -> Image.Image:
    """Shifts to the left by a share of the width."""
    return _affine(image, (1, 0, share * image.width, 0, 1, 0), warp)


def translate_y(image: Image.Image, share: float, *, warp: Warp) -> Image.Image:
    """Shifts up by a share of the height."""
    return _affine(image, (1, 0, 0, 0, 1, share * image.height), warp)


def rotate(image: Image.Image, degrees: float, *, warp: Warp) -> Image.Image:
    """Rotates counter-clockwise about the centre."""
    return image.rotate(degrees, **warp.options(image))


def auto_contrast(image: Image.Image) -> Image.Image:
    """Stretches each channel to the full range."""
    return ImageOps.autocontrast(image)


def equalize(image: Image.Image) -> Image.Image:
    """Flattens each channel's histogram."""
    return ImageOps.equalize(image)


def invert(image: Image.Image) -> Image.Image:
    """Turns v into 255 - v."""
    return ImageOps.invert(image)


def posterize(image: Image.Image, bits: float) -> Image.Image:
    """Keeps the `bits` highest bits of each value; 0 gives a black image."""
    mask = 0xFF & ~(0xFF >> int(bits))
    return _lookup(image, lambda value: value & mask)


def solarize(image: Image.Image, threshold: float) -> Image.Image:
    """Inverts values from the threshold on."""
    return _lookup(image, lambda v: v if v < threshold else 255 - v)


def solarize_add(image: Image.Image, addend: float) -> Image.Image:
    """Brightens values below 128, saturating at 255."""
    return _lookup(image, lambda v: min(255, v + int(addend)) if v < 128 else v)


def color(image: Image.Image, factor: float) -> Image.Image:
    """Blends with the greyscale image: 0 is grey, 1 the image, beyond is vivid."""
    return ImageEnhance.Color(image).enhance(factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    """Blends with the mean grey: 0 is flat, 1 the image."""
    return ImageEnhance.Contrast(image).enhance(factor)


def brightness(image: Image.Image, factor: float) -> Image.Image:
    """Blends with black: 0 is black, 1 the image."""
    return ImageEnhance.Brightness(image).enhance(factor)


def sharpness(image: Image.Image, factor: float) -> Image.Image:
    """Blends with a smoothed image: 0 is smooth, 1 the image."""
    return ImageEnhance.Sharpness(image).enhance(factor)


def _lookup(image: Image.Image, table: Callable[[int], int]) -> Image.Image:
    return image.point([table(v) for v in range(256)] * len(image.getbands()))


class Operation(NamedTuple):
    """An operation and the meaning of its magnitude.

    Attributes:
      apply: (image, number) -> image, or (image) -> image without `argument`.
      argument: (severity, sign) -> the number, with severity = magnitude / 10 and
        sign +1 or -1; None if the operation has no magnitude.
      warps: whether `apply` also takes the keyword `warp`.
    """

    apply: Callable[..., Image.Image]
    argument: Callable[[float, float], float] | None = None
    warps: bool = False


def _signed(largest: float, severity: float, sign: float) -> float:
    return sign * largest * severity


def _enhance(severity: float, sign: float) -> float:
    """From 0.1 at severity 0 to 1.9 at 1: weakest in the middle."""
    return 0.1 + 1.8 * severity


def _enhance_increasing(severity: float, sign: float) -> float:
    """1 is no change; severity 1 is 0.1 or 1.9."""
    return max(0.1, 1.0 + sign * 0.9 * severity)


def _bits(severity: float, sign: float) -> float:
    """From 0 kept bits (black) at severity 0 to 4 at 1."""
    return min(int(4 * severity), 8)


def _bits_increasing(severity: float, sign: float) -> float:
    return max(4 - int(4 * severity), 0)


def _threshold(severity: float, sign: float) -> float:
    """From 0 (all inverted) at severity 0 to 256 (none) at 1."""
    return int(256 * severity)


def _threshold_increasing(severity: float, sign: float) -> float:
    return 256 - int(256 * severity)


def _addend(severity: float, sign: float) -> float:
    return int(110 * severity)


_COMMON: dict[str, Operation] = {
    "AutoContrast": Operation(auto_contrast),
    "Equalize": Operation(equalize),
    "Invert": Operation(invert),
    "Rotate": Operation(rotate, functools.partial(_signed, 30.0), warps=True),
    "SolarizeAdd": Operation(solarize_add, _addend),
    "ShearX": Operation(shear_x, functools.partial(_signed, 0.3), warps=True),
    "ShearY": Operation(shear_y, functools.partial(_signed, 0.3), warps=True),
    "TranslateX": Operation(translate_x, functools.partial(_signed, 0.45), warps=True),
    "TranslateY": Operation(translate_y, functools.partial(_signed, 0.45), warps=True),
}

# AutoAugment's own scales: several operations are weakest at a middle magnitude.
ORIGINAL: dict[str, Operation] = {
    **_COMMON,
    "Posterize": Operation(posterize, _bits),
    "Solarize": Operation(solarize, _threshold),
    "Color": Operation(color, _enhance),
    "Contrast": Operation(contrast, _enhance),
    "Brightness": Operation(brightness, _enhance),
    "Sharpness": Operation(sharpness, _enhance),
}

# timm's "inc1": every operation with a magnitude grows stronger with it.
INCREASING: dict[str, Operation] = {
    **_COMMON,
    "Posterize": Operation(posterize, _bits_increasing),
    "Solarize": Operation(solarize, _threshold_increasing),
    "Color": Operation(color, _enhance_increasing),
    "Contrast": Operation(contrast, _enhance_increasing),
    "Brightness": Operation(brightness, _enhance_increasing),
    "Sharpness": Operation(sharpness, _enhance_increasing),
}


def apply_operation(
    image: Image.Image,
    operation: Operation,
    *,
    magnitude: float,
    sign: float,
    warp: Warp,
) -> Image.Image:
    """Applies one operation at a magnitude.

    Args:
      image: of mode "RGB" or "L".
      operation: a row of `ORIGINAL` or `INCREASING`.
      magnitude: on the scale of 10.
      sign: +1 or -1, the direction of two-sided operations.
      warp: fill and filter of geometric operations.

    Returns:
      The image, same size and mode.
    """
    options = {"warp": warp} if operation.warps else {}
    if operation.argument is None:
        return operation.apply(image, **options)
    number = operation.argument(magnitude / FULL_MAGNITUDE, sign)
    return operation.apply(image, number, **options)
