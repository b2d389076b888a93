"""The classifier on the last feature map."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lvb.layers import conv, module, norm
from lvb.ops import reparam

NORMS = ("batch", "layer", "batch_before_pool")


class ClassifierHead(module.Layer):
    """Global average pooling, normalisation and a linear layer.

    (B, H, W, C) -> (B, num_classes). A distilled head (DeiT, LSNet*) has a second,
    identical norm and linear layer for the teacher's labels: in training it returns
    both logits, at evaluation their mean.

    A deployed head has its batch norm folded into the linear layer; a layer norm stays.

    Attributes:
      num_classes: width of the logits.
      norm: "batch" (LSNet, FVNet) or "layer" (ConvNeur) on the pooled vector, or
        "batch_before_pool" (FMViT) on the map.
      distilled: whether there is a second head.
    """

    num_classes: int
    norm: str = "batch"
    distilled: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        if self.norm not in NORMS:
            raise ValueError(
                f"ClassifierHead: norm={self.norm!r} is unknown; use one of {NORMS}."
            )
        logits = self._logits(x, train, prefix="")
        if not self.distilled:
            return logits
        distilled = self._logits(x, train, prefix="distill_")
        return (logits, distilled) if train else (logits + distilled) / 2

    def _logits(self, x: jax.Array, train: bool, prefix: str) -> jax.Array:
        name = f"{prefix}norm"
        if self.norm == "batch_before_pool" and not self.deploy:
            x = norm.batch_norm(self, train=train, name=name)(x)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        pooled = x.mean(axis=(1, 2), dtype=wide)  # (B, C)
        if self.norm == "batch" and not self.deploy:
            pooled = norm.batch_norm(self, train=train, name=name)(pooled)
        if self.norm == "layer":
            pooled = nn.LayerNorm(epsilon=1e-6, name=name, **self.dtypes)(pooled)
        logits = nn.Dense(
            self.num_classes,
            kernel_init=conv.trunc_normal(0.02),
            name=f"{prefix}classifier",
            **self.dtypes,
        )(pooled)
        return logits.astype(wide)

    def fuse(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Folds the batch norm into the linear layer; pooling commutes with it."""
        params, stats = variables["params"], variables.get("batch_stats", {})
        if self.norm == "layer":
            return {"params": dict(params)}
        fused = {}
        for prefix in ("", "distill_") if self.distilled else ("",):
            affine = reparam.batch_norm_affine(
                params[f"{prefix}norm"], stats[f"{prefix}norm"], epsilon=norm.EPSILON
            )
            linear = params[f"{prefix}classifier"]
            kernel, bias = reparam.fold_before(
                affine, linear["kernel"], bias=linear["bias"]
            )
            fused[f"{prefix}classifier"] = {
                "kernel": np.asarray(kernel, self.param_dtype),
                "bias": np.asarray(bias, self.param_dtype),
            }
        return {"params": fused}
