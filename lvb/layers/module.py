"""The base class of every module in lvb: the five settings that reach all of them."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike


class Layer(nn.Module, kw_only=True):
    """A Linen module with the settings that a whole network shares.

    A parent hands them on unchanged: `ConvNorm(64, 3, name="conv", **self.inherited)`.

    A subclass whose parameters change with `deploy` defines

        def fuse(self, variables: Mapping[str, Any]) -> dict[str, Any]

    which maps its own subtrees {"params": ..., "batch_stats": ...} to those of the
    same module with `deploy=True`; `lvb.layers.fusion` calls it on the outermost such
    module.

    Attributes:
      dtype: type of matmuls, convolutions and activations.
      param_dtype: type of the parameters.
      deploy: build the fused inference form.
      frozen_batch_norm: normalise with the stored statistics in training too, and
        leave them as they are (detection and segmentation fine-tuning).
      op_form: how operators with several exact forms are computed: "auto" picks by
        backend, "reference" uses stock XLA operations, "shift" shifted multiply-adds;
        see `lvb.ops.forms`.
    """

    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    deploy: bool = False
    frozen_batch_norm: bool = False
    op_form: str = "auto"

    @property
    def dtypes(self) -> dict[str, Any]:
        """The two dtype fields, as arguments for one of Flax's own modules."""
        return dict(dtype=self.dtype, param_dtype=self.param_dtype)

    @property
    def inherited(self) -> dict[str, Any]:
        """All shared settings, as arguments for one of our modules."""
        return dict(
            **self.dtypes,
            deploy=self.deploy,
            frozen_batch_norm=self.frozen_batch_norm,
            op_form=self.op_form,
        )
