"""The Large-Small convolution of LSNet, Sec. 3.2: see large, focus small.

Symbols: C channels, K_L the large and K_S the small kernel, G = C / group_width kernels
at each position.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lvb.layers import conv, conv_norm, module, norm
from lvb.ops import dynamic_conv

_EPSILON = 1e-5  # PyTorch's group norm, which the released weights were trained with.


class LargeKernelPerception(module.Layer):
    """LKP, Eq. (7) up to its last layer: (B, H, W, C) -> (B, H, W, C / 2).

        relu(PW(DW_{K_L}(relu(PW(x))))), each with a batch norm

    Attributes:
      kernel_size: K_L.
      perceive: keep the K_L x K_L convolution ("w/o LKP" in Table 7 drops it).
    """

    kernel_size: int = 7
    perceive: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        width = x.shape[-1] // 2
        y = conv_norm.ConvNorm(width, name="reduce", **self.inherited)(x, train=train)
        y = nn.relu(y)
        if self.perceive:
            y = conv_norm.ConvNorm(
                width,
                self.kernel_size,
                groups=width,
                name="depthwise",
                **self.inherited,
            )(y, train=train)
        y = conv_norm.ConvNorm(width, name="mix", **self.inherited)(y, train=train)
        return nn.relu(y)


class LSConv(module.Layer):
    """LS convolution, Eqs. (6)-(8), without the skip: (B, H, W, C) -> (B, H, W, C).

        w = GN(PW(LKP(x))), G kernels of K_S^2 weights per position
        y = BN(SKA(x, w))

    The weights are stored as the intermediate `aggregation_weights`,
    (B, H, W, G, K_S^2), when a caller makes "intermediates" mutable.

    Attributes:
      kernel_size: K_L.
      small_kernel: K_S.
      group_width: channels that share a kernel, C / G.
      perceive: see `LargeKernelPerception`.
      aggregate: generate kernels and aggregate; "w/o SKA" in Table 7 has instead a
        linear layer and a static K_S x K_S depthwise convolution, each with its norm.
      grouping: which channels share a kernel, see `lvb.ops.dynamic_conv.ska`.
    """

    kernel_size: int = 7
    small_kernel: int = 3
    group_width: int = 8
    perceive: bool = True
    aggregate: bool = True
    grouping: str = "interleaved"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        channels = x.shape[-1]
        if channels % self.group_width or channels % 2:
            raise ValueError(
                f"LSConv: channels={channels} is not divisible by 2 and by "
                f"group_width={self.group_width}; LSNet uses multiples of 8."
            )
        context = LargeKernelPerception(
            self.kernel_size, self.perceive, name="perception", **self.inherited
        )(x, train=train)
        if not self.aggregate:
            return self._static(context, channels, train)
        weights = self._weights(context, channels // self.group_width)
        self.sow("intermediates", "aggregation_weights", weights)
        y = dynamic_conv.ska(
            x,
            weights,
            kernel_size=self.small_kernel,
            grouping=self.grouping,
            form=self.op_form,
        )
        return norm.batch_norm(self, train=train, name="bn")(y)

    def _weights(self, context: jax.Array, num_kernels: int) -> jax.Array:
        """W of Eq. (8): (B, H, W, C / 2) -> (B, H, W, G, K_S^2)."""
        taps = self.small_kernel**2
        weights = conv.Conv(
            num_kernels * taps,
            use_bias=True,
            bias_init=conv.torch_uniform_bias(context.shape[-1]),
            name="weights",
            **self.inherited,
        )(context)
        # One group is the taps of one kernel at all positions of the image.
        weights = norm.GroupNorm(
            num_groups=num_kernels,
            epsilon=_EPSILON,
            name="weight_norm",
            **self.inherited,
        )(weights)
        return jnp.reshape(weights, (*weights.shape[:3], num_kernels, taps))

    def _static(self, context: jax.Array, channels: int, train: bool) -> jax.Array:
        y = conv_norm.ConvNorm(channels, name="static_pointwise", **self.inherited)(
            context, train=train
        )
        return conv_norm.ConvNorm(
            channels,
            self.small_kernel,
            groups=channels,
            name="static_depthwise",
            **self.inherited,
        )(y, train=train)
