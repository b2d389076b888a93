"""Accuracy counts, against a plain sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lvb.metrics import accuracy


@pytest.fixture
def scored():
    """Logits with many ties, and labels."""
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 6, (200, 12)).astype(np.float32)
    return logits, rng.integers(0, 12, 200)


@pytest.mark.parametrize("k", [1, 5, 12])
def test_correct_at_equals_a_stable_sort(scored, k):
    logits, labels = scored
    order = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
    expected = (order == labels[:, None]).any(axis=-1)
    got = accuracy.correct_at(jnp.asarray(logits), labels=jnp.asarray(labels), k=k)
    np.testing.assert_array_equal(got, expected)


def test_top1_is_argmax(scored):
    logits, labels = scored
    got = accuracy.correct_at(jnp.asarray(logits), labels=jnp.asarray(labels), k=1)
    np.testing.assert_array_equal(got, logits.argmax(axis=-1) == labels)


def test_a_row_with_nan_is_wrong():
    logits = jnp.array([[1.0, jnp.nan, 0.0], [1.0, -jnp.inf, 0.0]])
    got = accuracy.correct_at(logits, labels=jnp.array([0, 0]), k=1)
    assert got.tolist() == [False, True]


def test_masked_rows_do_not_count(scored):
    logits, labels = scored
    mask = np.arange(200) % 3 > 0
    losses = np.where(mask, 2.0, np.nan)
    metrics = accuracy.classification_metrics(
        jnp.asarray(logits),
        labels=jnp.asarray(labels),
        losses=jnp.asarray(losses),
        mask=jnp.asarray(mask),
    )
    right = (logits.argmax(axis=-1) == labels) & mask
    assert int(metrics["top1"].total) == right.sum()
    assert float(metrics["loss"].total) == 2.0 * mask.sum()
    assert {int(pair.count) for pair in metrics.values()} == {mask.sum()}


def test_totals_of_accuracies_are_integers(scored):
    logits, labels = scored
    metrics = accuracy.classification_metrics(
        jnp.asarray(logits),
        labels=jnp.asarray(labels),
        losses=jnp.zeros(200),
        mask=jnp.ones(200, bool),
    )
    assert metrics["top1"].total.dtype == metrics["top5"].total.dtype == jnp.int32
    parts = [
        accuracy.classification_metrics(
            jnp.asarray(logits[a:b]),
            labels=jnp.asarray(labels[a:b]),
            losses=jnp.zeros(b - a),
            mask=jnp.ones(b - a, bool),
        )
        for a, b in ((0, 7), (7, 200))
    ]
    added = jax.tree.map(jnp.add, *parts)
    assert int(added["top5"].total) == int(metrics["top5"].total)


def test_top5_needs_more_than_five_classes():
    metrics = accuracy.classification_metrics(
        jnp.zeros((4, 5)),
        labels=jnp.zeros(4, jnp.int32),
        losses=jnp.zeros(4),
        mask=jnp.ones(4, bool),
    )
    assert set(metrics) == {"loss", "top1"}
