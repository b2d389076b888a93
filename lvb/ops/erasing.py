"""Random erasing (arXiv:1708.04896) of a normalised batch."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

MODES = ("pixel", "color", "zero")
# A drawn rectangle may not fit; timm, whose recipe the papers follow, tries ten times.
NUM_ATTEMPTS = 10


class Rectangle(NamedTuple):
    """A rectangle in pixels; height and width are 0 when nothing is erased."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array


def erased_rectangle(
    key: jax.Array,
    *,
    height: int,
    width: int,
    prob: float,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> Rectangle:
    """Draws the rectangle to erase from one image.

    The share of the image's area is uniform in `area`, the ratio of height to width
    log-uniform in `aspect`; the first of ten draws that fits strictly inside is placed
    uniformly.

    Args:
      key: random key of this image.
      height: image height, pixels.
      width: image width, pixels.
      prob: probability of erasing.
      area: smallest and largest share of the image's area.
      aspect: smallest and largest height / width.

    Returns:
      The rectangle, int32 scalars; empty with probability 1 - prob, or if no draw fits.
    """
    erase_key, area_key, aspect_key, top_key, left_key = jax.random.split(key, 5)
    attempts = (NUM_ATTEMPTS,)
    pixels = (
        height
        * width
        * jax.random.uniform(area_key, attempts, minval=area[0], maxval=area[1])
    )
    log_aspect = jax.random.uniform(
        aspect_key, attempts, minval=math.log(aspect[0]), maxval=math.log(aspect[1])
    )
    ratio = jnp.exp(log_aspect)
    heights = jnp.round(jnp.sqrt(pixels * ratio)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(pixels / ratio)).astype(jnp.int32)
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits)
    erase = fits[first] & (jax.random.uniform(erase_key) < prob)
    box_height = jnp.where(erase, heights[first], 0)
    box_width = jnp.where(erase, widths[first], 0)
    return Rectangle(
        top=jax.random.randint(top_key, (), 0, height - box_height + 1),
        left=jax.random.randint(left_key, (), 0, width - box_width + 1),
        height=box_height,
        width=box_width,
    )


def random_erasing(
    key: jax.Array,
    images: jax.Array,
    *,
    prob: float,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    mode: str = "pixel",
) -> jax.Array:
    """Erases at most one rectangle per image, independently for each image.

    Args:
      key: random key of this step.
      images: normalised float images, (B, H, W, C).
      prob: probability that an image is touched; 0.25 in the DeiT and LSNet recipes.
      area: smallest and largest share of the image's area (timm's 0.02 to 1/3).
      aspect: smallest and largest height / width (timm's 0.3 to 1 / 0.3).
      mode: what fills the rectangle: "pixel", standard normal noise per pixel and
        channel; "color", one standard normal colour; "zero", the mean image.

    Returns:
      The images, same shape and type.

    Raises:
      ValueError: for an unknown mode, integer images or ranges that do not fit.
    """
    _check(images, prob=prob, area=area, aspect=aspect, mode=mode)
    if prob == 0.0:
        return images
    batch_size, height, width, channels = images.shape
    box_key, noise_key = jax.random.split(key)

    def mask(key: jax.Array) -> jax.Array:
        box = erased_rectangle(
            key, height=height, width=width, prob=prob, area=area, aspect=aspect
        )
        rows = jnp.arange(height) - box.top
        columns = jnp.arange(width) - box.left
        in_rows = (rows >= 0) & (rows < box.height)
        in_columns = (columns >= 0) & (columns < box.width)
        return in_rows[:, None, None] & in_columns[None, :, None]  # (H, W, 1)

    erased = jax.vmap(mask)(jax.random.split(box_key, batch_size))  # (B, H, W, 1)
    noise_shape = {
        "pixel": (batch_size, height, width, channels),
        "color": (batch_size, 1, 1, channels),
        "zero": (1, 1, 1, 1),
    }[mode]
    fill = jnp.zeros(noise_shape, images.dtype)
    if mode != "zero":
        fill = jax.random.normal(noise_key, noise_shape, images.dtype)
    return jnp.where(erased, fill, images)


def _check(
    images: jax.Array,
    *,
    prob: float,
    area: tuple[float, float],
    aspect: tuple[float, float],
    mode: str,
) -> None:
    if mode not in MODES:
        raise ValueError(
            f"random_erasing: mode={mode!r} is unknown; use pixel, color or zero."
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"random_erasing: images are {images.dtype}; normalise them first."
        )
    if not 0.0 <= prob <= 1.0:
        raise ValueError(f"random_erasing: prob={prob} is outside [0, 1].")
    if not 0.0 < area[0] <= area[1] <= 1.0 or not 0.0 < aspect[0] <= aspect[1]:
        raise ValueError(
            f"random_erasing: area={area} must rise within (0, 1] and aspect={aspect} "
            "must be positive and rise."
        )
