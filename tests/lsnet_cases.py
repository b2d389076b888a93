"""A tiny LSNet, its variables and what can be counted without computing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from fixtures import as_reference
from flax import traverse_util

from lvb.analysis import flops
from lvb.heads import classifier
from lvb.models import lsnet
from lvb.tasks import classification

TINY = dict(dims=(16, 16, 24, 32), depths=(1, 2, 2, 2), op_form="reference")
SIZE = 200  # Maps of 25, 13, 7 and 4: the attention's table fits.


def build(backbone, *, num_classes=5, **options):
    head = classifier.ClassifierHead(
        num_classes, deploy=backbone.deploy, param_dtype=backbone.param_dtype, **options
    )
    return classification.ImageClassifier(backbone, head)


def variant(name, **options):
    return lsnet.LSNet(**{**lsnet.VARIANTS[name]._asdict(), **options})


@functools.cache
def shapes(model, size=224):
    """Shapes of a model's variables, by the operators that trace fastest."""
    model = as_reference(model)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), images
    )


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def macs(model, size=224):
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return flops.count_macs(
        lambda v, x: model.apply(v, x, train=False), shapes(model), images
    )


def images(*, batch=2, size=(SIZE, SIZE), seed=1):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((batch, *size, 3)), jnp.float32)


def random_variables(model, *, seed=0):
    """Scales in (0.5, 1.5), small offsets, kernels as initialised: none is silent."""
    rng = np.random.default_rng(seed)

    def leaf(path, value):
        shape = value.shape
        if path[-1] in ("scale", "var"):
            value = rng.uniform(0.5, 1.5, shape)
        elif path[-1] == "kernel":
            value = rng.uniform(-1, 1, shape) / np.sqrt(np.prod(shape[:-1]))
        else:
            value = rng.normal(0, 0.2, shape)
        return jnp.asarray(value, jnp.float32)

    return traverse_util.path_aware_map(leaf, dict(shapes(model)))


def calibrated(model, variables, x):
    """Batch statistics of `x` itself, undone from one step of the running mean."""
    _, new = jax.jit(lambda v: model.apply(v, x, train=True, mutable=["batch_stats"]))(
        variables
    )
    stats = jax.tree.map(
        lambda new, old: (new - 0.9 * old) / 0.1,
        new["batch_stats"],
        variables["batch_stats"],
    )
    return {**variables, "batch_stats": stats}


def tiny_classifier():
    """A tiny classifier, its calibrated variables and its jitted evaluation."""
    model = build(lsnet.LSNet(**TINY))
    variables = calibrated(model, random_variables(model), images(batch=4))
    return model, variables, jax.jit(functools.partial(model.apply, train=False))
