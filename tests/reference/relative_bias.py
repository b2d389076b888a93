"""Bicubic resizing and offset biases, one number at a time."""

import numpy as np


def bicubic(image, size):
    """PyTorch's bicubic interpolation without aligned corners, 2-D."""
    out = np.zeros(size)
    for i, j in np.ndindex(*size):
        row = (i + 0.5) * image.shape[0] / size[0] - 0.5
        column = (j + 0.5) * image.shape[1] / size[1] - 0.5
        for u in range(int(np.floor(row)) - 1, int(np.floor(row)) + 3):
            for v in range(int(np.floor(column)) - 1, int(np.floor(column)) + 3):
                inside = (
                    min(max(u, 0), image.shape[0] - 1),
                    min(max(v, 0), image.shape[1] - 1),
                )
                out[i, j] += cubic(row - u) * cubic(column - v) * image[inside]
    return out


def cubic(distance, a=-0.75):
    """The cubic convolution kernel, Keys (1981), with PyTorch's parameter."""
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    if d < 2:
        return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return 0.0


def bias(table, size, *, mode):
    """(h, N, N) of a table (h, T, T), pair by pair."""
    heads, side, _ = table.shape
    height, width = size
    tokens = height * width
    if mode == "exact_offsets":
        grid = np.stack([bicubic(image, size) for image in table])
    else:
        grid, (height, width) = table, (side, side)
    full = np.zeros((heads, height * width, height * width))
    for p, q in np.ndindex(height * width, height * width):
        down = abs(p // width - q // width)
        across = abs(p % width - q % width)
        full[:, p, q] = grid[:, down, across]
    if mode == "exact_offsets":
        return full
    return np.stack([bicubic(image, (tokens, tokens)) for image in full])
