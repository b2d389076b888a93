"""Scaled dot-product attention, dense or blockwise over the queries."""

import jax
import jax.numpy as jnp


def dot_product_attention(
    query: jax.Array,
    key: jax.Array,
    *,
    value: jax.Array,
    scale: float,
    bias: jax.Array | None = None,
    block_size: int | None = None,
) -> jax.Array:
    """Softmax attention with the scores and the softmax in float32 at least.

        out = softmax(scale * query key^T + bias) value

    Args:
      query: (B, N, h, D).
      key: (B, M, h, D).
      value: (B, M, h, Dv).
      scale: factor on the products, usually D ** -0.5.
      bias: added to the scaled products, (h, N, M), or None.
      block_size: queries handled at a time, so that memory grows with N instead of
        N M; the blocks are recomputed in the backward pass. None handles all at once.

    Returns:
      (B, N, h, Dv) in value's dtype.
    """
    num_queries = query.shape[1]
    if block_size is None or block_size >= num_queries:
        return _attend(query, key, value, scale, bias)
    num_blocks = -(-num_queries // block_size)
    padding = num_blocks * block_size - num_queries
    blocks = jnp.pad(query, ((0, 0), (0, padding), (0, 0), (0, 0)))
    blocks = jnp.reshape(
        blocks, (blocks.shape[0], num_blocks, block_size, *blocks.shape[2:])
    )  # (B, N / L, L, h, D)
    blocks = jnp.moveaxis(blocks, 1, 0)  # (N / L, B, L, h, D)
    if bias is None:
        out = jax.lax.map(
            jax.checkpoint(lambda block: _attend(block, key, value, scale, None)),
            blocks,
        )
    else:
        rows = jnp.pad(bias, ((0, 0), (0, padding), (0, 0)))
        rows = jnp.reshape(rows, (bias.shape[0], num_blocks, block_size, -1))
        out = jax.lax.map(
            jax.checkpoint(lambda pair: _attend(pair[0], key, value, scale, pair[1])),
            (blocks, jnp.moveaxis(rows, 1, 0)),
        )
    out = jnp.moveaxis(out, 0, 1)  # (B, N / L, L, h, Dv)
    out = jnp.reshape(out, (out.shape[0], -1, *out.shape[3:]))
    return out[:, :num_queries]


def _attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    scale: float,
    bias: jax.Array | None,
) -> jax.Array:
    scores = jnp.einsum("bnhd,bmhd->bhnm", query, key)  # (B, h, N, M)
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32)) * scale
    if bias is not None:
        scores = scores + bias[None].astype(scores.dtype)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, value)
