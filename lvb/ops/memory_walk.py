"""The memory of one image walked over its chunks, its gradient written out.

What `lvb.ops.memory_scan` computes where each chunk is read, and its gradient taken, at
M_{t-1}, and the outer gradient is of second order. `jax.grad` of that loop repeats
transcendental functions and sums and keeps what follows from the states; here each is
computed once, and the momentum before and after a chunk tells its clipped gradient.
Forward mode is not supported.

Keys k and queries of a chunk go through M as one matrix x, keys first:

    a = x W_1    z = gelu(a) W_2    n = r (z - mean z)    y = x + (1 + gamma) n
    D = 2 theta (y_k - v) / d       E = (1 + gamma) D
    P = r (E - mean E - n mean(n E))       H = P W_2^T      U = gelu'(a_k) H
    dW_1 = k^T U      dW_2 = gelu(a_k)^T P      dgamma = sum_i D n

The functions that undo a step follow these lines backwards. `x_bar` is the slope of the
outer loss in x. Dimensions: U chunks, K keys and L queries of a chunk, d width.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lvb.ops import gelu, neural_memory, sums
from lvb.ops.neural_memory import ChunkWrites, MemoryState, MemoryWeights, UpdateRule


class _Kept(NamedTuple):
    """What the walk back needs of a chunk.

    Attributes:
      state: M_{t-1} and V_{t-1}.
      reaction: what came of its tokens.
      squares: |g|^2 of each tensor of the gradient.
    """

    state: MemoryState
    reaction: neural_memory.Reaction
    squares: MemoryWeights


class _Parts(NamedTuple):
    """Slopes in what a read and a gradient share; the first three of the keys alone.

    Attributes:
      before: in a, (K, 4d).
      hidden: in gelu(a), (K, 4d).
      normalised: in n, (K, d).
      deviation: in r, times r^2 / d, (K, 1).
      output: in W_2, turned around, (d, 4d).
      gain: in gamma, (d,).
    """

    before: jax.Array
    hidden: jax.Array
    normalised: jax.Array
    deviation: jax.Array
    output: jax.Array
    gain: jax.Array


class _Gelu(NamedTuple):
    """gelu(a), its first and its second derivative, all of a's shape."""

    value: jax.Array
    slope: jax.Array
    curvature: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def walk(
    queries: jax.Array,
    writes: ChunkWrites,
    initial: MemoryWeights,
    rule: UpdateRule,
    bptt_chunks: int | None,
) -> tuple[jax.Array, MemoryWeights]:
    """Reads and then writes each chunk, in order.

    Args:
      queries: q, (U, L, d).
      writes: of the same chunks, every array with a leading axis U.
      initial: M_0.
      rule: the constants of the update, with `second_order` and the gradients at the
        previous memory.
      bptt_chunks: as for `memory_scan.scan_memory`.

    Returns:
      y, (U, L, d), and M_U.
    """
    del bptt_chunks  # It only cuts gradients.
    outputs, state, _ = _walk_there(queries, writes, initial, rule)
    return outputs, state.weights


def _walk_there(
    queries: jax.Array, writes: ChunkWrites, initial: MemoryWeights, rule: UpdateRule
) -> tuple[jax.Array, MemoryState, _Kept]:
    def step(
        state: MemoryState, chunk: tuple[jax.Array, ChunkWrites]
    ) -> tuple[MemoryState, tuple[jax.Array, _Kept]]:
        query, write = chunk
        output, gradient, reaction = neural_memory.react(
            state.weights, query, write, rule=rule
        )
        squares = jax.tree.map(lambda g: jnp.sum(jnp.square(g)), gradient)
        after = neural_memory.descend(state, gradient, write, rule=rule)
        return after, (output, _Kept(state, reaction, squares))

    start = MemoryState(initial, jax.tree.map(jnp.zeros_like, initial))
    state, (outputs, kept) = lax.scan(step, start, (queries, writes))
    return outputs, state, kept


def _forward(
    queries: jax.Array,
    writes: ChunkWrites,
    initial: MemoryWeights,
    rule: UpdateRule,
    bptt_chunks: int | None,
) -> tuple[tuple[jax.Array, MemoryWeights], tuple[Any, ...]]:
    del bptt_chunks
    outputs, state, kept = _walk_there(queries, writes, initial, rule)
    return (outputs, state.weights), (queries, writes, state.momentum, kept)


