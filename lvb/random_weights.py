"""Weights to measure and export with, where nobody has trained any."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lvb.layers import norm
from lvb.training import batch_norm, compilation

# Means of what must be positive. Norms of 1/4 make a residual branch add less than it
# is added to, as training does; with 1, rounding errors of LSNet-B reach 1e-3.
_POSITIVE = {"scale": 0.25, "var": 1.0}


def random_variables(
    model: nn.Module, *, image_size: int = 224, channels: int = 3, seed: int = 0
) -> dict[str, Any]:
    """Draws variables, without compiling anything.

    Kernels are normal with the deviation of their fan-in, norms close to 1/4 and all
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
            values = _POSITIVE[path[-1].key] * (1 + 0.1 * np.clip(values, -3, 3))
        elif len(leaf.shape) > 1:
            values /= math.sqrt(math.prod(leaf.shape[:-1]))
        else:
            values *= 0.1
        return values.astype(leaf.dtype)

    return {"batch_stats": {}, **jax.tree_util.tree_map_with_path(draw, shapes)}


def noise(image_size: int, *, batch_size: int = 8, seed: int = 0) -> np.ndarray:
    """Normalised images without content, (B, image_size, image_size, 3) float32."""
    shape = (batch_size, image_size, image_size, 3)
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def calibrated(model: nn.Module, variables: Any, images: np.ndarray) -> dict[str, Any]:
    """Measures the batch statistics of random variables.

    Every layer then passes on what it is given at order 1, so that an error of the
    logits tells of an error in any of them; of images like these: noise and photographs
    differ by far more than two photographs.

    Args:
      model: of the variables, without drop path.
      variables: from `random_variables`; without batch norms they are returned.
      images: normalised, (B, H, W, C).

    Returns:
      The variables with new "batch_stats".
    """
    stats = variables.get("batch_stats")
    if not stats:
        return dict(variables)

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
