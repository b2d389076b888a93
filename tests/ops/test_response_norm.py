"""Global response normalisation against loops, and where its norm is zero."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from lvb.ops import response_norm


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, 3, 4, 5))
    return x, rng.standard_normal(5), rng.standard_normal(5)


def norm(x, scale, bias):
    return response_norm.global_response_norm(x, scale=scale, bias=bias)


def test_equals_loops():
    x, scale, bias = inputs()
    expected = np.zeros_like(x)
    for b in range(2):
        energy = [np.sqrt(sum(x[b, :, :, c].ravel() ** 2)) for c in range(5)]
        for c in range(5):
            relative = energy[c] / (np.mean(energy) + 1e-6)
            u = x[b, :, :, c]
            expected[b, :, :, c] = u + scale[c] * (u * relative) + bias[c]
    with jax.enable_x64():
        y = norm(x, scale, bias)
        assert y.dtype == jnp.float64
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-14)


def test_is_the_identity_at_its_initial_values():
    x = inputs()[0].astype(np.float32)
    zero = np.zeros(5, np.float32)
    np.testing.assert_array_equal(norm(x, zero, zero), x)


def test_gradients_equal_central_differences():
    with jax.enable_x64():
        arguments = jax.tree.map(jnp.asarray, inputs())
        check_grads(norm, arguments, order=1, modes=["rev"], eps=1e-5)


def test_gradient_is_finite_on_dead_channels_and_black_images():
    x, scale, bias = jax.tree.map(np.float32, inputs())
    x[0, :, :, 2] = 0  # A dead channel,
    x[1] = 0  # and an image with nothing in it.
    slopes = jax.grad(lambda *a: jnp.sum(jnp.sin(norm(*a) - 1)), argnums=(0, 1, 2))(
        x, scale, bias
    )
    for slope in slopes:
        assert np.isfinite(slope).all()
    # In a black image n = 0, so the slope is that of u + bias alone.
    expected = np.broadcast_to(np.cos(bias - 1), x[1].shape)
    np.testing.assert_allclose(slopes[0][1], expected, rtol=1e-6)


def test_norms_are_float32_in_bf16():
    """56 x 56 squares of 1: bf16 sums stop growing at 256."""
    x = jnp.ones((1, 56, 56, 2), jnp.bfloat16).at[..., 1].set(3)
    one, zero = jnp.ones(2), jnp.zeros(2)
    y = norm(x, one, zero)
    assert y.dtype == jnp.bfloat16
    # n = (1, 3) / 2; the result 1 + 1 / 2 and 3 + 9 / 2 is exact in bf16.
    np.testing.assert_array_equal(
        y[0, 0, 0].astype(np.float32), np.array([1.5, 7.5], np.float32)
    )
