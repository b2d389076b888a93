"""Rematerialisation of a submodule."""

from typing import Any

import flax.linen as nn
import jax


def call(block: nn.Module, *args: jax.Array, train: bool, remat: bool) -> Any:
    """Calls a submodule, recomputing it in the backward pass if `remat`.

    `nn.remat` on a class traces keyword arguments, and `train` must stay a Python bool;
    here it is closed over. Parameter paths are the same either way.

    Args:
      block: a submodule of the module being traced.
      *args: its array arguments.
      train: its `train`.
      remat: keep only the inputs for the backward pass, not the activations.

    Returns:
      What the block returns.
    """
    if not remat:
        return block(*args, train=train)
    return nn.remat(lambda module, *inputs: module(*inputs, train=train))(block, *args)
