"""Batch normalisation as the four papers use it."""

import flax.linen as nn

from lvb.layers import module
from lvb.layers.conv import Initializer

EPSILON = 1e-5
MOMENTUM = 0.9  # PyTorch's 0.1: running = 0.9 running + 0.1 batch.


def batch_norm(
    layer: module.Layer,
    *,
    train: bool,
    name: str,
    use_scale: bool = True,
    use_bias: bool = True,
    scale_init: Initializer = nn.initializers.ones,
) -> nn.BatchNorm:
    """Batch normalisation over all axes but the last, with `layer`'s settings.

    Statistics are float32. Under jit they are those of the global batch.

    Args:
      layer: the module that owns it.
      train: normalise by the batch and update the running statistics, unless
        `layer.frozen_batch_norm`.
      name: name of the submodule.
      use_scale: learn a scale.
      use_bias: learn an offset.
      scale_init: initialiser of the scale.

    Returns:
      A module; call it on (..., C).
    """
    return nn.BatchNorm(
        use_running_average=not train or layer.frozen_batch_norm,
        momentum=MOMENTUM,
        epsilon=EPSILON,
        use_scale=use_scale,
        use_bias=use_bias,
        scale_init=scale_init,
        # One pass over x loses digits where the mean is large against the deviation.
        use_fast_variance=False,
        dtype=layer.dtype,
        param_dtype=layer.param_dtype,
        name=name,
    )
