"""Group and RMS normalisation against those of Flax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lvb.layers import norm

C = 6
LAYERS = {
    "rms": (norm.RMSNorm(epsilon=1e-2), nn.RMSNorm(epsilon=1e-2)),
    "group": (
        norm.GroupNorm(num_groups=2, epsilon=1e-2),
        nn.GroupNorm(num_groups=2, epsilon=1e-2, use_fast_variance=False),
    ),
}


@pytest.mark.parametrize("op_form", ["reference", "shift"])
@pytest.mark.parametrize("name", list(LAYERS))
def test_equals_that_of_flax_in_value_and_gradient(name, op_form):
    ours, theirs = LAYERS[name]
    ours = ours.clone(op_form=op_form)
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((2, 2, 3, 4, C)).astype(np.float32)
    with jax.numpy_rank_promotion("allow"):  # Flax's own broadcasts.
        shapes = jax.eval_shape(theirs.init, jax.random.key(0), x)
    assert jax.eval_shape(ours.init, jax.random.key(0), x) == shapes
    variables = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes
    )

    def value_and_slopes(layer):
        def weighted(x, variables):
            y = layer.apply(variables, x)
            return jnp.sum(y * weights), y

        return jax.grad(weighted, argnums=(0, 1), has_aux=True)(x, variables)

    with jax.numpy_rank_promotion("allow"):
        expected = value_and_slopes(theirs)
    # Float32 sums of at most 36 numbers of size one.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5),
        value_and_slopes(ours),
        expected,
    )
