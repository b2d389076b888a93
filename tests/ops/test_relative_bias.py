"""Attention biases on maps of any size, against pair-by-pair loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import lsnet_layout
from reference import relative_bias as reference

from lvb.ops import relative_bias


def table(side, *, heads=2):
    return np.random.default_rng(0).standard_normal((heads, side, side))


def flat(grid):
    return jnp.asarray(grid.reshape(len(grid), -1))


@pytest.mark.parametrize("side", [1, 3, 4])
def test_index_is_the_order_of_first_appearance(side):
    """The released code numbers offsets as they come: the same order."""
    np.testing.assert_array_equal(
        relative_bias.offset_index(side, side), lsnet_layout.bias_index(side)
    )


def test_index_of_a_rectangle():
    index = relative_bias.offset_index(2, 3)
    np.testing.assert_array_equal(index[0], [0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(index[4], [4, 3, 4, 1, 0, 1])
    np.testing.assert_array_equal(index, index.T)


@pytest.mark.parametrize("size", [(7, 5), (2, 2), (4, 3), (1, 1)])
def test_bicubic_equals_loops(size):
    image = table(4)
    expected = np.stack([reference.bicubic(channel, size) for channel in image])
    with jax.enable_x64():
        ours = relative_bias.resize_bicubic(jnp.asarray(image), size)
    np.testing.assert_allclose(ours, expected, atol=1e-13)


def test_bicubic_keeps_constants_and_sizes():
    image = jnp.asarray(table(5), jnp.float32)
    assert relative_bias.resize_bicubic(image, (5, 5)) is image
    ones = relative_bias.resize_bicubic(jnp.ones((1, 4, 4)), (14, 9))
    np.testing.assert_allclose(ones, 1.0, atol=1e-6)


def test_bicubic_is_not_an_antialiased_or_another_cubic():
    """jax.image.resize has the parameter -0.5 and smooths when it shrinks."""
    image = jnp.asarray(table(4), jnp.float32)
    ours = relative_bias.resize_bicubic(image, (7, 7))
    other = jax.image.resize(image, (2, 7, 7), "cubic")
    assert float(jnp.max(jnp.abs(ours - other))) > 1e-2


@pytest.mark.parametrize("mode", relative_bias.MODES)
@pytest.mark.parametrize("size", [(3, 3), (2, 4), (1, 1), (4, 5)])
def test_bias_equals_loops(size, mode):
    grid = table(3)
    expected = reference.bias(grid, size, mode=mode)
    with jax.enable_x64():
        ours = relative_bias.relative_bias(flat(grid), size=size, mode=mode)
    np.testing.assert_allclose(ours, expected, atol=1e-13)


def test_exact_offsets_do_not_depend_on_where_a_pair_lies():
    bias = relative_bias.relative_bias(
        flat(table(4)), size=(3, 5), mode="exact_offsets"
    )
    # Tokens 0, 6 and tokens 1, 7 of a 3 x 5 map: one down, one across.
    np.testing.assert_array_equal(bias[:, 0, 6], bias[:, 1, 7])
    official = relative_bias.relative_bias(flat(table(4)), size=(3, 5))
    assert not np.allclose(official[:, 0, 6], official[:, 1, 7], atol=1e-3)


@pytest.mark.parametrize("mode", relative_bias.MODES)
def test_every_entry_of_the_table_learns(mode):
    def loss(values, size):
        bias = relative_bias.relative_bias(values, size=size, mode=mode)
        weights = jnp.cos(jnp.arange(bias.size, dtype=bias.dtype))
        return jnp.vdot(bias.ravel(), weights)

    for size in ((4, 4), (6, 7)):
        gradient = jax.grad(loss)(jnp.asarray(flat(table(4)), jnp.float32), size)
        assert np.all(np.isfinite(gradient))
        assert np.all(gradient != 0)


def test_refuses_unknown_modes_and_tables():
    with pytest.raises(ValueError, match="bias_mode='nearest' is unknown"):
        relative_bias.relative_bias(jnp.ones((2, 16)), size=(4, 4), mode="nearest")
    with pytest.raises(ValueError, match="a table of 15 offsets is not square"):
        relative_bias.relative_bias(jnp.ones((2, 15)), size=(4, 4))
