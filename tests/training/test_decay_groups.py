"""The parameters of each family that its recipe exempts from weight decay, by name."""

import jax
import jax.numpy as jnp
import pytest

import lvb
from lvb.training import optimizer

# Names each recipe adds to the vectors, which are never decayed.
EXEMPT = {
    "lsnet_t": ("attention_biases",),
    "fvnet_n": ("s", "t"),
    "fmvit_t": (),
    # The start of the memory; and what never learns where one chunk holds the whole
    # map, as in stages 3 and 4 at 224 pixels: decay alone would shrink it to nothing.
    "convneur_m1": (
        "initial_hidden",
        "initial_output",
        "stage3/block0/global_branch/memory/store",
        "stage4/block0/global_branch/memory/store",
    ),
}

# How many leaves of each name stay without decay.
UNDECAYED = {
    "lsnet_t": {"attention_biases": 5, "bias": 136, "scale": 110},
    "fvnet_n": {
        "A": 31,
        "beta": 31,
        "bias": 70,
        "delta": 31,
        "gamma": 31,
        "kappa": 10,
        "s": 11,
        "scale": 49,
        "t": 11,
    },
    "fmvit_t": {"bias": 324, "scale": 323},
    "convneur_m1": {
        "bias": 94,
        "initial_gain": 4,
        "initial_hidden": 4,
        "initial_output": 4,
        "kernel": 12,  # key, value, pool and three gates of two stages
        "scale": 37,
    },
}


@pytest.mark.parametrize("name", EXEMPT)
def test_undecayed_groups(name):
    model = lvb.create_model(name)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), images
    )
    params = variables["params"]
    assert optimizer.undecayed_names(params, EXEMPT[name]) == UNDECAYED[name]
    mask = optimizer.decay_mask(params, EXEMPT[name])
    decayed = {
        optimizer.path_name(path[-1:])
        for path, kept in jax.tree_util.tree_leaves_with_path(mask)
        if kept
    }
    assert decayed == {"kernel"}
