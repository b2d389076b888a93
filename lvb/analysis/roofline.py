"""How fast a program could run on this machine, and how fast it does.

    attainable seconds = max(FLOPs / peak FLOP/s, bytes / peak bytes/s)

with both peaks measured in the same run, interleaved with the programs, and FLOPs and
bytes as the compiler counts them for the compiled program (Williams et al., "Roofline",
2009). Bytes count every read and write of a fusion, also those that a cache serves, so
the bound is an estimate: a network whose maps fit the cache can run faster.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_SIDE = 2048  # Of the matrices; 24 MiB in float32.
_STREAM = 1 << 25  # Numbers: 128 MiB in float32, beyond the caches of a CPU.


class Limits(NamedTuple):
    """What a machine reaches.

    Attributes:
      flops: operations per second in a product of 2048 x 2048 matrices.
      bandwidth: bytes per second of an elementwise pass over 128 MiB.
    """

    flops: float
    bandwidth: float


class Roof(NamedTuple):
    """A program under the roof.

    Attributes:
      attainable_seconds: the least it could take.
      fraction: attainable over measured time; 1 is the roof.
      bound: "compute" or "memory", whichever takes longer.
    """

    attainable_seconds: float
    fraction: float
    bound: str


def limit_contenders(dtype: Any = jnp.float32) -> dict[str, Callable[[], Any]]:
    """The two programs whose speeds are the limits, for `timing.interleave`."""
    matrix = jnp.full((_SIDE, _SIDE), 1 / _SIDE, dtype)
    numbers = jnp.ones((_STREAM,), jnp.float32)
    product = jax.jit(lambda x: x @ x).lower(matrix).compile()
    stream = jax.jit(lambda x: x + 1).lower(numbers).compile()
    return {
        "limit/matmul": lambda: product(matrix),
        "limit/stream": lambda: stream(numbers),
    }


def limits(seconds: Mapping[str, Sequence[float]]) -> Limits:
    """The limits, from the fastest round of each program.

    Args:
      seconds: of every round, by the names of `limit_contenders`.
    """
    return Limits(
        flops=2 * _SIDE**3 / min(seconds["limit/matmul"]),
        bandwidth=2 * 4 * _STREAM / min(seconds["limit/stream"]),
    )


def roof(
    seconds: float, *, flops: float, bytes_accessed: float, limits: Limits
) -> Roof:
    """Places a program under the roof.

    Args:
      seconds: it was measured to take, positive.
      flops: operations of the program.
      bytes_accessed: bytes it reads and writes.
      limits: of the machine.
    """
    compute = flops / limits.flops
    memory = bytes_accessed / limits.bandwidth
    return Roof(
        attainable_seconds=max(compute, memory),
        fraction=max(compute, memory) / seconds,
        bound="compute" if compute >= memory else "memory",
    )