def _backward(
    rule: UpdateRule,
    bptt_chunks: int | None,
    residuals: tuple[jax.Array, ChunkWrites, MemoryWeights, _Kept],
    cotangents: tuple[jax.Array, MemoryWeights],
) -> tuple[jax.Array, ChunkWrites, MemoryWeights]:
    queries, writes, momentum, kept = residuals
    outputs_bar, weights_bar = cotangents

    def step(
        carry: tuple[MemoryState, MemoryWeights], chunk: tuple[Any, ...]
    ) -> tuple[tuple[MemoryState, MemoryWeights], tuple[jax.Array, ChunkWrites]]:
        after_bar, momentum_after = carry
        index, query, write, kept, output_bar = chunk
        state_bar, gradient_bar, momentum_bar, decay_bar = _undo_descend(
            after_bar, kept, momentum_after, write, rule
        )
        weights_bar, query_bar, write_bar = _undo_react(
            output_bar, gradient_bar, kept, query, write, rule
        )
        weights_bar = jax.tree.map(jnp.add, state_bar.weights, weights_bar)
        state_bar = MemoryState(weights_bar, state_bar.momentum)
        if bptt_chunks is not None:
            cut = (index > 0) & (index % bptt_chunks == 0)
            state_bar = jax.tree.map(
                lambda x: jnp.where(cut, jnp.zeros_like(x), x), state_bar
            )
        write_bar = write_bar._replace(momentum=momentum_bar, decay=decay_bar)
        return (state_bar, kept.state.momentum), (query_bar, write_bar)

    end_bar = MemoryState(weights_bar, jax.tree.map(jnp.zeros_like, weights_bar))
    chunks = (jnp.arange(queries.shape[0]), queries, writes, kept, outputs_bar)
    (start_bar, _), (queries_bar, writes_bar) = lax.scan(
        step, (end_bar, momentum), chunks, reverse=True
    )
    return queries_bar, writes_bar, start_bar.weights


walk.defvjp(_forward, _backward)


def _undo_descend(
    after_bar: MemoryState,
    kept: _Kept,
    momentum_after: MemoryWeights,
    write: ChunkWrites,
    rule: UpdateRule,
) -> tuple[MemoryState, MemoryWeights, jax.Array, jax.Array]:
    """Slopes in M_{t-1} and V_{t-1}, in the gradient, in eta and in alpha.

    V_t = eta V_{t-1} - s g,  s = c / sqrt(c^2 + |g|^2)
    M_t = (1 - alpha) M_{t-1} + V_t
    """

    def undo(
        m_bar: jax.Array,
        v_bar: jax.Array,
        m: jax.Array,
        v: jax.Array,
        v_after: jax.Array,
        square: jax.Array,
    ) -> tuple[jax.Array, ...]:
        v_bar = v_bar + m_bar
        g_bar = -v_bar
        if rule.clip:
            inverse = lax.rsqrt(rule.clip**2 + square)
            clipped = write.momentum * v - v_after
            pull = jnp.sum(v_bar * clipped) * (inverse / rule.clip)
            g_bar = pull * clipped - (rule.clip * inverse) * v_bar
        return (
            (1 - write.decay) * m_bar,
            write.momentum * v_bar,
            g_bar,
            jnp.sum(v_bar * v),
            -jnp.sum(m_bar * m),
        )

    tensors = zip(*after_bar, *kept.state, momentum_after, kept.squares, strict=True)
    m_bar, v_bar, g_bar, momentum_bar, decay_bar = zip(
        *(undo(*arrays) for arrays in tensors), strict=True
    )
    state_bar = MemoryState(MemoryWeights(*m_bar), MemoryWeights(*v_bar))
    return state_bar, MemoryWeights(*g_bar), sum(momentum_bar), sum(decay_bar)


def _undo_react(
    output_bar: jax.Array,
    gradient_bar: MemoryWeights,
    kept: _Kept,
    queries: jax.Array,
    write: ChunkWrites,
    rule: UpdateRule,
) -> tuple[MemoryWeights, jax.Array, ChunkWrites]:
    """Slopes in M_{t-1}, in the queries and in keys, values and token weights."""
    weights = kept.state.weights
    a, n, r, _, _ = kept.reaction
    num_keys, width = write.keys.shape
    product = functools.partial(neural_memory.matmul, rule=rule)
    activation = _gelu(a)
    write_bar, parts = _undo_gradient(gradient_bar, kept, write, activation, rule)
    # Of M itself, for keys and queries.
    y_bar = jnp.concatenate([-write_bar.values, output_bar])  # (K + L, d)
    n_bar = _add_above((1 + weights.gain)[None] * y_bar, parts.normalised)
    projected = n_bar - _mean_columns(n_bar) - n * (_sum_columns(n * n_bar) / width)
    z_bar = _add_above(r * projected, -n[:num_keys] * parts.deviation)
    hidden_bar = product(z_bar, weights.output)  # (K + L, 4d)
    a_bar = jnp.concatenate(
        [
            (hidden_bar[:num_keys] + parts.hidden) * activation.slope[:num_keys]
            + parts.before,
            hidden_bar[num_keys:] * activation.slope[num_keys:],
        ]
    )
    x_bar = y_bar + product(a_bar, weights.hidden, contract=(1, 1))
    tokens = jnp.concatenate([write.keys, queries])
    weights_bar = MemoryWeights(
        hidden=product(tokens, a_bar, contract=(0, 0)),
        output=parts.output + product(z_bar, activation.value, contract=(0, 0)),
        gain=parts.gain + sums.sum_rows(y_bar * n, as_product=True)[0],
    )
    write_bar = write_bar._replace(keys=write_bar.keys + x_bar[:num_keys])
    query_bar = x_bar[num_keys:].astype(queries.dtype)
    return weights_bar, query_bar, write_bar


