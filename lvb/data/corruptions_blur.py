"""Blur corruptions of ImageNet-C (Hendrycks and Dietterich, ICLR 2019, Section 4).

Every function takes an image as float64 (H, W, 3) in [0, 1] and a generator, and
returns float64 (H, W, 3). Radii and standard deviations are in pixels of the 224 px
images the benchmark is made of; they do not scale with the image.

**Choices the paper leaves open**, settled as in the sets the authors published:

1. Glass blur copies the neighbour over the pixel instead of exchanging the two.
2. Motion blur smears to one side: a half Gaussian, starting at the pixel itself.
3. Borders: defocus blur mirrors about the edge pixel; the others repeat it.
"""

import math

import numpy as np
from scipy import ndimage, signal


def gaussian_blur(
    image: np.ndarray, rng: np.random.Generator, *, sigma: float
) -> np.ndarray:
    """Convolves with a Gaussian cut at 4 sigma. One of the four extra corruptions.

    Args:
      image: (H, W, 3) in [0, 1].
      rng: unused; every corruption has the same signature.
      sigma: standard deviation in pixels.
    """
    return ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest")


def glass_blur(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    sigma: float,
    max_delta: int,
    iterations: int,
) -> np.ndarray:
    """Looks through frosted glass: blur, move pixels about locally, blur again.

    Pixels are visited from the bottom right to the top left; each takes the colour
    that a random neighbour, offset by [-max_delta, max_delta) along both axes, has *at
    that moment* (open choice 1). So a pixel whose neighbour came earlier in the visit
    inherits what that neighbour inherited: following these links to their end moves all
    pixels at once, with no loop over pixels.

    Args:
      image: (H, W, 3) in [0, 1].
      rng: draws, for each iteration, the offsets (rows, columns, (dx, dy)) in the order
        of the visit.
      sigma: standard deviation of both blurs in pixels.
      max_delta: largest offset in pixels; also the width of the border left alone.
      iterations: how often all pixels move.

    Raises:
      ValueError: when the image is too small to hold a moving pixel.
    """
    height, width, channels = image.shape
    if min(height, width) <= 2 * max_delta:
        raise ValueError(
            f"glass_blur: a {height}x{width} image has no pixel further than"
            f" max_delta={max_delta} from its border; use a larger image."
        )
    blurred = gaussian_blur(image, rng, sigma=sigma)
    levels = np.floor(np.clip(blurred, 0, 1) * 255 + 1e-6)
    pixels = levels.reshape(-1, channels)  # (H * W, 3)
    for _ in range(iterations):
        pixels = pixels[_glass_source(height, width, max_delta=max_delta, rng=rng)]
    return gaussian_blur(pixels.reshape(image.shape) / 255, rng, sigma=sigma)


def _glass_source(
    height: int, width: int, *, max_delta: int, rng: np.random.Generator
) -> np.ndarray:
    """Which pixel each pixel of a (height, width) image shows after one visit."""
    rows = np.arange(height - max_delta, max_delta, -1)
    columns = np.arange(width - max_delta, max_delta, -1)
    offsets = rng.integers(-max_delta, max_delta, size=(len(rows), len(columns), 2))
    here = rows[:, None] * width + columns
    neighbour = (rows[:, None] + offsets[..., 1]) * width + columns + offsets[..., 0]
    visited_at = np.full(height * width, here.size)  # Pixels of the border: never.
    visited_at[here] = np.arange(here.size).reshape(here.shape)

    source = np.arange(height * width)
    source[here] = neighbour
    # A link to a pixel visited earlier goes on to that pixel's own source; a link to
    # one visited later, or never, ends there: it still shows its old colour.
    goes_on = visited_at[source] < visited_at
    link = np.where(goes_on, source, np.arange(height * width))
    while True:  # Pointer doubling: log2 of the longest chain.
        further = link[link]
        if np.array_equal(further, link):
            return source[link]
        link = further


def defocus_blur(
    image: np.ndarray, rng: np.random.Generator, *, radius: int, alias_blur: float
) -> np.ndarray:
    """Convolves with a disk, itself softened by a small Gaussian (out of focus).

    Args:
      image: (H, W, 3) in [0, 1].
      rng: unused.
      radius: of the disk, in pixels.
      alias_blur: standard deviation of the Gaussian that softens the disk's edge.
    """
    kernel = disk(radius, alias_blur)
    reach = kernel.shape[0] // 2
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    # The disk is symmetric, so convolution and correlation agree.
    return signal.oaconvolve(padded, kernel[..., None], mode="valid", axes=(0, 1))


