"""Convolution with explicit symmetric padding, in the form the backend likes."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lvb.layers import module
from lvb.ops import convolution

Initializer = Callable[..., jax.Array]

# PyTorch's default: uniform in +-1/sqrt(fan_in) (Kaiming uniform with a = sqrt(5)).
torch_uniform: Initializer = nn.initializers.variance_scaling(
    1 / 3, "fan_in", "uniform"
)


def trunc_normal(stddev: float) -> Initializer:
    """The papers' `trunc_normal_(std=stddev)`.

    PyTorch cuts at -2 and 2, not at two deviations; for the deviations in use, 0.02
    and 1/3, that is a plain normal up to one draw in 10^8.
    """
    return nn.initializers.normal(stddev)


def torch_uniform_bias(fan_in: int) -> Initializer:
    """PyTorch's default bias: uniform in +-1/sqrt(fan_in)."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Conv(module.Layer):
    """2-D convolution, (B, H, W, C) -> (B, ceil(H / s), ceil(W / s), features).

    Padding is (k - 1) / 2 on both sides whatever the stride, as in the papers' PyTorch
    code; 'SAME' would pad (0, 1) at stride 2. Parameters are those of `nn.Conv`:
    `kernel` (kh, kw, C / groups, features) and `bias` (features,).

    Attributes:
      features: output channels.
      kernel_size: odd side, or (kh, kw); an even side needs `padding`.
      strides: the stride of both axes.
      groups: channel groups; groups = C is a depthwise convolution.
      use_bias: whether a bias is added.
      padding: pixels on each side of both axes; None is (k - 1) / 2.
      kernel_init: initialiser of the kernel.
      bias_init: initialiser of the bias.
    """

    features: int
    kernel_size: int | tuple[int, int] = 1
    strides: int = 1
    groups: int = 1
    use_bias: bool = False
    padding: int | None = None
    kernel_init: Initializer = torch_uniform
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = pair(self.kernel_size)
        in_features = x.shape[-1]
        if in_features % self.groups or self.features % self.groups:
            raise ValueError(
                f"Conv: {in_features} -> {self.features} channels are not divisible by "
                f"groups={self.groups}; use a common divisor of both."
            )
        shape = (*size, in_features // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        y = convolution.conv2d(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            strides=self.strides,
            padding=self._padding(size),
            groups=self.groups,
            form=self.op_form,
        )
        if self.use_bias:
            bias = self.param(
                "bias", self.bias_init, (self.features,), self.param_dtype
            )
            y = y + jnp.reshape(bias, (1, 1, 1, -1)).astype(self.dtype)
        return y

    def _padding(self, size: tuple[int, int]) -> tuple[int, int]:
        if self.padding is not None:
            return self.padding, self.padding
        if size[0] % 2 == 0 or size[1] % 2 == 0:
            raise ValueError(
                f"Conv: kernel_size={size} has an even side, which cannot be padded "
                "symmetrically; pass padding=."
            )
        return (size[0] - 1) // 2, (size[1] - 1) // 2


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """A side, or two, as (rows, columns)."""
    return (size, size) if isinstance(size, int) else tuple(size)
