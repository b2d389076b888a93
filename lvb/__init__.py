"""Lightweight vision backbones in JAX/Flax: FVNet, ConvNeur, LSNet, FMViT.

model = lvb.create_model("lsnet_t", num_classes=1000)
variables = model.init(jax.random.key(0), images, train=False)
logits = model.apply(variables, images, train=False)
"""

import importlib
from typing import Any

__all__ = [
    "create_backbone",
    "create_model",
    "feature_info",
    "fuse",
    "list_models",
    "load_torch",
    "profile_model",
    "reset_head",
]


def __getattr__(name: str) -> Any:
    """Imports the public functions on first use.

    A data worker imports `lvb.data` alone and starts without JAX.
    """
    if name in __all__:
        return getattr(importlib.import_module("lvb.api"), name)
    raise AttributeError(f"module 'lvb' has no attribute {name!r}")
