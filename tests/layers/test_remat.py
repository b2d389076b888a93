"""Rematerialisation changes what is stored, not what is computed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from fixtures import init, randomised
from flax import linen as nn

from lvb.layers import conv_norm, module, remat


class Net(module.Layer):
    """One block, rematerialised or not."""

    remat: bool

    @nn.compact
    def __call__(self, x, *, train):
        block = conv_norm.ConvNorm(4, 3, name="block", **self.inherited)
        return nn.relu(remat.call(block, x, train=train, remat=self.remat))


def test_same_parameters_values_gradients_and_statistics():
    x = jax.random.normal(jax.random.key(1), (2, 5, 5, 3))
    variables = randomised(init(Net(remat=False), x, train=False))

    @functools.partial(jax.jit, static_argnames="net")
    @functools.partial(jax.value_and_grad, has_aux=True)
    def slopes(params, net):
        state = {**variables, "params": params}
        y, updated = net.apply(state, x, train=True, mutable=["batch_stats"])
        return jnp.sum(y**2), updated

    plain, rematerialised = (
        slopes(variables["params"], net=Net(remat=flag)) for flag in (False, True)
    )
    # The same sums, possibly reassociated by the compiler.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        plain,
        rematerialised,
    )


def test_the_block_is_recomputed():
    x = jnp.ones((1, 4, 4, 3))
    variables = init(Net(remat=True), x, train=False)

    def loss(params, net):
        return net.apply({**variables, "params": params}, x, train=False).sum()

    text = str(
        jax.make_jaxpr(jax.grad(loss), static_argnums=1)(
            variables["params"], Net(remat=True)
        )
    )
    assert "checkpoint" in text or "remat" in text
