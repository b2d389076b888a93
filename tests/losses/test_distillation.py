"""Distillation equals DeiT's Eqs. (2) and (3)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lvb.losses import cross_entropy, distillation

NUM_CLASSES = 5


@pytest.fixture(scope="module")
def example():
    rng = np.random.default_rng(0)
    logits, distill_logits, teacher_logits = (
        jnp.asarray(rng.normal(size=(6, NUM_CLASSES)) * 2, jnp.float32)
        for _ in range(3)
    )
    targets = jnp.asarray(rng.dirichlet(np.ones(NUM_CLASSES), size=6), jnp.float32)
    return dict(
        logits=logits,
        distill_logits=distill_logits,
        targets=targets,
        teacher_logits=teacher_logits,
    )


def softmax(logits, *, tau=1.0):
    exponentials = np.exp(np.asarray(logits, np.float64) / tau)
    return exponentials / exponentials.sum(-1, keepdims=True)


def hard_loops(student, teacher):
    """-log p_student of the class the teacher prefers."""
    p = softmax(student)
    return [-np.log(p[i, int(np.argmax(teacher[i]))]) for i in range(len(p))]


def soft_loops(student, teacher, *, tau):
    """tau^2 sum_k q_k log(q_k / p_k)."""
    p, q = softmax(student, tau=tau), softmax(teacher, tau=tau)
    return [
        tau**2 * float((b * np.log(b / a)).sum()) for a, b in zip(p, q, strict=True)
    ]


def test_hard_equals_the_definition(example):
    ours = distillation.hard_distillation(
        example["distill_logits"], teacher_logits=example["teacher_logits"]
    )
    expected = hard_loops(example["distill_logits"], example["teacher_logits"])
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_soft_equals_the_definition(example, tau):
    ours = distillation.soft_distillation(
        example["distill_logits"], teacher_logits=example["teacher_logits"], tau=tau
    )
    expected = soft_loops(example["distill_logits"], example["teacher_logits"], tau=tau)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_soft_vanishes_at_the_teacher(example):
    teacher = example["teacher_logits"]
    same = distillation.soft_distillation(
        teacher + 3.0, teacher_logits=teacher, tau=2.0
    )
    np.testing.assert_allclose(same, 0.0, atol=1e-6)


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_weighs_the_two_heads(example, mode):
    ours = distillation.distillation_loss(**example, mode=mode, alpha=0.3, tau=2.0)
    label = cross_entropy.soft_cross_entropy(
        example["logits"], targets=example["targets"]
    )
    student, teacher = example["distill_logits"], example["teacher_logits"]
    other = (
        hard_loops(student, teacher)
        if mode == "hard"
        else soft_loops(student, teacher, tau=2.0)
    )
    assert ours.shape == (6,)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, 0.7 * label + 0.3 * np.array(other), rtol=1e-5)


def test_default_is_lsnets(example):
    """Hard, half and half."""
    ours = distillation.distillation_loss(**example)
    expected = distillation.distillation_loss(**example, mode="hard", alpha=0.5)
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_gradients_reach_each_head_and_not_the_teacher(example, mode):
    def loss(logits, distill_logits, teacher_logits):
        return distillation.distillation_loss(
            logits,
            distill_logits,
            targets=example["targets"],
            teacher_logits=teacher_logits,
            mode=mode,
        ).sum()

    grads = jax.grad(loss, argnums=(0, 1, 2))(
        example["logits"], example["distill_logits"], example["teacher_logits"]
    )
    # Of a weighted CE: half of softmax minus targets.
    half = 0.5 * (softmax(example["logits"]) - np.asarray(example["targets"]))
    np.testing.assert_allclose(grads[0], half, rtol=0, atol=1e-6)
    assert np.abs(np.asarray(grads[1])).max() > 1e-2
    np.testing.assert_array_equal(grads[2], 0.0)


def test_accepts_bfloat16(example):
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), example)
    out = jax.eval_shape(
        lambda e: distillation.distillation_loss(**e, mode="soft"), low
    )
    assert (out.shape, out.dtype) == ((6,), jnp.float32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(mode="none"), "mode='none' is unknown; use hard or soft"),
        (dict(alpha=1.5), r"alpha=1.5 is outside \[0, 1\]"),
        (dict(mode="soft", tau=0.0), "tau=0.0 is not positive"),
        (dict(teacher_logits=jnp.ones((6, 7))), "both need the same classes"),
    ],
)
def test_refuses(example, options, message):
    with pytest.raises(ValueError, match=message):
        distillation.distillation_loss(**{**example, **options})
