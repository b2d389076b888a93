"""A feature map cut into chunks of tokens, and put together again, ConvNeur §3.3."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lvb.ops import sums

LAYOUTS = ("raster", "window")


class ChunkGrid(NamedTuple):
    """How a map of one size is cut; static.

    A chunk is a tile of `tile_height` x `tile_width` tokens of a map of `rows` x
    `columns` tokens, padded at the bottom and on the right. The raster layout is the
    case of a map of one row.

    Attributes:
      rows: of the map that is cut.
      columns: of the map that is cut.
      tile_height: rows of a chunk.
      tile_width: columns of a chunk.
    """

    rows: int
    columns: int
    tile_height: int
    tile_width: int

    @property
    def tiles(self) -> tuple[int, int]:
        """Chunks along the rows and along the columns."""
        return -(-self.rows // self.tile_height), -(-self.columns // self.tile_width)

    @property
    def padding(self) -> tuple[int, int]:
        """Rows and columns of padding."""
        return (
            self.tiles[0] * self.tile_height - self.rows,
            self.tiles[1] * self.tile_width - self.columns,
        )


def chunk_grid(
    height: int, width: int, *, chunk_size: int, layout: str = "raster"
) -> ChunkGrid:
    """How to cut a map into chunks of at most `chunk_size` tokens.

    Args:
      height: of the map.
      width: of the map.
      chunk_size: L, tokens; a map with fewer is one chunk.
      layout: "raster" cuts the row-major sequence of tokens, as the paper's text says;
        "window" cuts square windows of `chunk_size` tokens.

    Returns:
      The grid.

    Raises:
      ValueError: if `layout` is unknown or `chunk_size` does not fit it.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"chunk_layout={layout!r} is unknown; use one of {LAYOUTS}.")
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} holds no token; use 1 or more.")
    if layout == "raster":
        return ChunkGrid(1, height * width, 1, min(chunk_size, height * width))
    side = math.isqrt(chunk_size)
    if side**2 != chunk_size:
        raise ValueError(
            f"chunk_size={chunk_size} is no square window; use {side**2} or "
            f'{(side + 1) ** 2}, or chunk_layout="raster".'
        )
    return ChunkGrid(height, width, min(side, height), min(side, width))


def split(x: jax.Array, grid: ChunkGrid) -> jax.Array:
    """Cuts a map into chunks, padded with zeros.

    Args:
      x: (B, H, W, C).
      grid: of this H and W.

    Returns:
      (B, T, L, C), the chunks in row-major order.
    """
    batch, channels = x.shape[0], x.shape[-1]
    x = jnp.reshape(x, (batch, grid.rows, grid.columns, channels))
    bottom, right = grid.padding
    x = jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0)))
    down, across = grid.tiles
    tile = (grid.tile_height, grid.tile_width)
    x = jnp.reshape(x, (batch, down, tile[0], across, tile[1], channels))
    x = jnp.swapaxes(x, 2, 3)  # (B, down, across, tile height, tile width, C)
    return jnp.reshape(x, (batch, down * across, tile[0] * tile[1], channels))


def merge(chunks: jax.Array, grid: ChunkGrid, *, height: int, width: int) -> jax.Array:
    """Puts chunks back in their place and drops the padding; undoes `split`.

    Args:
      chunks: (B, T, L, C).
      grid: that cut them.
      height: of the map.
      width: of the map.

    Returns:
      (B, H, W, C).
    """
    batch, channels = chunks.shape[0], chunks.shape[-1]
    tile = (grid.tile_height, grid.tile_width)
    x = jnp.reshape(chunks, (batch, *grid.tiles, *tile, channels))
    x = jnp.swapaxes(x, 2, 3)  # (B, down, tile height, across, tile width, C)
    down, across = grid.tiles
    x = jnp.reshape(x, (batch, down * tile[0], across * tile[1], channels))
    x = x[:, : grid.rows, : grid.columns]
    return jnp.reshape(x, (batch, height, width, channels))


def valid_tokens(grid: ChunkGrid) -> np.ndarray:
    """Which tokens of the chunks are not padding, (T, L) bool."""
    bottom, right = grid.padding
    mask = np.pad(np.ones((grid.rows, grid.columns), bool), ((0, bottom), (0, right)))
    down, across = grid.tiles
    mask = mask.reshape(down, grid.tile_height, across, grid.tile_width)
    return mask.swapaxes(1, 2).reshape(down * across, -1)


def pool_chunks(
    tokens: jax.Array,
    mask: jax.Array,
    *,
    logits: jax.Array | None = None,
    as_product: bool = False,
) -> jax.Array:
    """The summary r_t of each chunk, a mean of its tokens weighted per channel.

        r[c] = sum_i softmax_i(logits[i, c]) tokens[i, c], over the valid i

    Args:
      tokens: s, (B, U, L, d).
      mask: which tokens are valid, (U, L) bool.
      logits: (B, U, L, d), or None for the plain mean.
      as_product: how the sums are computed, see `lvb.ops.sums`.

    Returns:
      (B, U, d).
    """
    valid = mask[None, :, :, None]  # (1, U, L, 1)
    if logits is None:
        return jnp.mean(tokens, axis=2, where=valid)
    logits = jnp.where(valid, logits, -jnp.inf)
    largest = jnp.max(logits, axis=2, keepdims=True)
    weights = jnp.exp(logits - lax.stop_gradient(largest))
    total = sums.sum_rows(weights * tokens, as_product=as_product)  # (B, U, 1, d)
    return (total / sums.sum_rows(weights, as_product=as_product))[:, :, 0]
