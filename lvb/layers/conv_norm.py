"""Convolution followed by batch normalisation, one convolution when deployed."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from lvb.layers import conv, module, norm
from lvb.ops import reparam


class ConvNorm(module.Layer):
    """Bias-free convolution and batch norm: (B, H, W, C) -> (B, H', W', features).

    Attributes:
      features: output channels.
      kernel_size: odd side, or (kh, kw).
      strides: the stride of both axes.
      groups: channel groups.
      kernel_init: initialiser of the kernel.
      scale_init: initialiser of the batch norm's scale.
      affine: whether the batch norm learns a scale and an offset.
    """

    features: int
    kernel_size: int | tuple[int, int] = 1
    strides: int = 1
    groups: int = 1
    kernel_init: conv.Initializer = conv.torch_uniform
    scale_init: conv.Initializer = nn.initializers.ones
    affine: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = conv.Conv(
            self.features,
            self.kernel_size,
            strides=self.strides,
            groups=self.groups,
            use_bias=self.deploy,
            kernel_init=self.kernel_init,
            name="conv",
            **self.inherited,
        )(x)
        if self.deploy:
            return y
        return norm.batch_norm(
            self,
            train=train,
            name="norm",
            use_scale=self.affine,
            use_bias=self.affine,
            scale_init=self.scale_init,
        )(y)

    def fuse(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Folds the batch norm into the convolution."""
        merged = folded(variables)
        return {"params": {"conv": as_params(merged, self.param_dtype)}}


def folded(variables: Mapping[str, Any]) -> reparam.Kernel:
    """The one convolution that a ConvNorm's variables are at inference."""
    params = variables["params"]
    affine = reparam.batch_norm_affine(
        params.get("norm", {}), variables["batch_stats"]["norm"], epsilon=norm.EPSILON
    )
    return reparam.fold_after(params["conv"]["kernel"], affine)


def as_params(merged: reparam.Kernel, dtype: Any) -> dict[str, np.ndarray]:
    """A fused kernel as the parameters of a convolution with bias."""
    return {
        "kernel": np.asarray(merged.kernel, dtype),
        "bias": np.asarray(merged.bias, dtype),
    }
