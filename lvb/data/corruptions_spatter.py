"""Spatter, an extra corruption of ImageNet-C: water drops or mud on the lens.

Hendrycks and Dietterich, ICLR 2019, Appendix B. Drops follow the published recipe:
edges of a thresholded noise field (Canny), the distance to them, an emboss filter.
"""

import numpy as np
from scipy import ndimage

WATER = np.array([175.0, 238.0, 238.0]) / 255  # Pale turquoise.
MUD = np.array([63.0, 42.0, 20.0]) / 255  # Brown.
EMBOSS = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])


def spatter(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    loc: float,
    scale: float,
    sigma: float,
    threshold: float,
    strength: float,
    mud: bool,
) -> np.ndarray:
    """Splashes water (added light) or mud (covers the image) over the image.

    Args:
      image: (H, W, 3) in [0, 1].
      rng: draws one normal per pixel.
      loc: mean of the noise that drops are cut from.
      scale: its standard deviation.
      sigma: of the Gaussian that makes drops of the noise, in pixels.
      threshold: smoothed noise below it is dry.
      strength: water: brightest light added; mud: sigma of the soft edge, in pixels.
      mud: mud instead of water.
    """
    noise = rng.normal(loc=loc, scale=scale, size=image.shape[:2])  # (H, W)
    liquid = ndimage.gaussian_filter(noise, sigma, mode="nearest")
    liquid = np.where(liquid < threshold, 0.0, liquid)
    if mud:
        wet = (liquid > threshold).astype(np.float64)
        cover = ndimage.gaussian_filter(wet, strength, mode="nearest")
        cover = np.where(cover < 0.8, 0.0, cover)[..., None]
        return image * (1 - cover) + MUD * cover
    light = _drop_light(np.floor(np.clip(liquid, 0, 1) * 255))
    brightest = light.max()
    if brightest > 0:
        light = light / brightest * strength
    return image + light[..., None] * WATER


def _drop_light(liquid: np.ndarray) -> np.ndarray:
    """Light that drops refract, unscaled: liquid in levels 0..255 -> (H, W)."""
    edges = canny_edges(liquid, low=50, high=150)
    if not edges.any():
        return np.zeros_like(liquid)
    distance = np.minimum(ndimage.distance_transform_edt(~edges), 20)
    level = np.rint(ndimage.uniform_filter(distance, 3, mode="mirror"))
    level = _equalize(level.astype(np.uint8)).astype(np.float64)
    relief = ndimage.correlate(level, EMBOSS, mode="mirror")
    relief = ndimage.uniform_filter(np.clip(relief, 0, 255), 3, mode="mirror")
    return liquid * np.rint(relief)


def canny_edges(image: np.ndarray, *, low: float, high: float) -> np.ndarray:
    """Canny's edges: thin maxima of the Sobel gradient, by hysteresis.

    Args:
      image: (H, W) levels.
      low: a maximum above it is an edge when connected to one above `high`.
      high: threshold on |dx| + |dy|.

    Returns:
      bool (H, W).
    """
    dx = ndimage.sobel(image, axis=1, mode="nearest")
    dy = ndimage.sobel(image, axis=0, mode="nearest")
    magnitude = np.abs(dx) + np.abs(dy)
    padded = np.pad(magnitude, 1)
    height, width = image.shape

    def neighbour(down: int, right: int) -> np.ndarray:
        rows, columns = slice(1 + down, 1 + down + height), slice(1 + right, None)
        return padded[rows, columns][:, :width]

    # The gradient's direction, to the nearest 45 degrees, picks the two neighbours.
    horizontal = np.abs(dy) <= np.tan(np.pi / 8) * np.abs(dx)
    vertical = np.abs(dy) >= np.tan(3 * np.pi / 8) * np.abs(dx)
    falling = dx * dy >= 0
    before = np.select(
        [horizontal, vertical, falling],
        [neighbour(0, -1), neighbour(-1, 0), neighbour(-1, -1)],
        neighbour(-1, 1),
    )
    after = np.select(
        [horizontal, vertical, falling],
        [neighbour(0, 1), neighbour(1, 0), neighbour(1, 1)],
        neighbour(1, -1),
    )
    candidates = (magnitude > low) & (magnitude > before) & (magnitude >= after)
    regions, count = ndimage.label(candidates, structure=np.ones((3, 3)))
    strong = np.zeros(count + 1, bool)
    strong[regions[candidates & (magnitude > high)]] = True
    return strong[regions]


def _equalize(levels: np.ndarray) -> np.ndarray:
    """Histogram equalisation of uint8 levels: the first occupied level maps to 0."""
    histogram = np.bincount(levels.ravel(), minlength=256)
    cumulative = np.cumsum(histogram)
    first = histogram[np.flatnonzero(histogram)[0]]
    if first == levels.size:
        return levels
    table = np.rint((cumulative - first) / (levels.size - first) * 255)
    return np.clip(table, 0, 255).astype(np.uint8)[levels]
