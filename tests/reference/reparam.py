"""Batch norm channel by channel and FMViT Eq. (1) branch by branch, float64."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from reference import convolution


def conv_loops(
    x: np.ndarray,
    kernel: np.ndarray,
    *,
    strides: int = 1,
    groups: int = 1,
    bias: np.ndarray | float = 0.0,
) -> np.ndarray:
    """CONV(K_h, K_w, G) with (K - 1) / 2 zeros around x (B, H, W, C)."""
    margins = tuple((side - 1) // 2 for side in kernel.shape[:2])
    y = convolution.conv2d(x, kernel, strides=strides, padding=margins, groups=groups)
    return y + bias


def batch_norm_loops(
    x: np.ndarray,
    params: Mapping[str, Any],
    stats: Mapping[str, Any],
    *,
    epsilon: float = 1e-5,
) -> np.ndarray:
    """Normalises each channel of (..., C) with stored statistics."""
    y = np.empty(x.shape)
    for c in range(x.shape[-1]):
        deviation = math.sqrt(float(stats["var"][c]) + epsilon)
        normalised = (x[..., c] - float(stats["mean"][c])) / deviation
        y[..., c] = float(params["scale"][c]) * normalised + float(params["bias"][c])
    return y


def multi_branch_loops(
    x: np.ndarray,
    variables: Mapping[str, Any],
    *,
    groups: tuple[int, ...],
    strides: int = 1,
    shortcut: bool = False,
) -> np.ndarray:
    """Eq. (1) term by term; `groups` are those of branch0, branch1, ..."""
    params, stats = variables["params"], variables["batch_stats"]
    total = x.copy() if shortcut else 0.0
    for index, number in enumerate(groups):
        name = f"branch{index}"
        kernel = np.asarray(params[name]["conv"]["kernel"])
        y = conv_loops(x, kernel, strides=strides, groups=number)
        total = total + batch_norm_loops(y, params[name]["norm"], stats[name]["norm"])
    if "identity" in params:
        total = total + batch_norm_loops(x, params["identity"], stats["identity"])
    return total
