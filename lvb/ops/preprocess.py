"""From stored pixels to network input."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike


def normalize(
    images: jax.Array,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """Scales pixels to [0, 1] and normalises each channel.

        x <- (x / 255 - mean) / std

    Args:
      images: (B, H, W, C), uint8.
      mean: per channel, of pixels in [0, 1].
      std: per channel, of pixels in [0, 1].
      dtype: of the result; the arithmetic is float32.

    Returns:
      (B, H, W, C), `dtype`.

    Raises:
      ValueError: if the images are not uint8 or the channels do not match.
    """
    if images.dtype != jnp.uint8:
        raise ValueError(
            f"normalize: images are {images.dtype}, not uint8; pixels are normalised "
            "once, on the device."
        )
    if not len(mean) == len(std) == images.shape[-1]:
        raise ValueError(
            f"normalize: images have {images.shape[-1]} channels, mean {len(mean)} and "
            f"std {len(std)} values; give one of each per channel."
        )
    # One multiply-add: x * scale + offset.
    scale = 1.0 / (255.0 * np.asarray(std, np.float64))  # (C,)
    offset = -np.asarray(mean, np.float64) / np.asarray(std, np.float64)  # (C,)
    shape = (1, 1, 1, -1)
    x = images.astype(jnp.float32) * scale.astype(np.float32).reshape(shape)
    return (x + offset.astype(np.float32).reshape(shape)).astype(dtype)


def renormalize(
    images: jax.Array,
    *,
    old: tuple[Sequence[float], Sequence[float]],
    new: tuple[Sequence[float], Sequence[float]],
) -> jax.Array:
    """Gives normalised images, mixed ones too, another mean and deviation.

        x <- (x std_old + mean_old - mean_new) / std_new

    Args:
      images: (B, H, W, C), normalised with `old`.
      old: (mean, std) of pixels in [0, 1], per channel.
      new: those to normalise with instead.

    Returns:
      (B, H, W, C), of the same type; the images themselves if nothing changes.
    """
    (old_mean, old_std), (new_mean, new_std) = (
        (np.asarray(mean, np.float64), np.asarray(std, np.float64))
        for mean, std in (old, new)
    )
    if np.array_equal(old_mean, new_mean) and np.array_equal(old_std, new_std):
        return images
    scale = (old_std / new_std).astype(np.float32).reshape(1, 1, 1, -1)
    offset = ((old_mean - new_mean) / new_std).astype(np.float32).reshape(1, 1, 1, -1)
    return (images * scale + offset).astype(images.dtype)
