"""Adaptive gradient clipping, one output unit at a time, arXiv:2102.06171, Eq. (3)."""

import math

import numpy as np


def units(name: str, shape: tuple[int, ...]) -> list[tuple]:
    """Indexes the units of a parameter: the filters, neurons or table rows.

    Args:
      name: last path component; a "kernel" has its outputs on the last axis, any
        other matrix its rows on the first.
      shape: of the parameter.
    """
    if len(shape) <= 1:
        return [(...,)]
    if name == "kernel":
        return [(..., unit) for unit in range(shape[-1])]
    return [(unit, ...) for unit in range(shape[0])]


def clip(grad: np.ndarray, param: np.ndarray, *, name: str, ratio: float, eps: float):
    """Returns the clipped gradient."""
    out = grad.astype(np.float64).copy()
    for unit in units(name, grad.shape):
        grad_norm = math.sqrt(sum(float(g) ** 2 for g in grad[unit].ravel()))
        param_norm = math.sqrt(sum(float(p) ** 2 for p in param[unit].ravel()))
        limit = ratio * max(param_norm, eps)
        if grad_norm > limit:
            out[unit] = out[unit] * limit / grad_norm
    return out