def _undo_gradient(
    gradient_bar: MemoryWeights,
    kept: _Kept,
    write: ChunkWrites,
    activation: _Gelu,
    rule: UpdateRule,
) -> tuple[ChunkWrites, _Parts]:
    """Slopes through the gradient of J: what it shares with the read, and the writes.

    Those of the writes lack what passes through a key's own read, and eta and alpha.
    """
    weights = kept.state.weights
    num_keys, width = write.keys.shape
    _, n, r, p, h = kept.reaction
    n, r = n[:num_keys], r[:num_keys]
    hidden, slope, curvature = (array[:num_keys] for array in activation)
    product = functools.partial(neural_memory.matmul, rule=rule)
    gain = (1 + weights.gain)[None]
    steps = (2 / width) * write.token_weights[:, None]  # (K, 1)
    error = write.keys + gain * n - write.values
    d_output = steps * error  # D
    d_n = gain * d_output  # E
    # dW_1 = k^T U,  U = gelu'(a) H,  H = P W_2^T
    u_bar = product(write.keys, gradient_bar.hidden)  # (K, 4d)
    h_bar = u_bar * slope
    keys_bar = product(slope * h, gradient_bar.hidden, contract=(1, 1))
    output_bar = product(p, h_bar, contract=(0, 0))
    # dW_2 = gelu(a)^T P
    hidden_bar = product(p, gradient_bar.output)
    p_bar = product(h_bar, weights.output, contract=(1, 1))
    p_bar = p_bar + product(hidden, gradient_bar.output, contract=(1, 1))
    # P = r (E - mean E - n mean(n E)), with a symmetric projection.
    scaled = r * p_bar
    overlap = _sum_columns(n * scaled) / width
    d_n_bar = scaled - _mean_columns(scaled) - n * overlap
    n_bar = -scaled * (_sum_columns(n * d_n) / width) - d_n * overlap
    # dgamma = sum_i D n
    d_output_bar = gain * d_n_bar + gradient_bar.gain[None] * n
    n_bar = n_bar + gradient_bar.gain[None] * d_output
    write_bar = ChunkWrites(
        keys=keys_bar,
        values=-steps * d_output_bar,
        token_weights=(2 / width) * _sum_columns(d_output_bar * error)[:, 0],
        momentum=jnp.zeros_like(write.momentum),
        decay=jnp.zeros_like(write.decay),
    )
    parts = _Parts(
        before=u_bar * h * curvature,
        hidden=hidden_bar,
        normalised=n_bar,
        deviation=_sum_columns(p_bar * p) * r / width,
        output=output_bar,
        gain=sums.sum_rows(d_output * d_n_bar, as_product=True)[0],
    )
    return write_bar, parts


def _gelu(x: jax.Array) -> _Gelu:
    """With one exponential and one error function for all three."""
    cdf, density = gelu.normal_cdf(x), gelu.normal_density(x)
    return _Gelu(x * cdf, cdf + x * density, density * (2 - jnp.square(x)))


def _sum_columns(x: jax.Array) -> jax.Array:
    """(R, C) -> (R, 1); of a product, see `lvb.ops.sums`."""
    return sums.sum_columns(x, as_product=True)


def _mean_columns(x: jax.Array) -> jax.Array:
    """(R, C) -> (R, 1)."""
    return jnp.mean(x, axis=-1, keepdims=True)


def _add_above(x: jax.Array, upper: jax.Array) -> jax.Array:
    """Adds `upper` to as many of the first rows."""
    rows = upper.shape[0]
    return jnp.concatenate([x[:rows] + upper, x[rows:]])
