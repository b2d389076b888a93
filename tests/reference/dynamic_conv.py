"""LSNet's aggregation as loops, written from Eq. (8) and the released channel map."""

import numpy as np


def ska_loops(
    x: np.ndarray, weights: np.ndarray, *, kernel_size: int, grouping: str
) -> np.ndarray:
    """Eq. (8), one product at a time: x (B, H, W, C), weights (B, H, W, M, K^2)."""
    batch, height, width, channels = x.shape
    num_kernels = weights.shape[3]
    margin = kernel_size // 2
    y = np.zeros(x.shape, np.float64)
    for b, i, j, c in np.ndindex(batch, height, width, channels):
        if grouping == "interleaved":
            kernel = c % num_kernels
        else:
            kernel = c // (channels // num_kernels)
        for u, v in np.ndindex(kernel_size, kernel_size):
            row, column = i + u - margin, j + v - margin
            if 0 <= row < height and 0 <= column < width:
                weight = weights[b, i, j, kernel, u * kernel_size + v]
                y[b, i, j, c] += weight * x[b, row, column, c]
    return y


def ska_gradients(
    x: np.ndarray, weights: np.ndarray, dy: np.ndarray, *, kernel_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of <ska, dy> for interleaved kernels, term by term."""
    batch, height, width, channels = x.shape
    num_kernels = weights.shape[3]
    margin = kernel_size // 2
    dx, dweights = np.zeros(x.shape), np.zeros(weights.shape)
    for b, i, j, c in np.ndindex(batch, height, width, channels):
        for u, v in np.ndindex(kernel_size, kernel_size):
            row, column = i + u - margin, j + v - margin
            if not (0 <= row < height and 0 <= column < width):
                continue
            at = (b, i, j, c % num_kernels, u * kernel_size + v)
            dx[b, row, column, c] += weights[at] * dy[b, i, j, c]
            dweights[at] += x[b, row, column, c] * dy[b, i, j, c]
    return dx, dweights
