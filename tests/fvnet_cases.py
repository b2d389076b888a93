"""FVNets for the tests: small ones, those of Table 1, and variables for them."""

import math

import jax
import jax.numpy as jnp
from fixtures import as_reference, randomised

from lvb.heads import classifier
from lvb.models import fvnet
from lvb.tasks import classification

TINY = dict(depths=(1, 1, 1, 1), dims=(8, 16, 32, 64))


def tiny(**options):
    # The stock operations compile in half the time; one test compares the forms.
    return fvnet.FVNet(**{**TINY, "op_form": "reference", **options})


def classifier_of(variant, **options):
    """The 1,000-class model of a row of Table 1."""
    names = ("deploy", "dtype", "param_dtype")
    shared = {name: options[name] for name in names if name in options}
    return classification.ImageClassifier(
        fvnet.FVNet(**{**fvnet.VARIANTS[variant]._asdict(), **options}),
        classifier.ClassifierHead(1000, **shared),
    )


def shapes_of(model, size=64, channels=3):
    """Shapes of a model's variables, by the operators that trace fastest."""
    model = as_reference(model)
    images = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    return jax.eval_shape(
        lambda images: model.init(jax.random.key(0), images, train=False), images
    )


def variables_of(model):
    """Random variables; the dynamics are near their start, kernels near 0.1."""

    def start(path, leaf):
        near_one = path[-1].key in ("A", "beta", "gamma", "s")
        return jnp.full(leaf.shape, float(near_one), leaf.dtype)

    return randomised(jax.tree_util.tree_map_with_path(start, shapes_of(model)))


def num_params(variables):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
