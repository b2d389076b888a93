"""One chunk of the neural memory: hand-derived gradient, update, limits, counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from reference import neural_memory as reference

from lvb.analysis import flops
from lvb.ops import neural_memory
from lvb.ops.neural_memory import ChunkWrites, MemoryState, MemoryWeights, UpdateRule

D, L = 6, 5


def weights_of(seed=0, *, width=D, scale=0.5, dtype=np.float64):
    rng = np.random.default_rng(seed)
    shapes = ((width, 4 * width), (width, 4 * width), (width,))
    return MemoryWeights(
        *(scale * rng.standard_normal(s).astype(dtype) for s in shapes)
    )


def write_of(seed=1, *, length=L, width=D, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return ChunkWrites(
        keys=rng.standard_normal((length, width)).astype(dtype),
        values=rng.standard_normal((length, width)).astype(dtype),
        token_weights=rng.uniform(0, 1 / length, length).astype(dtype),
        momentum=dtype(0.4),
        decay=dtype(0.05),
    )


def state_of(seed=0):
    return MemoryState(weights_of(seed), jax.tree.map(lambda w: 0.1 * w, weights_of(9)))


@pytest.mark.parametrize("epsilon", [1e-3, 1e-5])
def test_read_and_loss_equal_loops(epsilon):
    rule = UpdateRule(norm_epsilon=epsilon)
    weights, write = weights_of(), write_of()
    with jax.enable_x64():
        y = neural_memory.memory_read(weights, write.keys, rule=rule)
        loss = neural_memory.inner_loss(weights, write, rule=rule)
    expected = [reference.read(weights, key, epsilon=epsilon) for key in write.keys]
    # Sums of 24 float64 products of size one.
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-13)
    expected = reference.loss(weights, *write[:3], epsilon=epsilon)
    np.testing.assert_allclose(loss, expected, rtol=1e-13)


@pytest.mark.parametrize("analytic", [True, False])
@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("length", [1, L])
def test_inner_gradient_equals_the_hand_derived_one(length, second_order, analytic):
    rule = UpdateRule(second_order=second_order, analytic=analytic)
    weights, write = weights_of(), write_of(length=length)
    with jax.enable_x64():
        slopes = neural_memory.inner_gradient(weights, write, rule=rule)
    expected = reference.gradient(weights, *write[:3], epsilon=rule.norm_epsilon)
    for got, wanted in zip(slopes, expected, strict=True):
        assert np.abs(wanted).max() > 1e-3
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-13)


def test_reaction_is_a_read_and_a_gradient():
    rule = UpdateRule(analytic=True)
    weights, write = weights_of(), write_of()
    queries = np.random.default_rng(3).standard_normal((L + 2, D))
    with jax.enable_x64():
        y, slopes, _ = neural_memory.react(weights, queries, write, rule=rule)
        expected = (
            neural_memory.memory_read(weights, queries, rule=rule),
            neural_memory.inner_gradient(weights, write, rule=rule),
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-13),
        (y, slopes),
        expected,
    )


@pytest.mark.parametrize("wrong", [{"second_order": False}, {"analytic": False}])
def test_what_differentiates_reads_and_slopes_apart_refuses_them_together(wrong):
    rule = UpdateRule(**{"analytic": True, **wrong})
    write = write_of()
    with pytest.raises(ValueError, match="use memory_read and inner_gradient"):
        neural_memory.react(weights_of(), write.keys, write, rule=rule)


def test_hand_derived_gradient_is_the_slope_of_the_loss():
    """The reference itself, by central differences along a random direction."""
    weights, write = weights_of(), write_of()
    rng = np.random.default_rng(2)
    direction = [rng.standard_normal(w.shape) for w in weights]
    step = 1e-5

    def loss(shift):
        moved = [w + shift * v for w, v in zip(weights, direction, strict=True)]
        return reference.loss(moved, *write[:3], epsilon=1e-3)

    slopes = reference.gradient(weights, *write[:3], epsilon=1e-3)
    expected = sum(np.sum(s * v) for s, v in zip(slopes, direction, strict=True))
    # The differences are right to step^2 times a third derivative, about 1e-8.
    np.testing.assert_allclose(
        (loss(step) - loss(-step)) / 2 / step, expected, rtol=1e-6
    )


@pytest.mark.parametrize("grad_at", neural_memory.GRADIENTS_AT)
@pytest.mark.parametrize("clip", [1.0, 0.05, 0.0])
def test_update_equals_loops(grad_at, clip):
    state, write, initial = state_of(), write_of(), weights_of(5)
    rule = UpdateRule(grad_at=grad_at, clip=clip)
    at = state.weights if grad_at == "previous" else initial
    slopes = reference.gradient(at, *write[:3], epsilon=rule.norm_epsilon)
    with jax.enable_x64():
        new, gradient = neural_memory.memory_update(
            state, write, initial=initial, rule=rule
        )
    for name, slope, step in zip(
        MemoryWeights._fields, slopes, reference.clipped(slopes, clip), strict=True
    ):
        momentum = 0.4 * getattr(state.momentum, name) - step
        weights = 0.95 * getattr(state.weights, name) + momentum
        np.testing.assert_allclose(getattr(gradient, name), slope, atol=1e-13)
        np.testing.assert_allclose(getattr(new.momentum, name), momentum, atol=1e-13)
        np.testing.assert_allclose(getattr(new.weights, name), weights, atol=1e-13)


@pytest.mark.parametrize("grad_at", neural_memory.GRADIENTS_AT)
def test_outer_gradients_of_an_update_equal_central_differences(grad_at):
    rule = UpdateRule(grad_at=grad_at, clip=0.5)

    def answer(state, write, initial):
        new, _ = neural_memory.memory_update(state, write, initial=initial, rule=rule)
        return neural_memory.memory_read(new.weights, write.values, rule=rule)

    with jax.enable_x64():
        arguments = jax.tree.map(jnp.asarray, (state_of(), write_of(), weights_of(5)))
        # Step 1e-5: rounding 1e-11, curvature 1e-10, relative to slopes of size one.
        check_grads(
            answer, arguments, order=1, modes=["rev"], eps=1e-5, atol=1e-7, rtol=1e-7
        )


def test_first_order_gradient_ignores_where_the_slope_was_taken():
    """With M held fixed inside the slope, dM_t / dM_{t-1} is 1 - alpha exactly."""
    write, state = write_of(), state_of()

    def total(weights, rule):
        new, _ = neural_memory.memory_update(
            state._replace(weights=weights), write, initial=weights, rule=rule
        )
        return sum(jnp.sum(w) for w in new.weights)

    with jax.enable_x64():
        plain = jax.grad(total)(state.weights, UpdateRule(second_order=False))
        full = jax.grad(total)(state.weights, UpdateRule())
        by_keys = jax.grad(
            lambda keys: jnp.sum(
                neural_memory.inner_gradient(
                    state.weights,
                    write._replace(keys=keys),
                    rule=UpdateRule(second_order=False),
                ).hidden
            )
        )(write.keys)
    for leaf in jax.tree.leaves(plain):
        np.testing.assert_allclose(leaf, 0.95, rtol=1e-15)
    assert np.abs(np.asarray(full.hidden) - 0.95).max() > 1e-3
    assert np.abs(by_keys).max() > 1e-3  # Or W_k would never learn.


def test_slope_grows_with_the_error_and_vanishes_without():
    """v = M(k) + s delta: |g| is proportional to s, the surprise of a hard chunk."""
    rule, weights, write = UpdateRule(clip=0.0), weights_of(), write_of()
    with jax.enable_x64():
        recalled = neural_memory.memory_read(weights, write.keys, rule=rule)
        norms = []
        for size in (0.0, 1.0, 2.0, 8.0):
            harder = write._replace(values=recalled + size * write.values)
            gradient = neural_memory.inner_gradient(weights, harder, rule=rule)
            norms.append(float(np.sqrt(sum(np.sum(g**2) for g in gradient))))
    assert norms[0] < 1e-14
    np.testing.assert_allclose(np.array(norms[2:]) / norms[1], [2, 8], rtol=1e-12)


def test_no_step_and_no_decay_leave_the_memory():
    write = write_of()._replace(
        token_weights=np.zeros(L), decay=np.float64(0), momentum=np.float64(0.7)
    )
    state = MemoryState(weights_of(), jax.tree.map(np.zeros_like, weights_of()))
    with jax.enable_x64():
        new, _ = neural_memory.memory_update(
            state, write, initial=weights_of(), rule=UpdateRule()
        )
    jax.tree.map(np.testing.assert_array_equal, new.weights, state.weights)


def test_a_token_without_weight_does_not_matter():
    write = write_of()
    write.token_weights[3] = 0
    other = write._replace(keys=write.keys.copy(), values=write.values.copy())
    other.keys[3], other.values[3] = 100.0, -100.0
    with jax.enable_x64():
        slope = functools.partial(
            neural_memory.inner_gradient, weights_of(), rule=UpdateRule()
        )
        jax.tree.map(np.testing.assert_array_equal, slope(write), slope(other))


def test_smooth_clip_bounds_and_keeps_small_gradients():
    small = jax.tree.map(lambda w: 1e-6 * w, weights_of(dtype=np.float32))
    huge = jax.tree.map(lambda w: 1e30 * w, weights_of(dtype=np.float32))
    zero = jax.tree.map(np.zeros_like, small)
    for kept, leaf in zip(
        neural_memory.smooth_clip(small, 1.0), jax.tree.leaves(small), strict=True
    ):
        # 1 / sqrt(1 + |g|^2) = 1 - 1e-10 here, one float32 rounding.
        np.testing.assert_allclose(kept, leaf, rtol=2e-7)
    large = jax.tree.map(lambda w: 1e6 * w, weights_of(dtype=np.float32))
    for leaf in neural_memory.smooth_clip(large, 0.5):
        np.testing.assert_allclose(np.linalg.norm(leaf), 0.5, rtol=1e-5)
    for leaf in neural_memory.smooth_clip(huge, 1.0):
        assert np.isfinite(leaf).all()  # |g|^2 overflows: better no step than NaN.
    slope = jax.grad(
        lambda g: sum(jnp.sum(leaf) for leaf in neural_memory.smooth_clip(g, 2.0))
    )(zero)
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 1), slope)
    assert neural_memory.smooth_clip(huge, 0.0) is huge


def test_products_in_bf16_stay_near_and_the_rest_float32():
    weights, write = weights_of(dtype=np.float32), write_of(dtype=np.float32)
    exact = neural_memory.memory_read(weights, write.keys, rule=UpdateRule())
    narrow = neural_memory.memory_read(
        weights, write.keys, rule=UpdateRule(dtype=jnp.bfloat16)
    )
    assert narrow.dtype == jnp.float32
    assert 0 < np.abs(narrow - exact).max() < 0.1  # bf16 keeps 2 to 3 digits.

    @jax.jit
    @jax.grad
    def slope_of(keys):
        moved = write._replace(keys=keys)
        rule = UpdateRule(dtype=jnp.bfloat16)
        slope = neural_memory.inner_gradient(weights, moved, rule=rule)
        return jnp.sum(slope.output**2)

    slope = slope_of(write.keys)
    assert np.isfinite(slope).all()
    assert np.abs(slope).max() > 0


@pytest.mark.parametrize("analytic", [True, False])
def test_gradient_of_bf16_products_stays_near(analytic):
    weights, write = weights_of(dtype=np.float32), write_of(dtype=np.float32)
    exact = neural_memory.inner_gradient(weights, write, rule=UpdateRule())
    rule = UpdateRule(dtype=jnp.bfloat16, analytic=analytic)
    narrow = neural_memory.inner_gradient(weights, write, rule=rule)
    for a, b in zip(narrow, exact, strict=True):
        assert a.dtype == jnp.float32
        # Three products in a row, each of factors rounded to 2^-9.
        np.testing.assert_allclose(a, b, rtol=0, atol=0.05 * np.abs(b).max())


def test_multiply_adds():
    """8 d^2 per token read; 8 d^2 forward and 12 d^2 backward per token written."""
    weights, write = weights_of(dtype=np.float32), write_of(dtype=np.float32)
    rule = UpdateRule()
    read = functools.partial(neural_memory.memory_read, rule=rule)
    slope = functools.partial(neural_memory.inner_gradient, rule=rule)
    assert flops.count_macs(read, weights, write.keys) == 8 * D**2 * L
    assert flops.count_macs(slope, weights, write) == 20 * D**2 * L
