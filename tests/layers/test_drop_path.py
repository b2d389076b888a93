"""Stochastic depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lvb.layers import drop_path


def test_drops_whole_examples_and_keeps_the_mean():
    x = jnp.ones((4000, 2, 3))
    y = drop_path.DropPath(0.25).apply(
        {}, x, train=True, rngs={"drop_path": jax.random.key(0)}
    )
    per_example = np.asarray(y).reshape(4000, -1)
    assert set(np.unique(per_example)) == {0.0, np.float32(1 / 0.75)}
    assert np.all(per_example == per_example[:, :1])
    # Standard error 0.009; a deviation of 0.05 has probability under 1e-7.
    assert abs(per_example.mean() - 1) < 0.05


@pytest.mark.parametrize(("rate", "train"), [(0.5, False), (0.0, True)])
def test_is_the_identity_and_draws_nothing(rate, train):
    x = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(drop_path.DropPath(rate).apply({}, x, train=train), x)


def test_rate_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"rate=1\.0 is not in"):
        drop_path.DropPath(1.0).apply({}, jnp.ones((1, 1)), train=True)


def test_rates_grow_linearly_over_all_blocks():
    assert drop_path.rates(0.3, depths=(1, 0, 3)) == [
        [0.0],
        [],
        [pytest.approx(0.1), pytest.approx(0.2), pytest.approx(0.3)],
    ]
    assert drop_path.rates(0.3, depths=(1,)) == [[0.0]]
