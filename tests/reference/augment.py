"""Image operations in NumPy, one definition each, on (H, W, 3) or (H, W) uint8 arrays.

Written from AutoAugment's Table 6 and from the definitions of the operations, without
Pillow. Results are float64 before the last rounding, where an operation has one.
"""

import math

import numpy as np


def cubic(distance: float) -> float:
    """Keys' cubic convolution kernel with a = -1."""
    d = abs(distance)
    if d <= 1:
        return d**3 - 2 * d**2 + 1
    return -(d**3) + 5 * d**2 - 8 * d + 4 if d < 2 else 0.0


def triangle(distance: float) -> float:
    """The bilinear kernel."""
    return max(0.0, 1.0 - abs(distance))


KERNELS = {"bilinear": (triangle, 1), "bicubic": (cubic, 2)}


def affine(
    image: np.ndarray, matrix: tuple[float, ...], *, fill, interpolation: str
) -> np.ndarray:
    """Pulls output pixel (x, y) from matrix (x, y); borders repeat; outside is fill."""
    kernel, reach = KERNELS[interpolation]
    height, width = image.shape[:2]
    a, b, c, d, e, f = matrix
    out = np.empty(image.shape, np.float64)
    for y, x in np.ndindex(height, width):
        u = a * (x + 0.5) + b * (y + 0.5) + c
        v = d * (x + 0.5) + e * (y + 0.5) + f
        if not (0 <= u < width and 0 <= v < height):
            out[y, x] = fill
            continue
        u, v = u - 0.5, v - 0.5
        total = np.zeros(image.shape[2:])
        for row in range(math.floor(v) - reach + 1, math.floor(v) + reach + 1):
            for column in range(math.floor(u) - reach + 1, math.floor(u) + reach + 1):
                weight = kernel(v - row) * kernel(u - column)
                pixel = image[
                    min(max(row, 0), height - 1), min(max(column, 0), width - 1)
                ]
                total = total + weight * pixel
        out[y, x] = total
    return np.clip(out, 0, 255)


def rotation(degrees: float, *, height: int, width: int) -> tuple[float, ...]:
    """The matrix that turns the image counter-clockwise about its centre.

    Rows point down, so that an output pixel looks clockwise on the screen for its
    source: (x, y) -> R (x - cx, y - cy) + (cx, cy).
    """
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    cx, cy = width / 2, height / 2
    return cos, -sin, cx - cos * cx + sin * cy, sin, cos, cy - sin * cx - cos * cy


def luma(image: np.ndarray) -> np.ndarray:
    """ITU-R 601 luma, 0.299 R + 0.587 G + 0.114 B in 16-bit weights, rounded."""
    if image.ndim == 2:
        return image.astype(np.float64)
    return np.floor(image @ np.array([19595, 38470, 7471]) / 65536 + 0.5)


def _blend(base: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(base + factor * (image.astype(np.float64) - base), 0, 255)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    return _blend(np.zeros(image.shape), image, factor)


def color(image: np.ndarray, factor: float) -> np.ndarray:
    grey = luma(image)
    return _blend(grey if image.ndim == 2 else grey[..., None], image, factor)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    mean = math.floor(luma(image).mean() + 0.5)
    return _blend(np.full(image.shape, mean), image, factor)


def smooth(image: np.ndarray) -> np.ndarray:
    """A 3x3 mean with a centre of weight 5; the outermost pixels stay."""
    height, width = image.shape[:2]
    out = image.astype(np.float64)
    for y, x in np.ndindex(height - 2, width - 2):
        window = image[y : y + 3, x : x + 3].astype(np.float64)
        total = window.sum(axis=(0, 1)) + 4 * window[1, 1]
        out[y + 1, x + 1] = np.floor(total / 13 + 0.5)
    return out


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    return _blend(smooth(image), image, factor)


def _per_channel(image: np.ndarray, table) -> np.ndarray:
    if image.ndim == 2:
        return table(image)
    return np.stack([table(image[..., c]) for c in range(3)], axis=-1)


def auto_contrast(image: np.ndarray) -> np.ndarray:
    def stretch(channel):
        low, high = int(channel.min()), int(channel.max())
        return (channel - low) * 255.0 / (high - low) if high > low else channel

    return _per_channel(image, stretch)


def equalize(image: np.ndarray) -> np.ndarray:
    """A value goes to its rank: pixels below it, in steps of (n - brightest) / 255."""

    def flatten(channel):
        histogram = np.bincount(channel.ravel(), minlength=256)
        step = (channel.size - histogram[channel.max()]) // 255
        if step == 0:
            return channel
        below = np.cumsum(histogram) - histogram
        return np.minimum((below + step // 2) // step, 255)[channel]

    return _per_channel(image, flatten)


def invert(image: np.ndarray) -> np.ndarray:
    return 255 - image


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    step = 2 ** (8 - bits)
    return image // step * step


def solarize(image: np.ndarray, threshold: int) -> np.ndarray:
    return np.where(image < threshold, image, 255 - image)


def solarize_add(image: np.ndarray, addend: int) -> np.ndarray:
    brighter = np.minimum(image.astype(int) + addend, 255)
    return np.where(image < 128, brighter, image)


# RandAugment's magnitudes, "increasing" as in timm's policy strings: at magnitude m,
# severity s = m / 10, direction +1 or -1.
INCREASING_ARGUMENTS = {
    "AutoContrast": None,
    "Equalize": None,
    "Invert": None,
    "Rotate": lambda s, sign: sign * 30 * s,
    "Posterize": lambda s, sign: 4 - math.floor(4 * s),
    "Solarize": lambda s, sign: 256 - math.floor(256 * s),
    "SolarizeAdd": lambda s, sign: math.floor(110 * s),
    "Color": lambda s, sign: 1 + sign * 0.9 * s,
    "Contrast": lambda s, sign: 1 + sign * 0.9 * s,
    "Brightness": lambda s, sign: 1 + sign * 0.9 * s,
    "Sharpness": lambda s, sign: 1 + sign * 0.9 * s,
    "ShearX": lambda s, sign: sign * 0.3 * s,
    "ShearY": lambda s, sign: sign * 0.3 * s,
    "TranslateX": lambda s, sign: sign * 0.45 * s,
    "TranslateY": lambda s, sign: sign * 0.45 * s,
}

POINTWISE = {
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
    "Invert": invert,
    "Posterize": posterize,
    "Solarize": solarize,
    "SolarizeAdd": solarize_add,
    "Color": color,
    "Contrast": contrast,
    "Brightness": brightness,
    "Sharpness": sharpness,
}


def geometric(name: str, argument: float, *, height: int, width: int):
    """The matrix of a geometric operation."""
    return {
        "Rotate": rotation(argument, height=height, width=width),
        "ShearX": (1, argument, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, argument, 1, 0),
        "TranslateX": (1, 0, argument * width, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, argument * height),
    }[name]


def operation(
    image: np.ndarray, name: str, *, argument, fill, interpolation: str
) -> np.ndarray:
    """Applies the operation called `name`."""
    if name in POINTWISE:
        arguments = () if argument is None else (argument,)
        return POINTWISE[name](image, *arguments)
    height, width = image.shape[:2]
    matrix = geometric(name, argument, height=height, width=width)
    return affine(image, matrix, fill=fill, interpolation=interpolation)
