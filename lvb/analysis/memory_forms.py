"""The forms of the neural memory's recurrence, as cases of `operator_forms`."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lvb.analysis import operator_forms
from lvb.ops import forms, memory_native, memory_scan, neural_memory

_CHUNK, _WIDTH = 196, 80  # ConvNeur-M1 at 224 px.
_NUM_CHUNKS = (4, 16)  # Of its stages 2 and 1.


def cases(batch_size: int) -> Iterator[operator_forms.Case]:
    """The recurrence at the shapes of ConvNeur-M1, both readings of Eq. (3)."""
    for grad_at in neural_memory.GRADIENTS_AT:
        for num_chunks in _NUM_CHUNKS:
            yield memory_case((batch_size, num_chunks, _CHUNK, _WIDTH), grad_at=grad_at)


def memory_case(
    shape: tuple[int, int, int, int], *, grad_at: str
) -> operator_forms.Case:
    """The forms of the recurrence.

    Args:
      shape: of the queries, (B, T, L, d).
      grad_at: see `lvb.ops.neural_memory.UpdateRule`. "initial" has a parallel form.
    """
    batch, chunks, length, width = shape
    rng = np.random.default_rng(0)

    def draw(*sizes: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(sizes, np.float32))

    writes = neural_memory.ChunkWrites(
        keys=draw(batch, chunks - 1, length, width),
        values=draw(batch, chunks - 1, length, width),
        token_weights=jax.nn.sigmoid(draw(batch, chunks - 1, length)) / length,
        momentum=jax.nn.sigmoid(draw(batch, chunks - 1)),
        decay=jax.nn.sigmoid(draw(batch, chunks - 1) - 3),
    )
    initial = neural_memory.MemoryWeights(
        hidden=draw(width, 4 * width) * width**-0.5,
        output=draw(width, 4 * width) * (4 * width) ** -0.5,
        gain=jnp.zeros(width),
    )

    def form(walk: Any, analytic: bool, x: Any, initial: Any) -> jax.Array:
        queries, writes = x
        rule = neural_memory.UpdateRule(grad_at=grad_at, analytic=analytic)
        return walk(queries, writes, initial=initial, rule=rule)[0]

    native_scan = functools.partial(memory_scan.scan_memory, native=True)
    walks = {"scan": memory_scan.scan_memory}
    if grad_at == "initial":
        walks["associative"] = memory_scan.associative_memory
    both = {
        f"{name}{', analytic' if analytic else ''}": functools.partial(
            form, walk, analytic
        )
        for name, walk in walks.items()
        for analytic in (False, True)
    }
    chosen = "scan, analytic" if forms.resolve("auto") == "shift" else "scan"
    if (
        grad_at == "previous"
        and forms.takes_native("auto")
        and memory_native.is_available()
    ):
        chosen = "native"
        both[chosen] = functools.partial(form, native_scan, True)
    return operator_forms.Case(
        operator="memory",
        shape=f"{'x'.join(map(str, shape))}, gradient at {grad_at}",
        arguments=((draw(*shape), writes), initial),
        forward=both,
        gradient=both,
        chosen=(chosen, chosen),
    )
