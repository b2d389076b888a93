"""Sums and broadcasts of matrices in the form a backend likes.

XLA:CPU fuses a sum with the product x * y whose terms it adds up, into a kernel that
takes up to 30 times as long as the two apart; the gradient of a broadcast holds such a
sum. Written as matrix products with a vector of ones, sum and product stay apart, and
so they do in gradients: sums and broadcasts of this kind are each other's. Other
backends get the plain operations; theirs may round the factors of a product.

Symbols: R rows, C columns.
"""

import jax
import jax.numpy as jnp


def sum_rows(x: jax.Array, *, as_product: bool) -> jax.Array:
    """Adds up all rows, (..., R, C) -> (..., 1, C)."""
    if as_product:
        return _ones(x, (1, x.shape[-2])) @ x
    return jnp.sum(x, axis=-2, keepdims=True)


def sum_columns(x: jax.Array, *, as_product: bool) -> jax.Array:
    """Adds up all columns, (..., R, C) -> (..., R, 1)."""
    if as_product:
        return x @ _ones(x, (x.shape[-1], 1))
    return jnp.sum(x, axis=-1, keepdims=True)


def repeat_row(row: jax.Array, rows: int, *, as_product: bool) -> jax.Array:
    """One row, (..., 1, C), so often: (..., R, C), or as it is, to be broadcast."""
    return _ones(row, (rows, 1)) @ row if as_product else row


def repeat_column(column: jax.Array, columns: int, *, as_product: bool) -> jax.Array:
    """One column, (..., R, 1), so often: (..., R, C), or as it is, to be broadcast."""
    return column @ _ones(column, (1, columns)) if as_product else column


def _ones(x: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """A matrix for each of x, since XLA:CPU would transpose x for a shared one."""
    return jnp.ones((*x.shape[:-2], *shape), x.dtype)
