"""Convolution and batch norm: shapes, padding, statistics, folding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import randomised

from lvb.layers import conv, conv_norm


def apply_both(module, images):
    """The module's output at evaluation, and that of its fused form, in float64."""
    with jax.enable_x64(True):
        wide = module.clone(dtype=jnp.float64, param_dtype=jnp.float64)
        images = jnp.asarray(images, jnp.float64)
        variables = randomised(wide.init(jax.random.key(0), images, train=False))
        fused = wide.clone(deploy=True)
        return (
            wide.apply(variables, images, train=False),
            fused.apply(wide.fuse(variables), images, train=False),
        )


@pytest.mark.parametrize(
    "module",
    [
        conv_norm.ConvNorm(6, 3, strides=2),
        conv_norm.ConvNorm(6, 1, groups=2),
        conv_norm.ConvNorm(4, 7, groups=4),
        conv_norm.ConvNorm(6, (3, 1), strides=2, affine=False),
    ],
    ids=["3x3 s2", "grouped 1x1", "depthwise 7x7", "3x1 s2, no affine"],
)
def test_fused_equals_unfused(module):
    images = np.random.default_rng(0).normal(size=(2, 7, 6, 4))
    unfused, fused = apply_both(module, images)
    np.testing.assert_allclose(fused, unfused, rtol=0, atol=1e-10)


def test_stride_two_pads_symmetrically():
    """On an even map the first output is centred on pixel (0, 0); 'SAME' is not."""
    layer = conv.Conv(1, 3, strides=2, kernel_init=jax.nn.initializers.ones)
    image = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0, 0].set(1.0)
    y, _ = layer.init_with_output(jax.random.key(0), image)
    np.testing.assert_array_equal(y[0, :, :, 0], [[1, 0], [0, 0]])


def test_running_statistics_move_by_a_tenth():
    layer = conv_norm.ConvNorm(3)
    x = jax.random.normal(jax.random.key(1), (4, 5, 5, 2))
    variables = layer.init(jax.random.key(0), x, train=False)
    _, updated = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    y = conv.Conv(3).apply({"params": variables["params"]["conv"]}, x)
    stats = updated["batch_stats"]["norm"]
    np.testing.assert_allclose(stats["mean"], 0.1 * y.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * y.var((0, 1, 2)), atol=1e-6)


def test_frozen_batch_norm_leaves_statistics_alone():
    layer = conv_norm.ConvNorm(3, frozen_batch_norm=True)
    x = jax.random.normal(jax.random.key(1), (4, 5, 5, 2))
    variables = randomised(layer.init(jax.random.key(0), x, train=False))
    y, updated = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, layer.apply(variables, x, train=False))
    assert jax.tree.all(
        jax.tree.map(np.array_equal, updated["batch_stats"], variables["batch_stats"])
    )


def test_bfloat16_computes_in_bfloat16_with_float32_state():
    layer = conv_norm.ConvNorm(3, 3, dtype=jnp.bfloat16)
    x = jnp.ones((1, 4, 4, 2))
    y, variables = layer.init_with_output(jax.random.key(0), x, train=True)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_torch_initialisation_is_uniform_in_one_over_root_fan_in():
    kernel = conv.torch_uniform(jax.random.key(0), (3, 3, 16, 64), jnp.float32)
    bound = (3 * 3 * 16) ** -0.5
    assert float(jnp.abs(kernel).max()) <= bound
    # 9,216 draws: the deviation is within 5 % with a false-alarm rate under 1e-9.
    np.testing.assert_allclose(kernel.std(), bound / 3**0.5, rtol=0.05)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (conv.Conv(6, groups=4), "not divisible by groups=4"),
        (conv.Conv(4, 2), "even side"),
    ],
)
def test_what_does_not_fit_is_named(layer, message):
    with pytest.raises(ValueError, match=message):
        layer.init(jax.random.key(0), jnp.ones((1, 4, 4, 4)))
