"""Both forms of sums and broadcasts, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lvb.ops import sums

B, R, C = 2, 5, 3


@pytest.mark.parametrize(
    ("operation", "shape", "expected"),
    [
        (sums.sum_rows, (B, R, C), lambda x: x.sum(axis=1, keepdims=True)),
        (sums.sum_columns, (B, R, C), lambda x: x.sum(axis=2, keepdims=True)),
        (
            lambda x, as_product: sums.repeat_row(x, R, as_product=as_product),
            (B, 1, C),
            lambda x: np.repeat(x, R, axis=1),
        ),
        (
            lambda x, as_product: sums.repeat_column(x, C, as_product=as_product),
            (B, R, 1),
            lambda x: np.repeat(x, C, axis=2),
        ),
    ],
)
def test_both_forms_equal_numpy_and_share_their_gradient(operation, shape, expected):
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal(shape), rng.standard_normal((B, R, C))

    def weighted(x, as_product):
        y = operation(x, as_product=as_product)
        return jnp.sum(jnp.sin(y * weights)), y

    with jax.enable_x64():
        slopes = {}
        for as_product in (True, False):
            slopes[as_product], y = jax.grad(weighted, has_aux=True)(x, as_product)
            y = np.broadcast_to(y, expected(x).shape)
            np.testing.assert_allclose(y, expected(x), rtol=0, atol=1e-14)
    # Sums of at most 15 float64 numbers of size one.
    np.testing.assert_allclose(slopes[True], slopes[False], rtol=0, atol=1e-14)
    assert np.abs(slopes[True]).min() > 1e-3
