"""Soft cross entropy and label smoothing against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from lvb.losses import cross_entropy


def softmax_loops(logits):
    """Softmax in float64, row by row."""
    rows = []
    for row in np.asarray(logits, np.float64):
        exponentials = np.exp(row - row.max())
        rows.append(exponentials / exponentials.sum())
    return np.array(rows)


@pytest.fixture(scope="module")
def logits():
    return jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)) * 3, jnp.float32)


def test_smoothing_spreads_its_mass_over_all_classes():
    targets = cross_entropy.smooth_one_hot(
        jnp.array([2, 0]), num_classes=5, smoothing=0.1
    )
    expected = [[0.02, 0.02, 0.92, 0.02, 0.02], [0.92, 0.02, 0.02, 0.02, 0.02]]
    np.testing.assert_allclose(targets, expected, rtol=0, atol=1e-7)
    assert targets.dtype == jnp.float32


def test_no_smoothing_is_one_hot():
    targets = cross_entropy.smooth_one_hot(jnp.arange(3), num_classes=3, smoothing=0.0)
    np.testing.assert_array_equal(targets, np.eye(3))


def test_equals_the_definition(logits):
    targets = np.random.default_rng(1).dirichlet(np.ones(5), size=6)
    ours = cross_entropy.soft_cross_entropy(logits, targets=jnp.asarray(targets))
    expected = -(targets * np.log(softmax_loops(logits))).sum(-1)
    assert ours.shape == (6,)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_mixed_targets_mix_losses(logits):
    """The loss is linear in the targets, as mixup needs it."""
    a, b = jnp.eye(5)[jnp.arange(6) % 5], jnp.eye(5)[(jnp.arange(6) + 2) % 5]
    mixed = cross_entropy.soft_cross_entropy(logits, targets=0.3 * a + 0.7 * b)
    losses = [cross_entropy.soft_cross_entropy(logits, targets=t) for t in (a, b)]
    np.testing.assert_allclose(mixed, 0.3 * losses[0] + 0.7 * losses[1], rtol=1e-5)


def test_computes_in_float32(logits):
    targets = jnp.eye(5)[jnp.arange(6) % 5]
    low = logits.astype(jnp.bfloat16)
    ours = cross_entropy.soft_cross_entropy(low, targets=targets)
    assert ours.dtype == jnp.float32
    expected = cross_entropy.soft_cross_entropy(
        low.astype(jnp.float32), targets=targets
    )
    np.testing.assert_array_equal(ours, expected)


def test_huge_logits_stay_finite():
    logits = jnp.array([[1e4, -1e4, 0.0]])
    loss = cross_entropy.soft_cross_entropy(logits, targets=jnp.eye(3)[1:2])
    np.testing.assert_allclose(loss, [2e4])


def test_gradient():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        targets = jnp.asarray(rng.dirichlet(np.ones(4), size=2))
        # The loss itself is float32: finite differences see 7 digits.
        check_grads(
            lambda x: cross_entropy.soft_cross_entropy(x, targets=targets).sum(),
            (jnp.asarray(rng.normal(size=(2, 4))),),
            order=1,
            modes=["rev"],
            eps=1e-2,
            atol=2e-3,
            rtol=2e-3,
        )


def test_refuses(logits):
    with pytest.raises(
        ValueError, match=r"logits \(6, 5\) and targets \(6, 4\) differ"
    ):
        cross_entropy.soft_cross_entropy(logits, targets=jnp.ones((6, 4)))
    with pytest.raises(ValueError, match=r"smoothing=1.0 is outside \[0, 1\)"):
        cross_entropy.smooth_one_hot(jnp.arange(3), num_classes=3, smoothing=1.0)
