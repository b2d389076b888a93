"""CutMix's box and mixup, one image at a time, from the papers' definitions."""

import math

import numpy as np


def cutmix_mask(
    rng: np.random.Generator, *, height: int, width: int, alpha: float
) -> np.ndarray:
    """Draws lambda and a box; returns the pixels that are pasted over, (H, W) bool.

    CutMix Eq. (2): sides sqrt(1 - lambda), centre uniform, clipped at the border; in
    whole pixels, half sides are rounded down.
    """
    lam = rng.beta(alpha, alpha)
    half_height = math.floor(height * math.sqrt(1 - lam)) // 2
    half_width = math.floor(width * math.sqrt(1 - lam)) // 2
    row, column = rng.integers(height), rng.integers(width)
    pasted = np.zeros((height, width), bool)
    for y, x in np.ndindex(height, width):
        in_rows = row - half_height <= y < row + half_height
        in_columns = column - half_width <= x < column + half_width
        pasted[y, x] = in_rows and in_columns
    return pasted


def blend(images: np.ndarray, targets: np.ndarray, *, lam: float):
    """Mixup of each image with the one at the mirrored position."""
    mixed, mixed_targets = np.empty_like(images), np.empty_like(targets)
    last = len(images) - 1
    for i in range(len(images)):
        mixed[i] = lam * images[i] + (1 - lam) * images[last - i]
        mixed_targets[i] = lam * targets[i] + (1 - lam) * targets[last - i]
    return mixed, mixed_targets
