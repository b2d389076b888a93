"""Ceil-mode average pooling against loops over cells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from lvb.ops import pooling


def pool_loops(x, window):
    """The mean of the valid cells of each window, cell by cell."""
    batch, height, width, channels = x.shape
    rows, columns = -(-height // window), -(-width // window)
    y = np.zeros((batch, rows, columns, channels))
    for b, i, j, c in np.ndindex(y.shape):
        cells = [
            x[b, u, v, c]
            for u in range(window * i, min(window * (i + 1), height))
            for v in range(window * j, min(window * (j + 1), width))
        ]
        y[b, i, j, c] = sum(cells) / len(cells)
    return y


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("size", [(4, 6), (5, 6), (4, 7), (5, 7), (1, 1), (1, 4)])
def test_equals_loops(window, size):
    x = np.random.default_rng(0).normal(size=(2, *size, 3))
    with jax.enable_x64(True):
        y = pooling.average_pool(jnp.asarray(x), window=window)
        assert y.dtype == jnp.float64
    np.testing.assert_allclose(y, pool_loops(x, window), atol=1e-14)


def test_a_constant_map_stays_constant_at_the_rim():
    y = pooling.average_pool(jnp.full((1, 5, 3, 2), 7.0), window=2)
    assert y.shape == (1, 3, 2, 2)
    np.testing.assert_array_equal(y, 7.0)


def test_gradients():
    x = np.random.default_rng(1).normal(size=(1, 5, 3, 2))
    with jax.enable_x64(True):
        check_grads(
            lambda x: pooling.average_pool(x, window=2), (jnp.asarray(x),), order=2
        )


def test_bfloat16_sums_in_float32():
    # 64 ones and 1/256: in bfloat16 the running sum would drop the small terms.
    x = np.full((1, 8, 8, 1), 1 / 256, np.float32)
    x[0, 0, 0, 0] = 64.0
    y = pooling.average_pool(jnp.asarray(x, jnp.bfloat16), window=8)
    assert y.dtype == jnp.bfloat16
    exact = jnp.asarray(pool_loops(x, 8), jnp.bfloat16)
    np.testing.assert_array_equal(
        np.asarray(y, np.float32), np.asarray(exact, np.float32)
    )


def test_refuses_an_empty_window():
    with pytest.raises(ValueError, match="window=0"):
        pooling.average_pool(jnp.ones((1, 4, 4, 1)), window=0)
