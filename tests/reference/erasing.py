"""Random erasing's rectangle by rejection, as arXiv:1708.04896, Algorithm 1."""

import math

import numpy as np


def rectangle(
    rng: np.random.Generator,
    *,
    height: int,
    width: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[int, int, int, int]:
    """Draws (top, left, rows, columns); ten attempts, zeros if none fits."""
    for _ in range(10):
        pixels = rng.uniform(*area) * height * width
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        rows = round(math.sqrt(pixels * ratio))
        columns = round(math.sqrt(pixels / ratio))
        if rows < height and columns < width:
            top = rng.integers(height - rows, endpoint=True)
            left = rng.integers(width - columns, endpoint=True)
            return int(top), int(left), rows, columns
    return 0, 0, 0, 0
