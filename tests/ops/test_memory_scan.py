"""The memory over all chunks: against loops, causality, independence, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from reference import neural_memory as reference
from sizes import slow_but

from lvb.analysis import flops
from lvb.ops import memory_scan
from lvb.ops.neural_memory import ChunkWrites, MemoryWeights, UpdateRule

B, T, L, D = 2, 4, 3, 4


def problem(*, read="before", chunks=T, length=L, width=D, batch=B, scale=0.5, seed=0):
    """Queries, writes and M_0, float64."""
    rng = np.random.default_rng(seed)
    written = chunks - (read == "before")
    tokens = (batch, written, length)
    writes = ChunkWrites(
        keys=rng.standard_normal((*tokens, width)),
        values=rng.standard_normal((*tokens, width)),
        token_weights=rng.uniform(0, 2 / length, tokens),
        momentum=rng.uniform(0.2, 0.8, tokens[:2]),
        decay=rng.uniform(0.02, 0.3, tokens[:2]),
    )
    initial = MemoryWeights(
        scale * rng.standard_normal((width, 4 * width)),
        scale * rng.standard_normal((width, 4 * width)),
        scale * rng.standard_normal(width),
    )
    return rng.standard_normal((batch, chunks, length, width)), writes, initial


@functools.partial(
    jax.jit, static_argnames=("form", "rule", "read", "bptt_chunks", "trace")
)
def run(queries, writes, initial, *, form="scan", **options):
    options = {"rule": UpdateRule(), "read": "before", **options}
    solve = {
        "scan": memory_scan.scan_memory,
        "associative": memory_scan.associative_memory,
    }[form]
    return solve(queries, writes, initial=initial, **options)


@pytest.mark.parametrize(
    ("form", "grad_at", "clip", "read"),
    [
        ("scan", "previous", 1.0, "before"),
        ("scan", "previous", 0.0, "after"),
        ("scan", "initial", 0.1, "before"),
        ("associative", "initial", 0.1, "before"),
        ("associative", "initial", 0.0, "after"),
    ],
)
@pytest.mark.parametrize("analytic", slow_but([True], [False, True]))
def test_equals_unrolled_loops(form, grad_at, clip, read, analytic):
    queries, writes, initial = problem(read=read)
    rule = UpdateRule(grad_at=grad_at, clip=clip, analytic=analytic)
    with jax.enable_x64():
        y, trace = run(
            queries, writes, initial, form=form, rule=rule, read=read, trace=True
        )
        untraced, _ = run(queries, writes, initial, form=form, rule=rule, read=read)
    expected, losses = reference.memory(
        queries, writes, initial=initial, clip=clip, grad_at=grad_at, read_order=read
    )
    # Four updates amplify 1e-16 by the slopes of M, here below 100.
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(untraced, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(trace.loss_before, losses, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("grad_at", "form", "analytic", "second_order"),
    [
        ("initial", "associative", False, True),
        ("initial", "associative", True, True),
        ("previous", "scan", True, True),
        ("previous", "scan", True, False),
    ],
)
def test_all_forms_share_their_gradients(grad_at, form, analytic, second_order):
    problem_ = problem()

    def total(arguments, form, analytic):
        rule = UpdateRule(grad_at, analytic=analytic, second_order=second_order)
        y, _ = run(*arguments, form=form, rule=rule)
        return jnp.sum(jnp.sin(y))

    with jax.enable_x64():
        one = jax.grad(total)(problem_, "scan", False)
        other = jax.grad(total)(problem_, form, analytic)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.abs(a).max() > 1e-6
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("clip", "bptt_chunks"), [(1.0, 2), (0.1, 3), (0.0, None)])
def test_written_out_gradient_is_that_of_autodiff(clip, bptt_chunks):
    arrays = problem(chunks=6)

    def total(arrays, analytic):
        rule = UpdateRule(clip=clip, analytic=analytic)
        y, _ = run(*arrays, rule=rule, bptt_chunks=bptt_chunks)
        return jnp.sum(jnp.sin(y))

    with jax.enable_x64():
        expected, slopes = (jax.grad(total)(arrays, form) for form in (False, True))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(slopes), strict=True):
        assert np.abs(a).max() > 1e-6
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("grad_at", "read", "length"),
    [("previous", "before", L), ("previous", "after", 1), ("initial", "before", L)],
)
def test_outer_gradients_equal_central_differences(grad_at, read, length):
    """Through the inner gradient, for every array at once; also with one token."""
    rule = UpdateRule(grad_at=grad_at)
    with jax.enable_x64():
        arguments = jax.tree.map(jnp.asarray, problem(read=read, length=length))
        check_grads(
            lambda *arrays: run(*arrays, rule=rule, read=read)[0],
            arguments,
            order=1,
            modes=["rev"],
            eps=1e-5,
            # Rounding 1e-16 / 1e-5 and curvature 1e-10, times slopes up to 100.
            atol=1e-6,
            rtol=1e-6,
        )


@pytest.mark.parametrize("form", ["scan", "associative"])
def test_without_steps_and_decay_the_memory_stays(form):
    queries, writes, initial = problem()
    writes = writes._replace(
        token_weights=0 * writes.token_weights, decay=0 * writes.decay
    )
    rule = UpdateRule(grad_at="initial")
    with jax.enable_x64():
        y, trace = run(queries, writes, initial, form=form, rule=rule, trace=True)
    expected = [
        reference.read(initial, q, epsilon=1e-3) for q in queries.reshape(-1, D)
    ]
    np.testing.assert_allclose(y, np.reshape(expected, y.shape), rtol=0, atol=1e-14)
    norm = np.sqrt(sum(np.sum(w**2) for w in initial))
    np.testing.assert_allclose(trace.weight_norm, norm, rtol=1e-14)
    np.testing.assert_array_equal(trace.gradient_norm, 0)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("momentum", "decay"), [(0.5, 0.0474), (0.0, 0.0)])
def test_loss_of_a_repeated_chunk_falls(seed, momentum, decay):
    """Mean step 1/2 per token, d = 32: monotone over 12 chunks, below a third."""
    repeats, width, length = 13, 32, 16
    queries, writes, _ = problem(
        chunks=repeats, width=width, length=length, batch=1, seed=seed
    )
    rng = np.random.default_rng(seed)
    limit = (6 / (5 * width)) ** 0.5  # Glorot.
    initial = MemoryWeights(
        rng.uniform(-limit, limit, (width, 4 * width)),
        rng.uniform(-limit, limit, (width, 4 * width)),
        np.zeros(width),
    )
    writes = ChunkWrites(
        *(np.repeat(x[:, :1], repeats - 1, axis=1) for x in writes[:2]),
        token_weights=np.full((1, repeats - 1, length), 0.5 / length),
        momentum=np.full((1, repeats - 1), momentum),
        decay=np.full((1, repeats - 1), decay),
    )
    with jax.enable_x64():
        _, trace = run(queries, writes, initial, trace=True)
    losses = np.asarray(trace.loss_before[0])
    assert (np.diff(losses) < 0).all()
    assert losses[-1] < losses[0] / 3
    # The loss after a write is the loss before the next one, the chunk being the same.
    np.testing.assert_allclose(trace.loss_after[0, :-1], losses[1:], rtol=1e-12)


def test_a_chunk_knows_only_the_chunks_before_it():
    queries, writes, initial = problem()
    changed = jax.tree.map(np.copy, writes)
    changed.keys[:, 1] += 1.0
    with jax.enable_x64():
        one, _ = run(queries, writes, initial)
        other, _ = run(queries, changed, initial)
        swapped, _ = run(
            queries, jax.tree.map(lambda x: x[:, np.array([1, 0, 2])], writes), initial
        )
    np.testing.assert_array_equal(one[:, :2], other[:, :2])
    assert (np.abs(one[:, 2:] - other[:, 2:]).max(axis=(0, 2, 3)) > 1e-3).all()
    np.testing.assert_array_equal(one[:, 0], swapped[:, 0])
    assert np.abs(one[:, 1:] - swapped[:, 1:]).max() > 1e-3


def test_order_inside_a_chunk_does_not_matter():
    queries, writes, initial = problem()
    order = np.array([2, 0, 1])
    shuffled = jax.tree.map(np.copy, writes)
    for one, other in zip(writes[:3], shuffled[:3], strict=True):
        other[:, 1] = one[:, 1, order]
    moved = queries.copy()
    moved[:, 1] = queries[:, 1, order]
    with jax.enable_x64():
        one, _ = run(queries, writes, initial)
        other, _ = run(moved, shuffled, initial)
    np.testing.assert_allclose(other[:, 1], one[:, 1, order], rtol=0, atol=1e-14)
    np.testing.assert_allclose(other[:, 2:], one[:, 2:], rtol=0, atol=1e-13)


@pytest.mark.parametrize("form", ["scan", "associative"])
def test_images_do_not_share_a_memory(form):
    """Row 0 keeps its bits whatever the other images are."""
    queries, writes, initial = jax.tree.map(np.float32, problem(batch=4))
    rule = UpdateRule(grad_at="initial")
    order = np.array([0, 3, 1, 2])
    one, _ = run(queries, writes, initial, form=form, rule=rule)
    other, _ = run(
        queries[order],
        jax.tree.map(lambda x: x[order], writes),
        initial,
        form=form,
        rule=rule,
    )
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[order], other)


@pytest.mark.parametrize("form", ["scan", "associative"])
def test_one_chunk_is_answered_by_the_initial_memory(form):
    queries, writes, initial = problem(chunks=1)
    rule = UpdateRule(grad_at="initial")
    with jax.enable_x64():
        y, trace = run(queries, writes, initial, form=form, rule=rule, trace=True)
    assert trace is None
    expected, _ = reference.memory(queries, writes, initial=initial)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("chunks", [T, 5])
def test_truncation_cuts_the_gradient_and_nothing_else(chunks):
    """Cut before chunks 2 and 4: which writes each answer learns from."""
    queries, writes, initial = problem(chunks=chunks)

    def answers(keys, bptt_chunks):
        y, _ = run(
            queries, writes._replace(keys=keys), initial, bptt_chunks=bptt_chunks
        )
        return jnp.sum(jnp.square(y), axis=(0, 2, 3))  # (T,)

    with jax.enable_x64():
        whole, cut = answers(writes.keys, None), answers(writes.keys, 2)
        slopes = jax.jacrev(answers)(writes.keys, 2)  # (T, B, U, L, D)
    np.testing.assert_array_equal(whole, cut)
    learns = np.abs(slopes).max(axis=(1, 3, 4)) > 0
    expected = np.zeros((chunks, chunks - 1), bool)
    expected[1, 0] = expected[3, 2] = True
    np.testing.assert_array_equal(learns, expected)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_a_hundred_chunks_stay_finite(dtype):
    """Step 1 in the mean, clip 1, decay 5 %; projections at 10 and 150 times 0.02."""
    chunks, width, length = 100, 32, 41
    rng = np.random.default_rng(0)
    _, writes, initial = jax.tree.map(
        np.float32, problem(chunks=chunks, width=width, length=length, batch=1)
    )
    features = rng.standard_normal((1, chunks, length, width)).astype(np.float32)

    @jax.jit
    def course(arguments):
        y, trace = memory_scan.scan_memory(
            arguments[0],
            arguments[1],
            initial=arguments[2],
            rule=UpdateRule(dtype=dtype),
            trace=True,
        )
        return jnp.mean(jnp.square(y)), trace

    for std in (0.2, 3.0):
        maps = std * rng.standard_normal((3, width, width)).astype(np.float32)
        steps = np.full((1, chunks - 1, length), 0.5 / length, np.float32)
        arguments = (
            features @ maps[0],
            writes._replace(
                keys=features[:, :-1] @ maps[1],
                values=features[:, :-1] @ maps[2],
                token_weights=steps,
                decay=np.full((1, chunks - 1), 0.0474, np.float32),
            ),
            initial,
        )
        (loss, trace), slopes = jax.value_and_grad(course, has_aux=True)(arguments)
        for leaf in jax.tree.leaves((loss, trace, slopes)):
            assert np.isfinite(leaf).all()
        assert np.asarray(trace.weight_norm).max() < 100


def test_multiply_adds():
    """8 d^2 for each token read and 20 d^2 for each written, T - 1 chunks of T."""
    queries, writes, initial = problem()
    macs = flops.count_macs(run, queries, writes, initial)
    assert macs == B * D**2 * L * (8 * T + 20 * (T - 1))
    rule = UpdateRule(grad_at="initial")
    associative = functools.partial(run, form="associative", rule=rule)
    assert flops.count_macs(associative, queries, writes, initial) == macs


def test_refuses_what_does_not_fit():
    queries, writes, initial = problem()
    rule = UpdateRule()
    with pytest.raises(ValueError, match=r"3 chunks are written and 4 read.* needs 4"):
        memory_scan.scan_memory(
            queries, writes, initial=initial, rule=rule, read="after"
        )
    with pytest.raises(ValueError, match="read='during' is unknown"):
        memory_scan.scan_memory(
            queries, writes, initial=initial, rule=rule, read="during"
        )
    with pytest.raises(ValueError, match="grad_at='next' is unknown"):
        memory_scan.scan_memory(
            queries, writes, initial=initial, rule=UpdateRule(grad_at="next")
        )
    with pytest.raises(ValueError, match="associative form needs"):
        memory_scan.associative_memory(queries, writes, initial=initial, rule=rule)
