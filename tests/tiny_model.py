"""A network of the real family that is small enough to compile in a test."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

import lvb

IMAGE_SIZE = 32


def options(num_classes):
    """Arguments of `lvb.create_model`, as JSON values."""
    return {
        **{"name": "lsnet_t", "num_classes": num_classes, "dtype": "float32"},
        **{"depths": [0, 1, 1, 1], "dims": [16, 16, 32, 32]},
    }


def random_variables(num_classes, *, seed=0):
    """Random weights and statistics; a real initialisation would cost a compile."""
    model = lvb.create_model(**options(num_classes))
    images = jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.float32)
    shapes = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), images
    )
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        values = rng.normal(scale=0.2, size=leaf.shape).astype(np.float32)
        return 1 + abs(values) if path[-1] in ("scale", "var") else values

    flat = flax.traverse_util.flatten_dict(shapes)
    drawn = {path: draw(path, leaf) for path, leaf in flat.items()}
    return flax.traverse_util.unflatten_dict(drawn)
