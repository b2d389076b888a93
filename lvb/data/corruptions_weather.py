"""Weather corruptions of ImageNet-C (Hendrycks and Dietterich, ICLR 2019, Section 4).

Every function takes an image as float64 (H, W, 3) in [0, 1] and a generator, and
returns float64 (H, W, 3). Lengths are in pixels of the benchmark's 224 px images.

Frost overlays photographs of frosted glass, which this package does not ship. Give
their directory to `load_frost`; without them `procedural_frost` paints ice from a
fractal, which is a different corruption and is named so wherever results are shown.
"""

import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from lvb.data import corruptions_blur

# The published set draws from the first five of its six photographs.
FROST_FILES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")


def snow(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    loc: float,
    scale: float,
    zoom: float,
    threshold: float,
    radius: int,
    sigma: float,
    mix: float,
) -> np.ndarray:
    """Whitens the scene, then adds motion-blurred flakes and their half-turn.

    Args:
      image: (H, W, 3) in [0, 1].
      rng: draws one normal per pixel, then the angle of fall.
      loc: mean of the noise the flakes are cut from.
      scale: its standard deviation.
      zoom: by how much that noise is enlarged: the size of a flake.
      threshold: noise below it is no flake.
      radius: of the motion blur, see `corruptions_blur.smear`.
      sigma: of the motion blur.
      mix: weight of the unwhitened image.
    """
    flakes = rng.normal(loc=loc, scale=scale, size=image.shape[:2])  # (H, W)
    flakes = corruptions_blur.clipped_zoom(flakes, zoom)
    flakes = np.where(flakes < threshold, 0.0, np.clip(flakes, 0, 1))
    flakes = np.floor(flakes * 255) / 255
    angle = rng.uniform(-135, -45)
    flakes = corruptions_blur.smear(flakes, radius, sigma=sigma, angle=angle)
    luma = image @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    whitened = np.maximum(image, luma[..., None] * 1.5 + 0.5)
    scene = mix * image + (1 - mix) * whitened
    return scene + (flakes + np.rot90(flakes, 2))[..., None]


def frost(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    image_weight: float,
    frost_weight: float,
    photographs: Sequence[np.ndarray] = (),
) -> np.ndarray:
    """Adds a random crop of a photograph of frost to the dimmed image.

    Args:
      image: (H, W, 3) in [0, 1].
      rng: draws the photograph, then the top and the left of the crop.
      image_weight: of the image in the sum.
      frost_weight: of the frost in the sum.
      photographs: uint8 (H', W', 3) each, from `load_frost`; a photograph smaller than
        the image is enlarged. Empty: `procedural_frost`.
    """
    if not photographs:
        ice = procedural_frost(image.shape[:2], rng)
        return image_weight * image + frost_weight * ice
    height, width = image.shape[:2]
    photograph = photographs[rng.integers(len(photographs))]
    photograph = _enlarge_to_cover(photograph, height, width)
    top = rng.integers(photograph.shape[0] - height + 1)
    left = rng.integers(photograph.shape[1] - width + 1)
    ice = photograph[top : top + height, left : left + width] / 255
    return image_weight * image + frost_weight * ice


def load_frost(directory: str | pathlib.Path) -> tuple[np.ndarray, ...]:
    """The five photographs of frost that ImageNet-C draws from.

    Args:
      directory: holds the files named in `FROST_FILES`.

    Returns:
      uint8 arrays (H, W, 3), transparency dropped.

    Raises:
      ValueError: when a photograph is missing.
    """
    directory = pathlib.Path(directory)
    missing = [name for name in FROST_FILES if not (directory / name).is_file()]
    if missing:
        raise ValueError(
            f"frost: {directory} lacks {', '.join(missing)}; put the photographs of the"
            " ImageNet-C repository (ImageNet-C/create_c/frost*) there."
        )
    photographs = []
    for name in FROST_FILES:
        with Image.open(directory / name) as photograph:
            photographs.append(np.asarray(photograph)[..., :3].copy())
    return tuple(photographs)


