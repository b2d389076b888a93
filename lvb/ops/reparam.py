"""The algebra of structural reparameterisation, in NumPy float64.

A branch that is linear at inference is a convolution kernel and a bias; the functions
here bring every branch of FMViT Eq. (1) to the same kernel shape, so that kernels and
biases can be added. Kernels are (kh, kw, C_in / groups, C_out).
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Affine(NamedTuple):
    """A per-channel map y = scale * x + offset, each (C,)."""

    scale: np.ndarray
    offset: np.ndarray


class Kernel(NamedTuple):
    """A convolution with bias: kernel (kh, kw, C_in / groups, C_out), bias (C_out,)."""

    kernel: np.ndarray
    bias: np.ndarray


def batch_norm_affine(
    params: Mapping[str, ArrayLike],
    batch_stats: Mapping[str, ArrayLike],
    *,
    epsilon: float,
) -> Affine:
    """The affine map that a batch normalisation is at inference.

        y = (x - mean) / sqrt(var + epsilon) * scale + bias

    Args:
      params: "scale" and "bias", each (C,); either may be absent (1 and 0).
      batch_stats: "mean" and "var", each (C,).
      epsilon: the layer's epsilon.

    Returns:
      The map, float64.
    """
    mean = np.asarray(batch_stats["mean"], np.float64)
    var = np.asarray(batch_stats["var"], np.float64)
    scale = np.asarray(params.get("scale", 1.0), np.float64) / np.sqrt(var + epsilon)
    offset = np.asarray(params.get("bias", 0.0), np.float64) - mean * scale
    return Affine(scale, offset)


def fold_after(kernel: ArrayLike, affine: Affine, *, bias: ArrayLike = 0.0) -> Kernel:
    """Folds an affine map that follows a convolution into it.

    Args:
      kernel: (kh, kw, C_in / groups, C_out).
      affine: the map on the C_out output channels.
      bias: the convolution's own bias, (C_out,) or 0.

    Returns:
      The convolution followed by the map, as one convolution.
    """
    kernel = np.asarray(kernel, np.float64) * affine.scale
    return Kernel(kernel, np.asarray(bias, np.float64) * affine.scale + affine.offset)


def fold_before(affine: Affine, kernel: ArrayLike, *, bias: ArrayLike = 0.0) -> Kernel:
    """Folds an affine map that precedes a dense layer into it.

    Exact for a matrix only: a zero-padded convolution would see the offset missing at
    the border.

    Args:
      affine: the map on the C_in input channels.
      kernel: (C_in, C_out).
      bias: the layer's own bias, (C_out,) or 0.

    Returns:
      The map followed by the layer, as one layer; `kernel` is (C_in, C_out).
    """
    kernel = np.asarray(kernel, np.float64)
    return Kernel(
        affine.scale[:, None] * kernel,
        np.asarray(bias, np.float64) + affine.offset @ kernel,
    )


def expand_groups(kernel: ArrayLike, *, groups: int, to_groups: int = 1) -> np.ndarray:
    """Writes a grouped kernel as an equal kernel of fewer groups (FMViT Fig. 3).

    Args:
      kernel: (kh, kw, C_in / groups, C_out).
      groups: its number of groups.
      to_groups: the number of groups wanted, a divisor of `groups`.

    Returns:
      The kernel (kh, kw, C_in / to_groups, C_out), block-diagonal in each group.
    """
    kernel = np.asarray(kernel, np.float64)
    if groups % to_groups:
        raise ValueError(
            f"expand_groups: a kernel of {groups} groups cannot be written with "
            f"{to_groups} groups; use a divisor of {groups}."
        )
    height, width, fan_in, out = kernel.shape
    ratio = groups // to_groups
    block = out // groups
    dense = np.zeros((height, width, fan_in * ratio, out))
    for group in range(groups):
        row = (group % ratio) * fan_in
        columns = slice(group * block, (group + 1) * block)
        dense[:, :, row : row + fan_in, columns] = kernel[..., columns]
    return dense


def pad_kernel(kernel: ArrayLike, *, size: tuple[int, int]) -> np.ndarray:
    """Centres a kernel of odd sides in a larger one, zeros around it.

    Exact at any stride if both are padded symmetrically by (k - 1) / 2.

    Args:
      kernel: (kh, kw, C_in / groups, C_out).
      size: the sides wanted, odd and not smaller.

    Returns:
      The kernel (*size, C_in / groups, C_out).
    """
    kernel = np.asarray(kernel, np.float64)
    margins = [(size[axis] - kernel.shape[axis]) for axis in (0, 1)]
    if any(margin < 0 or margin % 2 for margin in margins):
        raise ValueError(
            f"pad_kernel: a {kernel.shape[0]}x{kernel.shape[1]} kernel cannot be "
            f"centred in {size[0]}x{size[1]}; sides must be odd and not smaller."
        )
    return np.pad(kernel, [(m // 2, m // 2) for m in margins] + [(0, 0), (0, 0)])


def identity_kernel(channels: int, *, groups: int = 1) -> np.ndarray:
    """The 1x1 kernel that returns its input, (1, 1, channels / groups, channels)."""
    fan_in = channels // groups
    return np.tile(np.eye(fan_in), (1, groups))[None, None]


def merge(branches: list[Kernel]) -> Kernel:
    """Adds parallel convolutions of one kernel shape, as one convolution."""
    return Kernel(
        np.sum([branch.kernel for branch in branches], axis=0),
        np.sum([branch.bias for branch in branches], axis=0),
    )
