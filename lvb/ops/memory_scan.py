"""The neural memory walked over all chunks of all images, ConvNeur §3.3.

`scan_memory` takes one chunk after the other; `associative_memory` gives the same
result in parallel where all inner gradients are taken at M_0. Both are differentiable
in every array. Dimensions: B images, T chunks read, U chunks written, L tokens of a
chunk, d width.
"""

import functools
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from lvb.ops import memory_native, memory_walk, neural_memory
from lvb.ops.neural_memory import ChunkWrites, MemoryState, MemoryWeights, UpdateRule

READS = ("before", "after")
_State = TypeVar("_State")


class MemoryTrace(NamedTuple):
    """The course of the memory of each image, all (B, U).

    Attributes:
      loss_before: J_t at M_{t-1}.
      loss_after: J_t at M_t.
      gradient_norm: |g_t| over all weights, before the clip.
      weight_norm: |M_t| over all weights.
      update_norm: |M_t - M_{t-1}| over all weights.
    """

    loss_before: jax.Array
    loss_after: jax.Array
    gradient_norm: jax.Array
    weight_norm: jax.Array
    update_norm: jax.Array


def scan_memory(
    queries: jax.Array,
    writes: ChunkWrites,
    *,
    initial: MemoryWeights,
    rule: UpdateRule,
    read: str = "before",
    bptt_chunks: int | None = None,
    trace: bool = False,
    native: bool = False,
) -> tuple[jax.Array, MemoryTrace | None]:
    """Reads and writes all chunks in order, each image with a memory of its own.

    Args:
      queries: q, (B, T, L, d).
      writes: of the first U chunks, every array with leading axes (B, U). U = T - 1 for
        `read="before"`, because nobody reads what the last chunk would leave, and
        U = T for `read="after"`.
      initial: M_0, the same for all images.
      rule: the constants of the update.
      read: "before": chunk t is answered by M_{t-1}, Eq. (2); "after": by M_t.
      bptt_chunks: cuts the outer gradient through the state before chunks K, 2K, ...
        (counted from 0), so that a write learns from K - 1 reads at most (K for
        `read="after"`); None never cuts.
      trace: whether to return the course of the memory; costs two inner forward passes.
      native: whether `lvb.ops.memory_native` computes what it can, where it is
        available.

    Returns:
      y, (B, T, L, d) in the dtype of `initial`; the trace, or None.

    Raises:
      ValueError: if a choice is unknown or the number of writes does not fit.
    """
    _check(queries, writes, rule, read)
    native = native and read == "before" and not trace
    native = native and memory_native.fits(queries, initial, rule)
    if native and memory_native.is_available():
        arrays = jax.tree.map(lambda x: x.astype(jnp.float32), (queries, writes))
        return memory_native.walk(*arrays, initial, rule, bptt_chunks), None
    scan = functools.partial(
        _scan_image,
        initial=initial,
        rule=rule,
        read=read,
        bptt_chunks=bptt_chunks,
        trace=trace,
    )
    return jax.vmap(scan)(queries, writes)


def associative_memory(
    queries: jax.Array,
    writes: ChunkWrites,
    *,
    initial: MemoryWeights,
    rule: UpdateRule,
    read: str = "before",
    trace: bool = False,
) -> tuple[jax.Array, MemoryTrace | None]:
    """`scan_memory` for `grad_at="initial"`, with the chunks in parallel.

    With all gradients taken at M_0, V and M are first-order linear recurrences, which
    `lax.associative_scan` solves in log(U) steps; it holds U copies of the weights.

    Args:
      queries: q, (B, T, L, d).
      writes: of the first U chunks, as for `scan_memory`.
      initial: M_0.
      rule: the constants of the update, with `grad_at="initial"`.
      read: "before" or "after", as for `scan_memory`.
      trace: whether to return the course of the memory.

    Returns:
      As `scan_memory`.

    Raises:
      ValueError: if `rule.grad_at` is "previous", or as `scan_memory`.
    """
    _check(queries, writes, rule, read)
    if rule.grad_at != "initial":
        raise ValueError(
            f"memory: grad_at={rule.grad_at!r} makes each chunk depend on the one "
            'before; the associative form needs grad_at="initial".'
        )
    associate = functools.partial(
        _associate_image, initial=initial, rule=rule, read=read, trace=trace
    )
    return jax.vmap(associate)(queries, writes)