def disk(radius: int, alias_blur: float) -> np.ndarray:
    """The kernel of `defocus_blur`: (17, 17), or (2 radius + 1,) * 2 above radius 8.

    The softening Gaussian has 3 taps, 5 above radius 8, and mirrors at the border. At
    radius 10 the disk reaches the border and the weights sum to 1.011, as they do in
    the published sets.
    """
    reach, taps = (8, 3) if radius <= 8 else (radius, 5)
    axis = np.arange(-reach, reach + 1)
    inside = (axis[:, None] ** 2 + axis**2 <= radius**2).astype(np.float64)
    tap = np.arange(taps) - taps // 2
    gaussian = np.exp(-(tap**2) / (2 * alias_blur**2))
    gaussian /= gaussian.sum()
    kernel = ndimage.convolve1d(inside / inside.sum(), gaussian, axis=0, mode="mirror")
    return ndimage.convolve1d(kernel, gaussian, axis=1, mode="mirror")


def motion_blur(
    image: np.ndarray, rng: np.random.Generator, *, radius: int, sigma: float
) -> np.ndarray:
    """Smears along a random direction within 45 degrees of horizontal.

    Args:
      image: (H, W, 3) in [0, 1].
      rng: draws the angle, uniform in [-45, 45) degrees.
      radius: the smear has 2 radius + 1 taps.
      sigma: standard deviation of the half Gaussian that weights the taps.
    """
    return smear(image, radius, sigma=sigma, angle=rng.uniform(-45, 45))


def smear(image: np.ndarray, radius: int, *, sigma: float, angle: float) -> np.ndarray:
    """Weighted mean of the pixels met walking from each pixel along `angle`.

        y[p] = sum_i k_i x[p + round(i (cos a, sin a))],  k_i ~ exp(-i^2 / (2 sigma^2))

    for i = 0 .. 2 radius (open choice 2); steps that leave the image stay at its edge.

    Args:
      image: (H, W) or (H, W, C).
      radius: half the number of steps.
      sigma: standard deviation in steps.
      angle: in degrees; 0 walks to the right, 90 downwards.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    # Halves round down, away from the direction of the walk.
    down = np.ceil(steps * math.sin(math.radians(angle)) - 0.5).astype(int)
    right = np.ceil(steps * math.cos(math.radians(angle)) - 0.5).astype(int)
    reach = 2 * radius + 1
    padding = ((reach, reach), (reach, reach)) + ((0, 0),) * (image.ndim - 2)
    padded = np.pad(image, padding, mode="edge")
    height, width = image.shape[:2]
    smeared = np.zeros(image.shape, np.float64)
    for weight, dy, dx in zip(weights, down + reach, right + reach, strict=True):
        smeared += weight * padded[dy : dy + height, dx : dx + width]
    return smeared


def zoom_blur(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    stop: float,
    step: float,
) -> np.ndarray:
    """Averages the image with zooms of itself, as when moving towards the scene.

    Args:
      image: (H, W, 3) in [0, 1].
      rng: unused.
      stop: zoom factors are arange(1, stop, step); rounding may include `stop`.
      step: distance between two factors.
    """
    factors = np.arange(1, stop, step)
    total = image + sum(clipped_zoom(image, factor) for factor in factors)
    return total / (len(factors) + 1)


def clipped_zoom(image: np.ndarray, factor: float) -> np.ndarray:
    """Enlarges the centre by `factor`, bilinearly, keeping the size of the image.

    The centre of ceil(n / factor) pixels becomes round(ceil(n / factor) * factor)
    pixels whose corners coincide with its corners; the middle n of these are kept.

    Args:
      image: (H, W) or (H, W, C).
      factor: at least 1.
    """
    for axis in (0, 1):
        left, fraction = _zoom_taps(image.shape[axis], factor)
        fraction = np.expand_dims(fraction, tuple(range(1, image.ndim - axis)))
        first = np.take(image, left, axis=axis)
        image = first + fraction * (np.take(image, left + 1, axis=axis) - first)
    return image


def _zoom_taps(size: int, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Where `clipped_zoom` reads along an axis: (index, fraction towards the next)."""
    cropped = max(2, math.ceil(size / factor))
    enlarged = round(cropped * factor)
    kept = np.arange(size) + (enlarged - size) // 2
    position = kept * (cropped - 1) / (enlarged - 1)
    left = np.minimum(position.astype(int), cropped - 2)
    return (size - cropped) // 2 + left, position - left
