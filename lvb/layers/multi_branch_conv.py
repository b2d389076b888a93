"""Multi-branch reparameterised convolution, FMViT Eq. (1)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lvb.layers import conv, conv_norm, module, norm
from lvb.ops import reparam


class Branch(NamedTuple):
    """One parallel convolution: kernel no larger, groups a multiple of the main one."""

    kernel_size: int | tuple[int, int]
    groups: int


class MultiBranchConv(module.Layer):
    """A sum of normalised convolutions: (B, H, W, C) -> (B, H', W', features).

        y = sum_i BN_i(Conv_i(x)) [+ BN(x)] [+ x]

    in training, one convolution with bias when deployed. It covers the multi-group 1x1
    convolutions and the stem of FMViT (Eqs. 1, 2) and the depthwise ones of LSNet and
    FMViT. Submodules are `branch0`, `branch1`, ..., `identity`; deployed: `conv`.

    Attributes:
      features: output channels.
      branches: the parallel convolutions; the first is the largest, and the only one
        that remains when deployed.
      strides: the stride of both axes.
      identity_norm: add a batch norm of x.
      shortcut: add x itself.
      kernel_init: initialiser of every kernel.
    """

    features: int
    branches: tuple[Branch, ...]
    strides: int = 1
    identity_norm: bool = False
    shortcut: bool = False
    kernel_init: conv.Initializer = conv.torch_uniform

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        unchanged = self.strides == 1 and x.shape[-1] == self.features
        if (self.identity_norm or self.shortcut) and not unchanged:
            raise ValueError(
                "MultiBranchConv: an identity branch needs strides=1 and equal widths, "
                f"not strides={self.strides}, {x.shape[-1]} -> {self.features} channels"
                "; drop the branch or change them."
            )
        if self.deploy:
            main = self.branches[0]
            return conv.Conv(
                self.features,
                main.kernel_size,
                strides=self.strides,
                groups=main.groups,
                use_bias=True,
                name="conv",
                **self.inherited,
            )(x)
        terms = [
            conv_norm.ConvNorm(
                self.features,
                branch.kernel_size,
                strides=self.strides,
                groups=branch.groups,
                kernel_init=self.kernel_init,
                name=f"branch{index}",
                **self.inherited,
            )(x, train=train)
            for index, branch in enumerate(self.branches)
        ]
        if self.identity_norm:
            terms.append(norm.batch_norm(self, train=train, name="identity")(x))
        if self.shortcut:
            terms.append(x)
        # Branches add up in float32: in bfloat16 their sum would lose what each adds.
        wide = jnp.promote_types(self.dtype, jnp.float32)
        return sum(term.astype(wide) for term in terms).astype(self.dtype)

    def fuse(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Adds all branches up in one kernel of the first branch's shape."""
        params, stats = variables["params"], variables["batch_stats"]
        size = conv.pair(self.branches[0].kernel_size)
        groups = self.branches[0].groups
        kernels = []
        for index, branch in enumerate(self.branches):
            name = f"branch{index}"
            own = {"params": params[name], "batch_stats": stats[name]}
            kernel, bias = conv_norm.folded(own)
            kernel = reparam.expand_groups(
                kernel, groups=branch.groups, to_groups=groups
            )
            kernels.append(reparam.Kernel(reparam.pad_kernel(kernel, size=size), bias))
        identity = reparam.pad_kernel(
            reparam.identity_kernel(self.features, groups=groups), size=size
        )
        if self.identity_norm:
            affine = reparam.batch_norm_affine(
                params["identity"], stats["identity"], epsilon=norm.EPSILON
            )
            kernels.append(reparam.fold_after(identity, affine))
        if self.shortcut:
            kernels.append(reparam.Kernel(identity, 0.0 * kernels[0].bias))
        merged = reparam.merge(kernels)
        return {"params": {"conv": conv_norm.as_params(merged, self.param_dtype)}}
