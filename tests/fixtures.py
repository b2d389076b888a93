"""Modules as one program each, and variables that are neither zero nor one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def init(module, *args, **options):
    """Initialises a module in one program, where Flax alone would compile many."""
    start = functools.partial(module.init, **options)
    return jax.jit(start)(jax.random.key(0), *args)


def init_with_output(module, *args, **options):
    """The output of a fresh module and its variables, in one program."""
    start = functools.partial(module.init_with_output, **options)
    return jax.jit(start)(jax.random.key(0), *args)


def apply(module, variables, *args, **options):
    """Applies a module in one program."""
    return jax.jit(functools.partial(module.apply, **options))(variables, *args)


def as_reference(model):
    """A backbone, or a classifier on one, of the operators that trace fastest."""
    if hasattr(model, "backbone"):
        return model.clone(backbone=model.backbone.clone(op_form="reference"))
    return model.clone(op_form="reference")


def randomised(variables, *, seed=7):
    """Replaces every leaf by random values; variances stay positive.

    Args:
      variables: {"params": ..., "batch_stats": ...}.
      seed: of the draw.

    Returns:
      The same tree, parameters around their own values, statistics around 0 and 1,
      in float64 where that is enabled (Flax keeps statistics in float32).
    """
    # NumPy: a draw in JAX would compile a program for every shape.
    rng = np.random.default_rng(seed)
    dtype = jnp.result_type(float)

    def draw(path, leaf):
        noise = rng.uniform(-0.5, 0.5, leaf.shape)
        if path[-1].key in ("var", "scale"):
            return jnp.asarray(1 + noise, dtype)
        return jnp.asarray(np.asarray(leaf, np.float64) + 0.3 * noise, dtype)

    return jax.tree.map_with_path(draw, variables)
