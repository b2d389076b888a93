"""The exact GELU against its definition, its slope, and the types around it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import special, stats

from lvb.ops import gelu

X = np.linspace(-9, 9, 401)
ROUNDING = 9 * 2**-52


def test_is_x_times_the_distribution_function():
    with jax.enable_x64():
        y = gelu.gelu(jnp.asarray(X))
    np.testing.assert_allclose(y, X * special.ndtr(X), rtol=0, atol=ROUNDING)


def test_slope_is_that_of_the_function():
    expected = special.ndtr(X) + X * stats.norm.pdf(X)
    with jax.enable_x64():
        x = jnp.asarray(X)
        np.testing.assert_allclose(gelu.gelu_slope(x), expected, rtol=0, atol=ROUNDING)
        slopes = jax.vmap(jax.grad(gelu.gelu))(x)
        np.testing.assert_allclose(slopes, expected, rtol=0, atol=ROUNDING)
        check_grads(gelu.gelu, (jnp.asarray([-2.0, 0.0, 0.7]),), order=2)


def test_float32_is_off_by_a_rounding_of_its_input():
    x = X.astype(np.float32)
    error = np.abs(np.asarray(gelu.gelu(x), np.float64) - x * special.ndtr(x * 1.0))
    assert error.max() < 1e-6


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_types_are_computed_in_float32(dtype):
    x = jnp.asarray(X, dtype)
    y = gelu.gelu(x)
    assert y.dtype == dtype
    expected = gelu.gelu(x.astype(jnp.float32)).astype(dtype)
    assert np.array_equal(y, expected)
