"""Normalisation of pixels."""

import jax.numpy as jnp
import numpy as np
import pytest

from lvb.ops import preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_normalize_equals_the_definition():
    images = np.arange(256, dtype=np.uint8)[:, None, None, None].repeat(3, -1)
    got = preprocess.normalize(jnp.asarray(images), mean=MEAN, std=STD)
    expected = (images / 255.0 - np.array(MEAN)) / np.array(STD)
    # One rounding of scale, offset, product and sum each, at values up to 5.
    np.testing.assert_allclose(got, expected, atol=2e-6)
    assert got.dtype == jnp.float32


def test_the_result_has_the_wanted_type():
    images = jnp.zeros((1, 2, 2, 1), jnp.uint8)
    got = preprocess.normalize(images, mean=(0.5,), std=(0.5,), dtype=jnp.bfloat16)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got.astype(jnp.float32), -1.0)


def test_float_images_are_refused():
    with pytest.raises(ValueError, match="float32, not uint8"):
        preprocess.normalize(jnp.zeros((1, 2, 2, 3)), mean=MEAN, std=STD)


def test_channels_must_match():
    images = jnp.zeros((1, 2, 2, 1), jnp.uint8)
    with pytest.raises(ValueError, match="1 channels, mean 3"):
        preprocess.normalize(images, mean=MEAN, std=STD)
