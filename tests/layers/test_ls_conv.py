"""The LS convolution: its reach, its weights and the counts of its ablations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lvb.analysis import flops
from lvb.layers import ls_conv, norm

CHANNELS = 16
# Options, then train parameters and multiply-adds per position of one LS convolution
# at C channels as coefficients of C^2 and C, from Eqs. (7) and (8) and Sec. 3.2.
COUNTS = [
    ({}, (1.3125, 32.875), (1.3125, 33.5)),
    ({"kernel_size": 3}, (1.3125, 12.875), (1.3125, 13.5)),
    ({"perceive": False}, (1.3125, 7.375), (1.3125, 9.0)),
    ({"aggregate": False}, (1.25, 40.5), (1.25, 33.5)),
    ({"small_kernel": 1}, (0.8125, 29.875), (0.8125, 25.5)),
    ({"group_width": 16}, (1.03125, 31.1875), (1.03125, 33.5)),
]


def images(height=11, width=11, *, batch=1):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.standard_normal((batch, height, width, CHANNELS)), float)


def initialised(module, x):
    return jax.jit(lambda x: module.init(jax.random.key(0), x, train=False))(x)


def without_group_norm(call, args, kwargs, context):
    """Freezes the group norm to the identity, which leaves LKP's own reach."""
    if isinstance(context.module, norm.GroupNorm):
        return args[0]
    return call(*args, **kwargs)


@pytest.mark.parametrize(("options", "params", "macs"), COUNTS)
def test_counts(options, params, macs):
    channels = 64
    module = ls_conv.LSConv(op_form="reference", **options)
    x = jax.ShapeDtypeStruct((1, 5, 3, channels), jnp.float32)
    variables = jax.eval_shape(
        lambda x: module.init(jax.random.key(0), x, train=False), x
    )
    found = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert found == params[0] * channels**2 + params[1] * channels
    counted = flops.count_macs(
        lambda v, x: module.apply(v, x, train=False), variables, x
    )
    assert counted == 15 * (macs[0] * channels**2 + macs[1] * channels)


@pytest.mark.parametrize("frozen", [True, False])
def test_reach_is_seven_by_seven_but_for_the_group_norm(frozen):
    module = ls_conv.LSConv()
    x = images()
    variables = initialised(module, x)

    def centre(x):
        if not frozen:
            return module.apply(variables, x, train=False)[0, 5, 5].sum()
        with nn.intercept_methods(without_group_norm):
            return module.apply(variables, x, train=False)[0, 5, 5].sum()

    gradient = np.abs(jax.jit(jax.grad(centre))(x))[0].sum(-1)
    reached = gradient > 0
    inside = np.zeros((11, 11), bool)
    inside[2:9, 2:9] = True
    if frozen:
        np.testing.assert_array_equal(reached, inside)
    else:
        assert reached.all()
        assert gradient[inside].sum() > 0.8 * gradient.sum()


def test_weights_are_normalised_per_kernel_over_the_map():
    module = ls_conv.LSConv()
    x = images(batch=2)
    variables = initialised(module, x)
    _, extra = module.apply(variables, x, train=False, mutable=["intermediates"])
    weights = extra["intermediates"]["aggregation_weights"][0]
    assert weights.shape == (2, 11, 11, CHANNELS // 8, 9)
    np.testing.assert_allclose(weights.mean((1, 2, 4)), 0, atol=1e-5)
    # The group norm's epsilon of 1e-5 against variances of about 1e-2.
    np.testing.assert_allclose(weights.var((1, 2, 4)), 1, atol=5e-3)


def test_nothing_is_sown_unless_asked():
    module = ls_conv.LSConv()
    x = images()
    variables = initialised(module, x)
    assert set(variables) == {"params", "batch_stats"}
    assert isinstance(module.apply(variables, x, train=False), jax.Array)


@pytest.mark.parametrize("size", [(1, 1), (3, 8)])
def test_small_maps_are_finite(size):
    module = ls_conv.LSConv()
    x = images(*size, batch=2)
    variables = initialised(module, x)

    def loss(params):
        y, _ = module.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(jnp.sin(y))

    value, gradient = jax.jit(jax.value_and_grad(loss))(variables["params"])
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_constant_weights_make_a_static_convolution():
    """With a zero group norm scale the weights are its bias at every position."""
    module = ls_conv.LSConv()
    x = images()
    variables = initialised(module, x)
    centre = np.zeros((2, 9), np.float32)
    centre[0, 4], centre[1, 4] = 2.0, 3.0  # Kernel 0: even channels; 1: odd ones.
    params = {
        **variables["params"],
        "weight_norm": {"scale": jnp.zeros(18), "bias": jnp.asarray(centre.ravel())},
    }
    y = module.apply({**variables, "params": params}, x, train=False)
    expected = x / np.sqrt(1 + 1e-5)  # The batch norm's initial statistics.
    np.testing.assert_allclose(y[..., 0::2], 2 * expected[..., 0::2], rtol=1e-5)
    np.testing.assert_allclose(y[..., 1::2], 3 * expected[..., 1::2], rtol=1e-5)


def test_refuses_channels_that_do_not_divide():
    with pytest.raises(ValueError, match=r"channels=16 .* group_width=6"):
        ls_conv.LSConv(group_width=6).init(jax.random.key(0), images(), train=False)
