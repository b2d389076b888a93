"""Random weights keep activations at a size where float32 errors mean something."""

import fixtures
import jax
import numpy as np
import pytest
import tiny_model

import lvb
from lvb import random_weights


@pytest.fixture(scope="module")
def model():
    return lvb.create_model(**tiny_model.options(5))


def test_a_seed_is_a_draw(model):
    draws = [random_weights.random_variables(model, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (jax.tree.leaves(draw) for draw in draws)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_calibrated_logits_are_of_order_one_and_see_the_image(model):
    variables = random_weights.random_variables(model, image_size=32)
    variables = random_weights.calibrated(model, variables, random_weights.noise(32))
    images = random_weights.noise(32, batch_size=2, seed=1)
    logits = np.asarray(fixtures.apply(model, variables, images, train=False))
    assert 0.05 < np.abs(logits).max() < 50
    # A thousand times what exported files may be off by.
    assert np.abs(logits[0] - logits[1]).max() > 0.1


def test_without_batch_norm_nothing_is_measured(model):
    variables = {"params": {"kernel": np.ones(3)}, "batch_stats": {}}
    images = random_weights.noise(32)
    assert random_weights.calibrated(model, variables, images) == variables


def test_variances_are_positive(model):
    stats = random_weights.random_variables(model)["batch_stats"]
    variances = [
        leaf for path, leaf in jax.tree.leaves_with_path(stats) if path[-1].key == "var"
    ]
    assert variances
    assert min(leaf.min() for leaf in variances) > 0.5