def procedural_frost(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Bluish veins of ice from two fractals: (H, W, 3) in [0, 1]. Ours, no photograph.

    Its mean, about 0.45, is that of the photographs; its texture is not theirs.

    Args:
      shape: (H, W).
      rng: draws two fractals.
    """
    veins = 1 - np.abs(2 * plasma_fractal(shape, rng, decay=1.6) - 1)  # (H, W)
    sheet = plasma_fractal(shape, rng, decay=2.2)
    ice = np.clip(0.15 + 0.6 * veins**2 + 0.25 * sheet, 0, 1)
    return ice[..., None] ** np.array([1.15, 1.0, 0.85])


def fog(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    strength: float,
    decay: float,
) -> np.ndarray:
    """Adds a fractal mist and rescales to the brightest value of the image.

    Args:
      image: (H, W, 3) in [0, 1].
      rng: draws the fractal.
      strength: brightness of the densest mist, image white being 1.
      decay: of the fractal, see `plasma_fractal`.
    """
    brightest = image.max()
    mist = plasma_fractal(image.shape[:2], rng, decay=decay)
    return (image + strength * mist[..., None]) * brightest / (brightest + strength)


def plasma_fractal(
    shape: tuple[int, int], rng: np.random.Generator, *, decay: float
) -> np.ndarray:
    """A diamond-square height map scaled to [0, 1].

    Midpoints of ever smaller squares and diamonds on a torus take the mean of their
    four neighbours plus uniform noise of amplitude w^2; w starts at 100 and is divided
    by `decay` whenever the squares are halved.

    Args:
      shape: (H, W); cut from a square map whose side is a power of two.
      rng: draws one uniform number per point but the first.
      decay: larger is smoother.
    """
    size = 1 << (max(shape) - 1).bit_length()
    height = np.zeros((size, size))
    step, wobble = size, 100.0
    while step >= 2:
        half, amplitude = step // 2, wobble * wobble
        corners = height[::step, ::step]
        noise = rng.uniform(-amplitude, amplitude, corners.shape)
        rows = corners + np.roll(corners, -1, axis=0)
        centres = (rows + np.roll(rows, -1, axis=1)) / 4 + noise
        height[half::step, half::step] = centres
        noise = rng.uniform(-amplitude, amplitude, corners.shape)
        above_below = centres + np.roll(centres, 1, axis=0)
        left_right = corners + np.roll(corners, -1, axis=1)
        height[::step, half::step] = (above_below + left_right) / 4 + noise
        noise = rng.uniform(-amplitude, amplitude, corners.shape)
        left_right = centres + np.roll(centres, 1, axis=1)
        above_below = corners + np.roll(corners, -1, axis=0)
        height[half::step, ::step] = (above_below + left_right) / 4 + noise
        step, wobble = half, wobble / decay
    height -= height.min()
    return (height / height.max())[: shape[0], : shape[1]]


def brightness(
    image: np.ndarray, rng: np.random.Generator, *, offset: float
) -> np.ndarray:
    """Raises the value V of HSV by `offset`, keeping hue and saturation.

    At constant hue and saturation all three channels are proportional to V.

    Args:
      image: (H, W, 3) in [0, 1].
      rng: unused.
      offset: added to V; the sum is clipped to 1.
    """
    value = image.max(axis=-1, keepdims=True)
    raised = np.clip(value + offset, 0, 1)
    grey = np.broadcast_to(raised, image.shape)  # Black has saturation 0.
    return np.divide(image * raised, value, out=grey.copy(), where=value > 0)


def _enlarge_to_cover(photograph: np.ndarray, height: int, width: int) -> np.ndarray:
    ratio = max(height / photograph.shape[0], width / photograph.shape[1])
    if ratio <= 1:
        return photograph
    size = (
        max(width, round(photograph.shape[1] * ratio)),
        max(height, round(photograph.shape[0] * ratio)),
    )
    enlarged = Image.fromarray(photograph).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(enlarged)
