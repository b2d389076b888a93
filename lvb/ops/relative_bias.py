"""Biases of attention by the offset between two tokens, for maps of any size.

A table holds one number per head and absolute offset on a T x T grid: entry
|row - row'| T + |column - column'|. Symbols: h heads, N = H W tokens, row by row.
"""

import jax
import jax.numpy as jnp
import numpy as np

MODES = ("official", "exact_offsets")
_CUBIC = -0.75  # The cubic's free parameter in PyTorch's bicubic interpolation.


def offset_index(height: int, width: int) -> np.ndarray:
    """The table entry of every pair of tokens.

    Args:
      height: rows of the map.
      width: columns of the map.

    Returns:
      (N, N) integers |row - row'| * width + |column - column'|.
    """
    rows, columns = np.divmod(np.arange(height * width), width)
    return (
        np.abs(rows[:, None] - rows) * width + np.abs(columns[:, None] - columns)
    ).astype(np.int32)


def resize_bicubic(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resizes the last two axes, as PyTorch's bicubic interpolation without corners.

    Sample k of n' reads position (k + 1/2) n / n' - 1/2 through the four nearest
    samples, the border repeated; nothing is smoothed when shrinking.

    Args:
      x: (..., H, W).
      size: (H', W').

    Returns:
      (..., H', W'); x itself if the size is unchanged.
    """
    for axis, target in zip((-2, -1), size, strict=True):
        if x.shape[axis] != target:
            x = _resize_axis(x, target, axis)
    return x


def resize_table(table: jax.Array, *, size: tuple[int, int]) -> jax.Array:
    """Resizes a square table of offsets to the offsets of an H x W map.

    Args:
      table: (h, T^2).
      size: (H, W).

    Returns:
      (h, H W).
    """
    side = table_side(table)
    square = jnp.reshape(table, (table.shape[0], side, side))
    return jnp.reshape(resize_bicubic(square, size), (table.shape[0], -1))


def relative_bias(
    table: jax.Array, *, size: tuple[int, int], mode: str = "official"
) -> jax.Array:
    """The bias of every pair of tokens on an H x W map.

    On a T x T map both modes read the table. On others, "official" does what the
    released LSNet detectors do: it resizes the T^2 x T^2 matrix of biases like an
    image, which ignores where tokens lie. "exact_offsets" resizes the table to the
    map's offsets.

    Args:
      table: (h, T^2).
      size: (H, W) of the map.
      mode: one of `MODES`.

    Returns:
      (h, N, N).

    Raises:
      ValueError: if the mode is unknown or the table is not square.
    """
    if mode not in MODES:
        raise ValueError(
            f"relative_bias: bias_mode={mode!r} is unknown; use one of {MODES}."
        )
    if mode == "exact_offsets":
        return resize_table(table, size=size)[:, offset_index(*size)]
    side = table_side(table)
    num_tokens = size[0] * size[1]
    bias = table[:, offset_index(side, side)]  # (h, T^2, T^2)
    if size == (side, side):
        return bias
    return resize_bicubic(bias, (num_tokens, num_tokens))


def table_side(table: jax.Array) -> int:
    """The side T of a table (h, T^2).

    Raises:
      ValueError: if the table is not square.
    """
    side = round(table.shape[-1] ** 0.5)
    if side**2 != table.shape[-1]:
        raise ValueError(
            f"relative_bias: a table of {table.shape[-1]} offsets is not square; it "
            "needs T * T entries."
        )
    return side


def _resize_axis(x: jax.Array, target: int, axis: int) -> jax.Array:
    size = x.shape[axis]
    position = (np.arange(target) + 0.5) * size / target - 0.5
    first = np.floor(position).astype(int) - 1
    shape = [1] * x.ndim
    shape[axis] = target
    terms = []
    for tap in range(4):
        weight = _cubic(np.abs(position - (first + tap)))
        weight = jnp.asarray(np.reshape(weight, shape), x.dtype)
        source = np.clip(first + tap, 0, size - 1)
        terms.append(weight * jnp.take(x, source, axis=axis))
    return sum(terms)


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel of the distance to a sample."""
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
    far = _CUBIC * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
