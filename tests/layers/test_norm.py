"""RMS normalisation against that of Flax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lvb.layers import norm


@pytest.mark.parametrize("op_form", ["reference", "shift"])
def test_equals_that_of_flax_in_value_and_gradient(op_form):
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((2, 2, 3, 4, 6)).astype(np.float32)
    scale = rng.standard_normal(6).astype(np.float32)
    ours = norm.RMSNorm(epsilon=1e-2, op_form=op_form)
    theirs = nn.RMSNorm(epsilon=1e-2)
    assert jax.tree.map(jnp.shape, ours.init(jax.random.key(0), x)) == {
        "params": {"scale": (6,)}
    }

    def value_and_slopes(layer):
        def weighted(x, scale):
            y = layer.apply({"params": {"scale": scale}}, x)
            return jnp.sum(y * weights), y

        return jax.grad(weighted, argnums=(0, 1), has_aux=True)(x, scale)

    with jax.numpy_rank_promotion("allow"):  # Flax's own broadcasts.
        expected = value_and_slopes(theirs)
    # Float32 sums of at most 24 numbers of size one.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5),
        value_and_slopes(ours),
        expected,
    )
