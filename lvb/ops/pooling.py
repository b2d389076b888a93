"""Average pooling that keeps the rim of odd maps."""

import jax
import jax.numpy as jnp
import numpy as np


def average_pool(x: jax.Array, *, window: int) -> jax.Array:
    """Means over disjoint square windows; those at the rim average the cells inside.

        y[b, i, j, c] = mean of x[b, u, v, c] over the cells of the map with
            s i <= u < s (i + 1) and s j <= v < s (j + 1),    s = window

    PyTorch's `AvgPool2d(s, s, ceil_mode=True, count_include_pad=False)`, which FMViT's
    patch embeddings take over from Next-ViT: no row or column is lost, none is diluted.

    Args:
      x: (B, H, W, C); sums are float32 at least.
      window: side s of the windows and their stride, in cells.

    Returns:
      (B, ceil(H / s), ceil(W / s), C) in x's dtype.

    Raises:
      ValueError: if the window is smaller than one cell.
    """
    if window < 1:
        raise ValueError(f"average_pool: window={window} holds no cell; use 1 or more.")
    batch, height, width, channels = x.shape
    rows, columns = -(-height // window), -(-width // window)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    padded = jnp.pad(
        x.astype(wide),
        (
            (0, 0),
            (0, rows * window - height),
            (0, columns * window - width),
            (0, 0),
        ),
    )
    cells = jnp.reshape(
        padded, (batch, rows, window, columns, window, channels)
    )  # (B, H', s, W', s, C)
    # One mean per axis: the number of cells in a window is rows times columns.
    weights = np.outer(1 / _sizes(height, window), 1 / _sizes(width, window))
    y = cells.sum(axis=(2, 4)) * jnp.asarray(weights[None, :, :, None], wide)
    return y.astype(x.dtype)


def _sizes(length: int, window: int) -> np.ndarray:
    """How many of `length` cells each window along one axis holds."""
    starts = np.arange(0, length, window)
    return np.minimum(length - starts, window)
