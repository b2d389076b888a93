"""Exact evaluation: every example counts once, for any batch and any devices."""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

# Batches on their way to the devices at a time.
_IN_FLIGHT = 2


class Evaluation(NamedTuple):
    """The result of one pass.

    Attributes:
      totals: metric to its total; integers for accuracies.
      count: number of examples.
    """

    totals: dict[str, float | int]
    count: int

    @property
    def means(self) -> dict[str, float]:
        """Metric to its mean over the examples."""
        return {name: total / self.count for name, total in self.totals.items()}


def evaluate(
    eval_step: Callable[[Any, Any, Any], Any],
    variables: Any,
    batches: Iterable[Any],
    *,
    totals: Any,
    num_examples: int,
    between: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Adds up the metrics of all batches.

    Args:
      eval_step: (variables, totals, batch) -> totals, compiled.
      variables: of the model.
      batches: global arrays, padded to one size, with the mask of real rows.
      totals: (total, count) pairs to start from, all zero.
      num_examples: what the masks must sum to.
      between: called between batches; may raise to end the pass.

    Returns:
      Totals and count.

    Raises:
      RuntimeError: if any metric saw another number of examples.
    """
    in_flight: deque[Any] = deque()
    for batch in batches:
        between()
        totals = eval_step(variables, totals, batch)
        in_flight.append(totals)
        if len(in_flight) > _IN_FLIGHT:
            jax.block_until_ready(in_flight.popleft())
    host = jax.device_get(totals)
    for name, pair in host.items():
        if int(pair.count) != num_examples:
            raise RuntimeError(
                f"evaluation counted {int(pair.count)} examples for {name}, but there "
                f"are {num_examples}; the batches or their masks are wrong."
            )
    return Evaluation(
        {name: pair.total.item() for name, pair in host.items()}, num_examples
    )
