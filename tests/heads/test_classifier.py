"""The classifier head: norms, distillation, folding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import randomised

from lvb.heads import classifier

FEATURES = np.random.default_rng(0).normal(size=(3, 4, 2, 6))


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("norm", classifier.NORMS)
def test_fused_equals_unfused(norm, distilled):
    with jax.enable_x64(True):
        head = classifier.ClassifierHead(
            5,
            norm=norm,
            distilled=distilled,
            dtype=jnp.float64,
            param_dtype=jnp.float64,
        )
        x = jnp.asarray(FEATURES)
        variables = randomised(head.init(jax.random.key(0), x, train=False))
        fused = head.clone(deploy=True).apply(head.fuse(variables), x, train=False)
        np.testing.assert_allclose(
            fused, head.apply(variables, x, train=False), rtol=0, atol=1e-11
        )


def test_distilled_head_returns_both_logits_in_training_and_their_mean_after():
    # Frozen statistics, so that training and evaluation normalise alike.
    head = classifier.ClassifierHead(5, distilled=True, frozen_batch_norm=True)
    x = jnp.asarray(FEATURES, jnp.float32)
    variables = randomised(head.init(jax.random.key(0), x, train=False))
    first, second = head.apply(variables, x, train=True)
    assert not np.allclose(first, second)
    np.testing.assert_allclose(
        head.apply(variables, x, train=False), (first + second) / 2, atol=1e-6
    )


def test_norm_before_and_after_pooling_differ_in_training_only():
    before = classifier.ClassifierHead(5, norm="batch_before_pool")
    after = classifier.ClassifierHead(5, norm="batch")
    x = jnp.asarray(FEATURES, jnp.float32)
    variables = randomised(after.init(jax.random.key(0), x, train=False))
    evaluated = [head.apply(variables, x, train=False) for head in (before, after)]
    np.testing.assert_allclose(*evaluated, atol=1e-5)
    trained = [
        head.apply(variables, x, train=True, mutable=["batch_stats"])[0]
        for head in (before, after)
    ]
    assert np.abs(trained[0] - trained[1]).max() > 0.01


def test_unknown_norm_is_named():
    with pytest.raises(ValueError, match="norm='group' is unknown"):
        classifier.ClassifierHead(5, norm="group").init(
            jax.random.key(0), jnp.ones((1, 2, 2, 4)), train=False
        )
