"""Recalibration measures what a single huge batch would."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lvb.training import batch_norm


class TwoNorms(nn.Module):
    """The second normalisation sees the output of the first."""

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False, momentum=0.9, name="first")(x)
        x = nn.Dense(3, name="dense")(x)
        return nn.BatchNorm(use_running_average=False, momentum=0.9, name="second")(x)


@pytest.fixture(scope="module")
def network():
    module = TwoNorms()
    variables = module.init(jax.random.key(0), jnp.ones((4, 5)))

    @jax.jit
    def update(batch_stats, x):
        state = {"params": variables["params"], "batch_stats": batch_stats}
        return module.apply(state, x, mutable="batch_stats")[1]["batch_stats"]

    return update, variables["batch_stats"]


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    # Batches of different level and spread, so that totals are not averages.
    return [
        jnp.asarray(3 + k + (1 + k) * rng.normal(size=(16, 5)), jnp.float32)
        for k in range(6)
    ]


def test_first_layer_has_the_statistics_of_all_examples(network, batches):
    update, batch_stats = network
    measured = batch_norm.recalibrate_batch_norm(
        update, iter(batches), batch_stats=batch_stats
    )
    everything = np.concatenate([np.asarray(b, np.float64) for b in batches])
    # Flax computes each batch's variance in float32 as E[x^2] - E[x]^2.
    np.testing.assert_allclose(measured["first"]["mean"], everything.mean(0), rtol=1e-5)
    np.testing.assert_allclose(measured["first"]["var"], everything.var(0), rtol=1e-4)
    assert jax.tree.map(jnp.shape, measured) == jax.tree.map(jnp.shape, batch_stats)
    assert measured["second"]["var"].dtype == np.float32


def test_is_what_running_statistics_tend_to(network, batches):
    """On one batch again and again, running statistics converge to its own."""
    update, running = network
    for _ in range(200):  # 0.9^200 is 7e-10
        running = update(running, batches[2])
    measured = batch_norm.recalibrate_batch_norm(
        update, [batches[2]], batch_stats=running
    )
    for ours, theirs in zip(*map(jax.tree.leaves, (measured, running)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)


def test_does_not_depend_on_the_old_values(network, batches):
    update, batch_stats = network
    other = jax.tree.map(lambda x: x + 17.0, batch_stats)
    first, second = (
        batch_norm.recalibrate_batch_norm(update, batches, batch_stats=stats)
        for stats in (batch_stats, other)
    )
    for ours, theirs in zip(*map(jax.tree.leaves, (first, second)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_refuses_empty_streams_and_foreign_statistics(network):
    update, batch_stats = network
    with pytest.raises(ValueError, match="held no batch"):
        batch_norm.recalibrate_batch_norm(update, [], batch_stats=batch_stats)
    with pytest.raises(ValueError, match=r"\['count'\] is neither a mean nor a var"):
        batch_norm.recalibrate_batch_norm(
            lambda stats, batch: stats, [None], batch_stats={"count": np.zeros(())}
        )
