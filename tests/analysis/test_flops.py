"""The counter of multiply-adds, on functions counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from lvb.analysis import flops, param_table
from lvb.ops import convolution

X = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)


def conv_of(kernel_shape, **options):
    kernel = jnp.ones(kernel_shape)
    return lambda x: convolution.conv2d(x, kernel, form="reference", **options)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (conv_of((3, 3, 4, 6), padding=(1, 1)), 2 * 64 * 6 * 36),
        (conv_of((3, 3, 4, 6), padding=(1, 1), strides=2), 2 * 16 * 6 * 36),
        (conv_of((3, 3, 1, 4), padding=(1, 1), groups=4), 2 * 64 * 4 * 9),
        (conv_of((1, 1, 2, 6), groups=2), 2 * 64 * 6 * 2),
    ],
    ids=["dense", "strided", "depthwise", "grouped"],
)
def test_convolutions(function, expected):
    assert flops.count_macs(function, X) == expected


def test_batched_product_counts_each_batch():
    left = jax.ShapeDtypeStruct((5, 3, 7), jnp.float32)
    right = jax.ShapeDtypeStruct((5, 7, 2), jnp.float32)
    assert flops.count_macs(jnp.matmul, left, right) == 5 * 3 * 7 * 2


def test_scan_counts_every_step_and_jit_and_checkpoint_once():
    matrix = jnp.ones((4, 4))

    def step(carry, _):
        return jax.checkpoint(lambda c: c @ matrix)(carry), None

    def loop(x):
        return jax.lax.scan(jax.jit(step), x, length=6)[0]

    row = jax.ShapeDtypeStruct((1, 4), jnp.float32)
    assert flops.count_macs(loop, row) == 6 * 16


def test_gradient_counts_its_own_products():
    matrix = jnp.ones((4, 4))
    row = jax.ShapeDtypeStruct((1, 4), jnp.float32)
    # Only the transpose is multiplied: the primal value is not used.
    assert flops.count_macs(jax.grad(lambda x: ((x @ matrix) ** 2).sum()), row) == 32


def test_elementwise_work_is_not_counted():
    assert flops.count_macs(lambda x: jnp.tanh(x) * x + x, X) == 0


def test_parameters_by_module():
    params = {
        "stem": {"conv": {"kernel": jnp.ones((3, 3, 3, 8)), "bias": jnp.ones(8)}},
        "head": {"kernel": jnp.ones((8, 10))},
    }
    assert param_table.count_params(params) == 216 + 8 + 80
    assert param_table.count_by_module(params, depth=1) == {"head": 80, "stem": 224}
