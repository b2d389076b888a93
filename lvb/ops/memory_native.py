"""`lvb.ops.memory_walk` as a native program for CPUs, float32.

XLA's program takes each operation over all rows of a chunk and shares out each product
anew. Here tiles of rows pass through all operations while they are in the cache, and
threads meet three times a chunk; the last chunk's read is part of the walk.
`memory_forward.h` and `memory_backward.h` hold it; `lvb.ops.native` compiles it.
Dimensions: B images, T chunks read, T - 1 written, L tokens of a chunk, d width.
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lvb.ops import native
from lvb.ops.neural_memory import ChunkWrites, MemoryWeights, UpdateRule

_SOURCE = pathlib.Path(__file__).with_name("memory_native.cc")
_THERE, _BACK = "lvb_memory_there", "lvb_memory_back"
_PANEL = 16  # Columns of a panel, as `panels.h` says.


class _Kept(NamedTuple):
    """What the walk back needs of all images; matrices lie in panels.

    Attributes:
      states: M_t and V_t, (B, T, 2, 8 d^2 + d).
      before: a of keys and queries, (B, (2 T - 1) L, 4d).
      normalised: n, (B, (2 T - 1) L, d).
      inverse_deviation: r, (B, (2 T - 1) L).
      d_z: P, (B, (T - 1) L, d).
      d_hidden: H, (B, (T - 1) L, 4d).
      squares: |g|^2 of each tensor of the gradient, (B, T - 1, 3).
    """

    states: jax.Array
    before: jax.Array
    normalised: jax.Array
    inverse_deviation: jax.Array
    d_z: jax.Array
    d_hidden: jax.Array
    squares: jax.Array


def is_available() -> bool:
    """Whether the program can be had here; compiles it at the first call."""
    return native.load(_SOURCE, (_THERE, _BACK))


def fits(queries: jax.Array, initial: MemoryWeights, rule: UpdateRule) -> bool:
    """Whether `walk` computes what such arrays and constants ask for.

    Args:
      queries: q, (B, T, L, d).
      initial: M_0.
      rule: the constants of the update.
    """
    return (
        rule.grad_at == "previous"
        and rule.second_order
        and jnp.dtype(rule.dtype or jnp.float32) == jnp.float32
        and all(weights.dtype == jnp.float32 for weights in initial)
        and all(isinstance(size, int) for size in queries.shape)  # Not symbolic.
        and queries.shape[1] > 1
        and queries.shape[-1] % _PANEL == 0
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def walk(
    queries: jax.Array,
    writes: ChunkWrites,
    initial: MemoryWeights,
    rule: UpdateRule,
    bptt_chunks: int | None,
) -> jax.Array:
    """`memory_scan.scan_memory` for reads before writes; reverse mode only.

    Args:
      queries: q, (B, T, L, d), float32 as all arrays.
      writes: of all chunks but the last, every array with leading axes (B, T - 1).
      initial: M_0, the same for all images.
      rule: the constants of the update, such that it `fits`.
      bptt_chunks: as for `scan_memory`.

    Returns:
      y, (B, T, L, d).
    """
    del bptt_chunks  # It only cuts gradients.
    return _there(queries, writes, initial, rule, kept=())[0]


def _there(
    queries: jax.Array,
    writes: ChunkWrites,
    initial: MemoryWeights,
    rule: UpdateRule,
    kept: Sequence[tuple[int, ...]],
) -> list[jax.Array]:
    """The answers and, if their shapes are given, the arrays of `_Kept`."""
    call = _call(_THERE, [queries.shape, *kept])
    return call(queries, *writes, *initial, **_constants(rule))


def _forward(
    queries: jax.Array,
    writes: ChunkWrites,
    initial: MemoryWeights,
    rule: UpdateRule,
    bptt_chunks: int | None,
) -> tuple[jax.Array, tuple[jax.Array, ChunkWrites, _Kept]]:
    del bptt_chunks
    shapes = _kept_shapes(*queries.shape)
    answers, *kept = _there(queries, writes, initial, rule, shapes)
    return answers, (queries, writes, _Kept(*kept))


def _backward(
    rule: UpdateRule,
    bptt_chunks: int | None,
    residuals: tuple[jax.Array, ChunkWrites, _Kept],
    answers_bar: jax.Array,
) -> tuple[jax.Array, ChunkWrites, MemoryWeights]:
    queries, writes, kept = residuals
    batch, width = queries.shape[0], queries.shape[-1]
    matrix = (batch, width, 4 * width)
    call = _call(
        _BACK,
        [x.shape for x in (queries, *writes)] + [matrix, matrix, (batch, width)],
    )
    slopes = call(
        queries,
        *writes,
        *kept,
        answers_bar,
        cut=np.int64(bptt_chunks or 0),
        **_constants(rule),
    )
    queries_bar, writes_bar, initial_bar = slopes[0], slopes[1:6], slopes[6:]
    initial_bar = MemoryWeights(*(jnp.sum(x, axis=0) for x in initial_bar))
    return queries_bar, ChunkWrites(*writes_bar), initial_bar


walk.defvjp(_forward, _backward)


def _kept_shapes(
    batch: int, chunks: int, length: int, width: int
) -> list[tuple[int, ...]]:
    rows, keys = (2 * chunks - 1) * length, (chunks - 1) * length
    shapes = _Kept(
        states=(chunks, 2, 8 * width**2 + width),
        before=(rows, 4 * width),
        normalised=(rows, width),
        inverse_deviation=(rows,),
        d_z=(keys, width),
        d_hidden=(keys, 4 * width),
        squares=(chunks - 1, 3),
    )
    return [(batch, *shape) for shape in shapes]


def _call(target: str, shapes: Sequence[tuple[int, ...]]) -> Any:
    """The program as a function of arrays and attributes to float32 arrays."""
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.ffi.ffi_call(target, results, vmap_method="sequential")


def _constants(rule: UpdateRule) -> dict[str, np.float32]:
    return dict(epsilon=np.float32(rule.norm_epsilon), clip=np.float32(rule.clip))
