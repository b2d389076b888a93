"""What a compiled program needs: operations, memory traffic and memory."""

from typing import Any, NamedTuple


class Cost(NamedTuple):
    """The needs of one call, as the compiler counts them.

    The body of a loop counts once: a scan over T chunks needs T times what it adds.

    Attributes:
      flops: operations, a multiply-add being two.
      bytes_accessed: that the program's fusions read and write, caches left aside.
      peak_bytes: memory of arguments, results and what lies between them.
      argument_bytes: of the arguments.
      output_bytes: of the results that do not take the memory of an argument.
      temp_bytes: of what lies between them.
    """

    flops: float
    bytes_accessed: float
    peak_bytes: int
    argument_bytes: int
    output_bytes: int
    temp_bytes: int


def cost(compiled: Any) -> Cost:
    """Reads the needs of an executable.

    Args:
      compiled: from `jax.jit(...).lower(...).compile()`.

    Returns:
      The needs; what a backend does not tell is 0.
    """
    counts = compiled.cost_analysis() or {}
    memory = compiled.memory_analysis()

    def size(name: str) -> int:
        return int(getattr(memory, f"{name}_size_in_bytes", 0))

    output = max(0, size("output") - size("alias"))
    return Cost(
        flops=float(counts.get("flops", 0)),
        bytes_accessed=float(counts.get("bytes accessed", 0)),
        peak_bytes=size("argument") + output + size("temp"),
        argument_bytes=size("argument"),
        output_bytes=output,
        temp_bytes=size("temp"),
    )
