"""The moving average: its formula, its warm-up, its resume."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lvb.training import ema


def values(seed):
    rng = np.random.default_rng(seed)
    params = {"kernel": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)}
    batch_stats = {"norm": {"mean": jnp.asarray(rng.normal(size=4), jnp.float32)}}
    return params, batch_stats


@functools.cache
def updater(*, decay, warmup):
    @jax.jit
    def update(average, params, batch_stats, step):
        return ema.update_ema(
            average, params, batch_stats, step=step, decay=decay, warmup=warmup
        )

    return update


def run(average, *, steps, decay=0.99, warmup=True):
    for step in steps:
        average = updater(decay=decay, warmup=warmup)(average, *values(step), step)
    return average


@pytest.mark.parametrize("warmup", [True, False])
def test_equals_loops(warmup):
    decay = 0.9
    ours = run(ema.init_ema(*values(99)), steps=range(120), decay=decay, warmup=warmup)
    for index, leaf in enumerate(jax.tree.leaves(ours)):
        expected = np.asarray(jax.tree.leaves(values(99))[index], np.float64)
        for step in range(120):
            in_force = min(decay, (1 + step) / (10 + step)) if warmup else decay
            new = np.asarray(jax.tree.leaves(values(step))[index], np.float64)
            expected = in_force * expected + (1 - in_force) * new
        # Rounding of float32, forgotten at the pace of the average itself.
        np.testing.assert_allclose(leaf, expected, rtol=0, atol=2e-6)


def test_warmup_ends_when_the_decay_is_reached():
    rates = [
        float(ema.ema_rate(s, decay=0.99, warmup=True)) for s in (0, 90, 890, 10**6)
    ]
    assert rates == pytest.approx([0.9, 0.09, 0.01, 0.01])


def test_rate_of_lsnet_is_exact():
    # In float32, 1 - 0.99996 is 4.0054e-5.
    rate = ema.ema_rate(10**7, decay=0.99996, warmup=False)
    assert float(rate) == pytest.approx(4e-5, rel=1e-7)


def test_a_constant_does_not_drift():
    """Weights that miss 1 by rounding would move it by up to 7e-4 of its size."""
    params, batch_stats = values(0)
    average = ema.init_ema(params, batch_stats)
    update = updater(decay=0.99996, warmup=False)
    for step in range(300):
        average = update(average, params, batch_stats, step)
    np.testing.assert_array_equal(average.params["kernel"], params["kernel"])


def test_starts_in_buffers_of_its_own():
    params, batch_stats = values(0)
    average = ema.init_ema(params, batch_stats)
    assert average.params["kernel"] is not params["kernel"]
    # Donating the raw parameters must leave the average readable.
    jax.jit(lambda x: x + 1, donate_argnums=0)(params["kernel"])
    assert np.isfinite(np.asarray(average.params["kernel"])).all()


def test_averages_statistics_as_parameters():
    params, batch_stats = values(0)
    average = ema.init_ema(params, batch_stats)
    moved = ema.update_ema(average, *values(1), step=0, decay=0.5, warmup=False)
    expected = (batch_stats["norm"]["mean"] + values(1)[1]["norm"]["mean"]) / 2
    np.testing.assert_allclose(moved.batch_stats["norm"]["mean"], expected, rtol=1e-6)


def test_resume_is_exact_in_the_midst_of_the_warmup():
    straight = run(ema.init_ema(*values(99)), steps=range(20))
    half = run(ema.init_ema(*values(99)), steps=range(7))
    restored = pickle.loads(pickle.dumps(jax.device_get(half)))
    resumed = run(jax.tree.map(jnp.asarray, restored), steps=range(7, 20))
    for ours, theirs in zip(*map(jax.tree.leaves, (resumed, straight)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_refuses(decay):
    with pytest.raises(ValueError, match="outside"):
        ema.ema_rate(0, decay=decay, warmup=True)
