"""Weights to measure and export with, where nobody has trained any."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lvb.layers import norm
from lvb.training import batch_norm, compilation

_POSITIVE = ("scale", "var")
_BATCH = 8  # Images that batch statistics are measured on.


def random_variables(
    model: nn.Module, *, image_size: int = 224, channels: int = 3, seed: int = 0
) -> dict[str, Any]:
    """Draws variables, without compiling anything.

    Kernels are normal with the deviation of their fan-in, norms close to 1, everything
    else close to 0. No branch is switched off, as an initialisation would some by zero
    scales. Logits may be large or hardly depend on the image: `calibrated`.

    Args:
      model: a classifier or a backbone.
      image_size: side of its images, in pixels; 32 or more.
      channels: of its images.
      seed: of the draw.

    Returns:
      {"params": ..., "batch_stats": ...}, NumPy arrays.
    """
    images = jax.ShapeDtypeStruct((1, image_size, image_size, channels), jnp.float32)
    shapes = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), images
    )
    rng = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        values = rng.standard_normal(leaf.shape).astype(np.float32)
        if path[-1].key in _POSITIVE:
            values = 1 + 0.1 * np.clip(values, -3, 3)
        elif len(leaf.shape) > 1:
            values /= math.sqrt(math.prod(leaf.shape[:-1]))
        else:
            values *= 0.1
        return values.astype(leaf.dtype)

    return {"batch_stats": {}, **jax.tree_util.tree_map_with_path(draw, shapes)}


def calibrated(
    model: nn.Module, variables: Any, *, image_size: int = 224, channels: int = 3
) -> dict[str, Any]:
    """Measures the batch statistics of random variables on noise.

    Every layer then passes on what it is given at order 1, so that an error of the
    logits tells of an error in any of them.

    Args:
      model: of the variables, without drop path.
      variables: from `random_variables`; without batch norms they are returned.
      image_size: side of the images, in pixels.
      channels: of the images.

    Returns:
      The variables with new "batch_stats".
    """
    stats = variables.get("batch_stats")
    if not stats:
        return dict(variables)
    shape = (_BATCH, image_size, image_size, channels)
    images = np.random.default_rng(0).standard_normal(shape, np.float32)

    def update(stats: Any, images: jax.Array) -> Any:
        given = {"params": variables["params"], "batch_stats": stats}
        _, updated = model.apply(given, images, train=True, mutable=["batch_stats"])
        return updated["batch_stats"]

    measured = batch_norm.recalibrate_batch_norm(
        lambda stats, images: compilation.run_once(
            update, stats, images, out_shardings=None
        ),
        [images],
        batch_stats=stats,
        momentum=norm.MOMENTUM,
    )
    return {"params": variables["params"], "batch_stats": measured}
