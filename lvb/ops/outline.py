"""Parts of a program that XLA:CPU computes once, whoever reads them.

XLA:CPU fuses a sum of shifted products into every reduction that reads its result, and
computes it anew in each: a layer norm behind a 7 x 7 depthwise convolution computes the
convolution three times, and each of the 49 taps of its kernel's gradient the
convolution and the layer norm's gradient. `jax.lax.optimization_barrier` does not stop
it, since it is gone before fusion. A call that is not inlined does: its arguments and
results lie in memory.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import xla_metadata


def outlined(
    function: Callable[..., Any], *, static_argnums: Sequence[int] = ()
) -> Callable[..., Any]:
    """A function that programs for CPUs call, where others have it inlined.

    For what nobody differentiates or exports: the rules of a custom gradient, and what
    such a rule stands for.

    Args:
      function: of arrays, and of the constants that `static_argnums` names.
      static_argnums: positions of hashable arguments.

    Returns:
      The function, equal in value.
    """
    compiled = jax.jit(function, static_argnums=static_argnums)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        if jax.default_backend() != "cpu":
            return compiled(*args)
        with xla_metadata.set_xla_metadata(inlineable="false"):
            return compiled(*args)

    return call
