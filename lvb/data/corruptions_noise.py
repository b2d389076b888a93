"""Noise corruptions of ImageNet-C (Hendrycks and Dietterich, ICLR 2019, Section 4).

Every function takes an image as float64 (H, W, 3) in [0, 1] and the generator that
makes it random, and returns float64 (H, W, 3); the registry clips and quantises. The
severities are the keyword arguments listed in ``imagenet_c.json``.
"""

import numpy as np


def gaussian_noise(
    image: np.ndarray, rng: np.random.Generator, *, scale: float
) -> np.ndarray:
    """Adds N(0, scale^2) to each channel of each pixel (electronic noise).

    Args:
      image: (H, W, 3) in [0, 1].
      rng: draws one normal per element, in row-major order.
      scale: standard deviation in units of the full range.
    """
    return image + rng.normal(scale=scale, size=image.shape)


def shot_noise(
    image: np.ndarray, rng: np.random.Generator, *, photons: float
) -> np.ndarray:
    """Counts photons: Poisson(x * photons) / photons (a sensor in low light).

    Args:
      image: (H, W, 3) in [0, 1].
      rng: draws one Poisson count per element, in row-major order.
      photons: expected count of a white pixel.
    """
    return rng.poisson(image * photons) / photons


def impulse_noise(
    image: np.ndarray, rng: np.random.Generator, *, amount: float
) -> np.ndarray:
    """Salt and pepper: each element is replaced by 0 or 1 with equal odds.

    Args:
      image: (H, W, 3) in [0, 1].
      rng: draws the mask of replaced elements, then the mask of white ones.
      amount: probability that an element is replaced.
    """
    replaced = rng.random(image.shape) < amount
    white = rng.random(image.shape) < 0.5
    return np.where(replaced, white.astype(image.dtype), image)


def speckle_noise(
    image: np.ndarray, rng: np.random.Generator, *, scale: float
) -> np.ndarray:
    """Multiplicative noise: x + x N(0, scale^2). One of the four extra corruptions.

    Args:
      image: (H, W, 3) in [0, 1].
      rng: draws one normal per element, in row-major order.
      scale: standard deviation relative to the value of the element.
    """
    return image + image * rng.normal(scale=scale, size=image.shape)
