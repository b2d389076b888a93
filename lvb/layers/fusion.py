"""Fusing a trained network into its inference form, module by module."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

_COLLECTIONS = ("params", "batch_stats")


def fuse_variables(
    model: nn.Module, deployed: nn.Module, variables: Mapping[str, Any]
) -> dict[str, Any]:
    """The variables of `deployed` that compute what `model` does at evaluation.

    Every module with a `fuse` method maps its own subtree (the outermost one wins);
    the variables of all others are kept.

    Args:
      model: the training form, without rematerialisation (which hides paths).
      deployed: the same network with `deploy=True`.
      variables: {"params": ..., "batch_stats": ...} of `model`.

    Returns:
      The fused variables; those without a batch norm left have no "batch_stats".

    Raises:
      ValueError: if `variables` are not those of `model`, or the result would not be
        those of `deployed`.
    """
    images = _sample_images(model, variables)
    fused: dict[str, Any] = {name: {} for name in _COLLECTIONS}
    _fuse_into(fused, (), variables, _fusable_modules(model, variables, images))
    fused = {name: tree for name, tree in fused.items() if tree}
    _refuse(deployed, _mismatch(deployed, fused, images))
    return fused


def _fusable_modules(
    model: nn.Module, variables: Mapping[str, Any], images: jax.ShapeDtypeStruct
) -> dict[tuple[str, ...], nn.Module]:
    """Every module that has a `fuse`, by its path, found by tracing a call."""
    found = {}

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if hasattr(context.module, "fuse"):
            found[context.module.path] = context.module.clone(parent=None)
        return call(*args, **kwargs)

    def trace(variables: Mapping[str, Any], images: jax.Array) -> Any:
        with nn.intercept_methods(record):
            return model.apply(variables, images, train=False)

    jax.eval_shape(trace, variables, images)
    return found


def _fuse_into(
    fused: dict[str, Any],
    path: tuple[str, ...],
    subtrees: Mapping[str, Any],
    modules: Mapping[tuple[str, ...], nn.Module],
) -> None:
    """Writes the fused form of the subtrees at `path` into `fused`, recursively."""
    if path in modules:
        for name, tree in modules[path].fuse(subtrees).items():
            _insert(fused[name], path, tree)
        return
    for name in sorted({key for tree in subtrees.values() for key in tree}):
        inner = {
            collection: tree[name]
            for collection, tree in subtrees.items()
            if name in tree
        }
        if all(isinstance(tree, Mapping) for tree in inner.values()):
            _fuse_into(fused, (*path, name), inner, modules)
        else:
            for collection, leaf in inner.items():
                _insert(fused[collection], (*path, name), leaf)


def _insert(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _sample_images(
    model: nn.Module, variables: Mapping[str, Any]
) -> jax.ShapeDtypeStruct:
    """The shape of an image that `variables` fit: colour, else grey."""
    grey, colour = (jax.ShapeDtypeStruct((1, 64, 64, c), jnp.float32) for c in (1, 3))
    mismatch = _mismatch(model, variables, colour)
    if mismatch and not _mismatch(model, variables, grey):
        return grey
    _refuse(model, mismatch)
    return colour


def _refuse(model: nn.Module, mismatch: tuple[str, Any, Any] | None) -> None:
    """Raises if there is a mismatch."""
    if mismatch:
        path, given, wanted = mismatch
        raise ValueError(
            f"{type(model).__name__}: variable {path} has shape {given}, the model "
            f"needs {wanted}; pass the variables of this very model."
        )


def _mismatch(
    model: nn.Module, variables: Mapping[str, Any], images: jax.ShapeDtypeStruct
) -> tuple[str, Any, Any] | None:
    """The first variable that differs: its path, its shape, the one needed."""
    expected = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), images
    )
    wanted = _shapes({name: expected.get(name, {}) for name in _COLLECTIONS})
    given = _shapes({name: variables.get(name, {}) for name in _COLLECTIONS})
    for path in sorted(wanted.keys() | given.keys()):
        if wanted.get(path) != given.get(path):
            return path, given.get(path), wanted.get(path)
    return None


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }
