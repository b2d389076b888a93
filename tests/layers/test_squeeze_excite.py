"""Squeeze-and-excitation against NumPy."""

import jax
import numpy as np
from fixtures import randomised

from lvb.layers import squeeze_excite


def test_equals_the_equation():
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    layer = squeeze_excite.SqueezeExcite(2)
    variables = randomised(layer.init(jax.random.key(0), x))
    reduce, expand = (variables["params"][name] for name in ("reduce", "expand"))
    hidden = x.mean((1, 2)) @ reduce["kernel"][0, 0] + reduce["bias"][None]
    gate = np.maximum(hidden, 0) @ expand["kernel"][0, 0] + expand["bias"][None]
    expected = x / (1 + np.exp(-gate))[:, None, None]
    # Float32 sums of at most 15 terms.
    np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-5)
