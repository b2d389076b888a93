"""Finds the first layer in which a converted LSNet differs from PyTorch's."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util
from numpy.typing import ArrayLike

from lvb.models import lsnet_weights


class Difference(NamedTuple):
    """Where two runs of a network part.

    Attributes:
      torch_name: the module in PyTorch.
      path: the module in lvb.
      error: largest absolute difference of its output; NaN if a value is not finite,
        infinite if the shapes differ.
      scale: largest absolute value of the reference.
    """

    torch_name: str
    path: str
    error: float
    scale: float


def first_difference(
    reference: Mapping[str, ArrayLike],
    intermediates: Mapping[str, Any],
    *,
    tolerance: float = 1e-4,
) -> Difference | None:
    """The first module, in the reference's order, whose output differs.

    Outputs that only one side has are passed over, such as that of PyTorch's
    `mixer` of an LS block, which includes the skip connection.

    Args:
      reference: outputs by PyTorch's module name, (B, C, H, W) or (B, C), in the order
        of execution, for instance from forward hooks.
      intermediates: of `model.apply(variables, images, train=False,
        capture_intermediates=True, mutable=["intermediates"])`.
      tolerance: allowed error relative to the larger of 1 and the reference's scale.

    Returns:
      The difference; None if there is none.

    Raises:
      ValueError: if the two sides have no module in common.
    """
    outputs = {}
    for path, value in traverse_util.flatten_dict(intermediates).items():
        name = lsnet_weights.torch_name("/".join(path[:-1]))
        if path[-1] == "__call__" and name is not None:
            outputs[name] = ("/".join(path[:-1]), value[0])
    shared = [name for name in reference if name in outputs]
    if not shared:
        raise ValueError(
            "first_difference: no name of the reference is a module of LSNet; use "
            f"names such as {', '.join(list(outputs)[:3])}."
        )
    for name in shared:
        path, ours = outputs[name]
        theirs = np.asarray(reference[name], np.float64)
        theirs = np.moveaxis(theirs, 1, -1)
        scale = float(np.max(np.abs(theirs), initial=0.0))
        error = np.inf
        if np.shape(ours) == theirs.shape:
            error = float(np.max(np.abs(theirs - np.asarray(ours)), initial=0.0))
        if not error <= tolerance * max(1.0, scale):  # Also true of NaN.
            return Difference(name, path, error, scale)
    return None