def _scan_image(
    queries: jax.Array,
    writes: ChunkWrites,
    *,
    initial: MemoryWeights,
    rule: UpdateRule,
    read: str,
    bptt_chunks: int | None,
    trace: bool,
) -> tuple[jax.Array, MemoryTrace | None]:
    """`scan_memory` of one image, without its leading axis B."""

    def step(
        state: MemoryState, chunk: tuple[jax.Array, ChunkWrites, jax.Array]
    ) -> tuple[MemoryState, tuple[jax.Array, MemoryTrace | None]]:
        query, write, index = chunk
        state = _truncate(state, index, bptt_chunks)
        after, gradient = neural_memory.memory_update(
            state, write, initial=initial, rule=rule
        )
        source = state if read == "before" else after
        output = neural_memory.memory_read(source.weights, query, rule=rule)
        row = None
        if trace:
            row = _trace_row(state.weights, after.weights, gradient, write, rule=rule)
        return after, (output, row)

    num_writes = writes.decay.shape[0]
    if not num_writes:
        return neural_memory.memory_read(initial, queries[0], rule=rule)[None], None
    # Both at M_{t-1}, and differentiated alike.
    same_weights = read == "before" and rule.grad_at == "previous" and rule.second_order
    if same_weights and rule.analytic and not trace:
        rows = None
        outputs, weights = memory_walk.walk(
            queries[:num_writes], writes, initial, rule, bptt_chunks
        )
    else:
        state = MemoryState(initial, jax.tree.map(jnp.zeros_like, initial))
        # Without the checkpoint each step would keep its activations, several (L, 4d).
        # On a CPU it keeps those that are matrix products: a seventh faster, for half
        # as much memory again.
        keep = jax.checkpoint_policies.save_only_these_names(neural_memory.PRODUCT)
        (weights, _), (outputs, rows) = lax.scan(
            jax.checkpoint(step, prevent_cse=False, policy=keep),
            state,
            (queries[:num_writes], writes, jnp.arange(num_writes)),
        )
    if read == "before":
        weights = _truncate(weights, jnp.asarray(num_writes), bptt_chunks)
        last = neural_memory.memory_read(weights, queries[-1], rule=rule)
        outputs = jnp.concatenate([outputs, last[None]])
    return outputs, rows


def _truncate(state: _State, index: jax.Array, bptt_chunks: int | None) -> _State:
    """The state, or a part of it, as chunk `index` finds it, perhaps cut off."""
    if bptt_chunks is None:
        return state
    cut = (index > 0) & (index % bptt_chunks == 0)
    return jax.tree.map(lambda x: jnp.where(cut, lax.stop_gradient(x), x), state)


def _associate_image(
    queries: jax.Array,
    writes: ChunkWrites,
    *,
    initial: MemoryWeights,
    rule: UpdateRule,
    read: str,
    trace: bool,
) -> tuple[jax.Array, MemoryTrace | None]:
    """`associative_memory` of one image, without its leading axis B."""
    if not writes.decay.shape[0]:
        return neural_memory.memory_read(initial, queries[0], rule=rule)[None], None
    gradients = jax.vmap(
        functools.partial(neural_memory.inner_gradient, initial, rule=rule)
    )(writes)
    clipped = jax.vmap(functools.partial(neural_memory.smooth_clip, clip=rule.clip))(
        gradients
    )
    momentum = jax.tree.map(
        lambda g: _linear_recurrence(writes.momentum, -g, start=jnp.zeros_like(g[0])),
        clipped,
    )
    states = jax.tree.map(
        lambda v, m: jnp.concatenate(
            [m[None], _linear_recurrence(1 - writes.decay, v, start=m)]
        ),
        momentum,
        initial,
    )  # M_0 ... M_U
    before = jax.tree.map(lambda m: m[:-1], states)
    after = jax.tree.map(lambda m: m[1:], states)
    outputs = jax.vmap(functools.partial(neural_memory.memory_read, rule=rule))(
        states if read == "before" else after, queries
    )
    if not trace:
        return outputs, None
    rows = jax.vmap(functools.partial(_trace_row, rule=rule))(
        before, after, gradients, writes
    )
    return outputs, rows


def _linear_recurrence(
    factors: jax.Array, terms: jax.Array, *, start: jax.Array
) -> jax.Array:
    """x_t = factors_t x_{t-1} + terms_t for t = 0 ... U - 1, with x_{-1} = start."""
    factors = jnp.reshape(factors, (-1,) + (1,) * start.ndim)  # (U, 1, ...)
    terms = terms.at[0].add(factors[0] * start)

    def compose(first: tuple, second: tuple) -> tuple:
        """The affine map `second` after `first`."""
        return first[0] * second[0], second[0] * first[1] + second[1]

    return lax.associative_scan(compose, (factors, terms))[1]


def _trace_row(
    before: MemoryWeights,
    after: MemoryWeights,
    gradient: MemoryWeights,
    write: ChunkWrites,
    *,
    rule: UpdateRule,
) -> MemoryTrace:
    return MemoryTrace(
        loss_before=neural_memory.inner_loss(before, write, rule=rule),
        loss_after=neural_memory.inner_loss(after, write, rule=rule),
        gradient_norm=_global_norm(gradient),
        weight_norm=_global_norm(after),
        update_norm=_global_norm(jax.tree.map(jnp.subtract, after, before)),
    )


def _global_norm(weights: MemoryWeights) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(jnp.square(w)) for w in weights))


def _check(
    queries: jax.Array, writes: ChunkWrites, rule: UpdateRule, read: str
) -> None:
    if read not in READS:
        raise ValueError(f"memory: read={read!r} is unknown; use one of {READS}.")
    if rule.grad_at not in neural_memory.GRADIENTS_AT:
        raise ValueError(
            f"memory: grad_at={rule.grad_at!r} is unknown; use one of "
            f"{neural_memory.GRADIENTS_AT}."
        )
    num_chunks, num_writes = queries.shape[1], writes.decay.shape[1]
    fitting = num_chunks - (read == "before")
    if num_writes != fitting:
        raise ValueError(
            f"memory: {num_writes} chunks are written and {num_chunks} read; "
            f"read={read!r} needs {fitting} writes."
        )
