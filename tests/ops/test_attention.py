"""Attention against loops; blockwise against dense."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from reference import attention as loops

from lvb.ops import attention

HEADS, HEAD_DIM, VALUE_DIM = 2, 4, 3


def inputs(num_queries, num_keys, *, seed=0, biased=False):
    rng = np.random.default_rng(seed)
    query = rng.normal(size=(2, num_queries, HEADS, HEAD_DIM))
    key = rng.normal(size=(2, num_keys, HEADS, HEAD_DIM))
    value = rng.normal(size=(2, num_keys, HEADS, VALUE_DIM))
    bias = rng.normal(size=(HEADS, num_queries, num_keys)) if biased else None
    return query, key, value, bias


def single(*shape, **options):
    """The same inputs in float32."""
    return [None if a is None else jnp.float32(a) for a in inputs(*shape, **options)]


# One program a case, not one an operation.
@functools.partial(jax.jit, static_argnames=("scale", "block_size"))
def attend(query, key, value, bias, *, scale=0.5, block_size=None):
    return attention.dot_product_attention(
        query, key, value=value, scale=scale, bias=bias, block_size=block_size
    )


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", [(5, 5), (4, 7), (1, 1), (3, 1), (1, 4)])
def test_equals_loops(shape, biased):
    arrays = inputs(*shape, biased=biased)
    query, key, value, bias = arrays
    expected = loops.attention_loops(query, key, value, scale=0.5, bias=bias)
    with jax.enable_x64(True):
        y = attend(*jax.tree.map(jnp.asarray, arrays))
        assert y.dtype == jnp.float64
    np.testing.assert_allclose(y, expected, atol=1e-14)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("block_size", [1, 3, 4, 7, 12, 50])
def test_blockwise_equals_dense(block_size, biased):
    # 12 queries: 7 and 50 do not divide them.
    with jax.enable_x64(True):
        arrays = jax.tree.map(jnp.asarray, inputs(12, 9, biased=biased))
        dense = attend(*arrays)
        blockwise = attend(*arrays, block_size=block_size)
    assert blockwise.shape == dense.shape
    np.testing.assert_allclose(blockwise, dense, atol=1e-14)


def test_blockwise_gradients_equal_dense_ones():
    def loss(arrays, block_size):
        y = attend(*arrays, block_size=block_size)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size).reshape(y.shape)))

    with jax.enable_x64(True):
        arrays = jax.tree.map(jnp.asarray, inputs(7, 5, biased=True))
        slopes = jax.jit(jax.grad(loss), static_argnums=1)
        dense, blockwise = slopes(arrays, None), slopes(arrays, 3)
    for ours, theirs in zip(blockwise, dense, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-13)


@pytest.mark.parametrize("block_size", [None, 2])
@pytest.mark.parametrize("shape", [(3, 4), (1, 1)])
def test_gradients(shape, block_size):
    with jax.enable_x64(True):
        arrays = jax.tree.map(jnp.asarray, inputs(*shape, biased=True))
        check_grads(
            jax.jit(lambda *arrays: attend(*arrays, block_size=block_size)),
            arrays,
            order=1,
            modes=("rev",),
        )


@pytest.mark.parametrize("block_size", [None, 4])
def test_rows_of_weights_sum_to_one(block_size):
    query, key, value, bias = single(6, 9, biased=True)
    y = attend(query, key, jnp.ones_like(value), bias, block_size=block_size)
    np.testing.assert_allclose(y, 1.0, atol=1e-6)


def test_one_key_returns_its_value():
    query, key, value, _ = single(5, 1)
    y = attend(query, key, value, None)
    np.testing.assert_allclose(y, np.broadcast_to(value, y.shape), atol=1e-6)


def test_zero_scale_averages_the_values():
    query, key, value, _ = single(5, 8)
    y = attend(query, key, value, None, scale=0.0)
    expected = np.broadcast_to(value.mean(axis=1, keepdims=True), y.shape)
    np.testing.assert_allclose(y, expected, atol=1e-6)


def test_heads_do_not_mix():
    query, key, value, _ = single(5, 5)
    other = value.at[:, :, 1].add(1.0)
    before, after = attend(query, key, value, None), attend(query, key, other, None)
    np.testing.assert_array_equal(before[:, :, 0], after[:, :, 0])
    assert np.abs(before[:, :, 1] - after[:, :, 1]).min() > 0.5


@pytest.mark.parametrize("block_size", [None, 4])
def test_large_scores_stay_finite_in_bfloat16(block_size):
    query, key, value, _ = inputs(6, 9)
    arrays = [jnp.asarray(100 * a, jnp.bfloat16) for a in (query, key, value)]
    y = attend(*arrays, None, block_size=block_size)
    assert y.dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(y, np.float32)).all()


def test_blocks_keep_the_scores_small():
    # The largest array of the dense form has N^2 entries per head; of the blocks, L N.
    def largest(block_size):
        shapes = [jax.ShapeDtypeStruct((1, 64, 1, 4), jnp.float32)] * 3
        jaxpr = jax.make_jaxpr(
            lambda q, k, v: attend(q, k, v, None, block_size=block_size)
        )(*shapes)
        return max(int(np.prod(s)) for s in _shapes(jaxpr.jaxpr))

    assert largest(None) == 64 * 64
    assert largest(8) == 8 * 64


def _shapes(jaxpr):
    """Shapes of all values in a jaxpr and the ones it calls."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _shapes(inner)
