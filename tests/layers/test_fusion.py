"""Fusing a tree of modules: what is folded, what is kept, what is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import randomised

from lvb.layers import conv_norm, fusion, module, norm
from lvb.layers.multi_branch_conv import Branch, MultiBranchConv


class Net(module.Layer):
    """A fusable block, a batch norm that stays, a plain parameter and a scope."""

    @nn.compact
    def __call__(self, x, *, train):
        x = conv_norm.ConvNorm(4, 3, name="stem", **self.inherited)(x, train=train)
        x = norm.batch_norm(self, train=train, name="kept")(nn.relu(x))
        branches = (Branch(3, 4), Branch(1, 4))
        x = MultiBranchConv(4, branches, shortcut=True, name="mixer", **self.inherited)(
            x, train=train
        )
        return x * self.param("scale", nn.initializers.ones, (1, 1, 1, 4))


@pytest.fixture(scope="module", params=[3, 1], ids=["colour", "grey"])
def network(request):
    x = jax.random.normal(jax.random.key(1), (2, 9, 8, request.param))
    return x, randomised(Net().init(jax.random.key(0), x, train=False))


def test_fused_computes_the_same_and_keeps_the_rest(network):
    x, variables = network
    fused = fusion.fuse_variables(Net(), Net(deploy=True), variables)
    assert set(fused["params"]) == {"stem", "kept", "mixer", "scale"}
    assert set(fused["batch_stats"]) == {"kept"}
    assert fused["params"]["scale"] is variables["params"]["scale"]
    np.testing.assert_allclose(
        Net(deploy=True).apply(fused, x, train=False),
        Net().apply(variables, x, train=False),
        atol=1e-5,  # Two convolutions of 27 and 9 products in float32.
    )


def test_variables_of_another_model_are_refused(network):
    _, variables = network
    params = {**variables["params"], "scale": jnp.ones((1, 1, 1, 5))}
    with pytest.raises(ValueError, match=r"params/scale has shape \(1, 1, 1, 5\)"):
        fusion.fuse_variables(Net(), Net(deploy=True), {**variables, "params": params})


def test_missing_statistics_are_refused(network):
    _, variables = network
    with pytest.raises(ValueError, match=r"batch_stats/\S+ has shape None"):
        fusion.fuse_variables(Net(), Net(deploy=True), {"params": variables["params"]})
