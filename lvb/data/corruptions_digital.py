"""Digital corruptions of ImageNet-C (Hendrycks and Dietterich, ICLR 2019, Section 4).

Every function takes an image as float64 (H, W, 3) in [0, 1] and a generator, and
returns float64 (H, W, 3). Lengths are in pixels of the benchmark's 224 px images.
"""

import functools
import io

import numpy as np
from PIL import Image
from scipy import ndimage


def contrast(
    image: np.ndarray, rng: np.random.Generator, *, factor: float
) -> np.ndarray:
    """Moves every pixel towards the mean colour: mean + factor (x - mean).

    Args:
      image: (H, W, 3) in [0, 1].
      rng: unused.
      factor: remaining share of the contrast.
    """
    mean = image.mean(axis=(0, 1))
    return mean + factor * (image - mean)


def elastic_transform(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    alpha: float,
    sigma: float,
    affine: float,
) -> np.ndarray:
    """Stretches the image: a random affine map, then a smooth displacement.

    The affine map moves three points of the central square by up to `affine` pixels;
    the displacement is uniform noise in [-1, 1) smoothed by a Gaussian, times alpha.

    Args:
      image: (H, W, 3) in [0, 1].
      rng: draws six affine offsets, then the horizontal and the vertical noise.
      alpha: scale of the displacement in pixels.
      sigma: of the Gaussian, cut at 3 sigma, in pixels.
      affine: largest offset of a point in pixels.
    """
    height, width = image.shape[:2]
    centre, reach = np.array([width, height]) // 2, min(height, width) // 3
    corners = np.array([[1, 1], [1, -1], [-1, -1]]) * reach + centre  # As (x, y).
    moved = corners + rng.uniform(-affine, affine, size=corners.shape)
    # The map takes corners to moved; sampling needs its inverse.
    ones = np.ones((3, 1))
    inverse = np.linalg.solve(np.hstack([moved, ones]), corners)  # (3, 2)

    rows, columns = np.indices((height, width), dtype=np.float64)
    target = np.stack([columns, rows, np.ones_like(rows)], axis=-1)  # (H, W, 3)
    x, y = np.moveaxis(target @ inverse, -1, 0)
    warped = _sample(image, y, x, mode="mirror")

    smooth = functools.partial(_smooth_noise, (height, width), rng, sigma=sigma)
    dx, dy = smooth() * alpha, smooth() * alpha
    return _sample(warped, rows + dy, columns + dx, mode="reflect")


def _smooth_noise(
    shape: tuple[int, int], rng: np.random.Generator, *, sigma: float
) -> np.ndarray:
    """Uniform noise in [-1, 1) through a Gaussian cut at 3 sigma: (H, W)."""
    noise = rng.uniform(-1, 1, size=shape)
    rows, columns = (_gaussian_matrix(size, sigma) for size in shape)
    return rows @ noise @ columns.T


@functools.lru_cache(maxsize=16)
def _gaussian_matrix(size: int, sigma: float) -> np.ndarray:
    """The Gaussian filter along one axis as (size, size) weights.

    Sigma reaches 171 px, so one product is far cheaper than a thousand taps.
    """
    unit = np.eye(size)
    return ndimage.gaussian_filter1d(unit, sigma, axis=0, mode="reflect", truncate=3)


def _sample(
    image: np.ndarray, rows: np.ndarray, columns: np.ndarray, *, mode: str
) -> np.ndarray:
    """Bilinear samples at real coordinates: (H, W, C).

    Outside, the image is repeated mirrored: about the centre of its edge pixels
    (mode "mirror") or about their outer sides (mode "reflect").
    """
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    height, width, channels = image.shape
    tops = [_fold(top + i, height, mode) * width for i in (0, 1)]
    lefts = [_fold(left + i, width, mode) for i in (0, 1)]
    pixels = image.reshape(-1, channels)  # (H * W, C)
    upper = (
        pixels[tops[0] + lefts[0]] * (1 - right) + pixels[tops[0] + lefts[1]] * right
    )
    lower = (
        pixels[tops[1] + lefts[0]] * (1 - right) + pixels[tops[1] + lefts[1]] * right
    )
    return upper * (1 - down) + lower * down


def _fold(index: np.ndarray, size: int, mode: str) -> np.ndarray:
    """Maps any integer index into [0, size) by mirroring."""
    last = 2 * size - 2 if mode == "mirror" else 2 * size - 1
    period = last if mode == "mirror" else 2 * size
    index = index % period
    return np.minimum(index, last - index)


def pixelate(
    image: np.ndarray, rng: np.random.Generator, *, factor: float
) -> np.ndarray:
    """Shrinks by area averaging, then repeats pixels up to the old size.

    Args:
      image: (H, W, 3) in [0, 1].
      rng: unused.
      factor: size of the small image relative to the large one.
    """
    height, width = image.shape[:2]
    small = (max(1, int(width * factor)), max(1, int(height * factor)))
    picture = _to_picture(image).resize(small, Image.Resampling.BOX)
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX)) / 255


def jpeg_compression(
    image: np.ndarray, rng: np.random.Generator, *, quality: int
) -> np.ndarray:
    """Encodes as JPEG at a low quality and decodes.

    Args:
      image: (H, W, 3) in [0, 1].
      rng: unused.
      quality: 1 to 95, on libjpeg's scale.
    """
    file = io.BytesIO()
    _to_picture(image).save(file, format="JPEG", quality=quality)
    return np.asarray(Image.open(file)) / 255


def saturate(
    image: np.ndarray, rng: np.random.Generator, *, factor: float, offset: float
) -> np.ndarray:
    """Sets the saturation S of HSV to factor S + offset. An extra corruption.

    Every channel is V - V S k with k in [0, 1] given by the hue. A grey pixel has no
    hue; it counts as red, so that an offset tints it.

    Args:
      image: (H, W, 3) in [0, 1].
      rng: unused.
      factor: multiplies S.
      offset: added to S; the result is clipped to [0, 1].
    """
    value = image.max(axis=-1, keepdims=True)
    spread = value - image.min(axis=-1, keepdims=True)  # V S
    red = np.broadcast_to([0.0, 1.0, 1.0], image.shape)
    k = np.divide(value - image, spread, out=red.copy(), where=spread > 0)
    nothing = np.zeros_like(value)
    saturation = np.divide(spread, value, out=nothing, where=value > 0)
    return value - value * np.clip(factor * saturation + offset, 0, 1) * k


def _to_picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(image * 255).astype(np.uint8))
