"""A student's step with a teacher: what the teacher sees and what its word weighs."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy import special

from lvb.heads import classifier
from lvb.tasks import classification, distillation

CLASSES = 4
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
KEY = jax.random.key(3)


class Backbone(nn.Module):
    """A convolution, so that a student costs nothing."""

    @nn.compact
    def __call__(self, images, *, train):
        return {"stage4": nn.relu(nn.Conv(8, (3, 3), strides=4)(images))}


class Teacher(nn.Module):
    @nn.compact
    def __call__(self, images):
        return 3 * nn.Dense(CLASSES)(nn.tanh(images).mean(axis=(1, 2)))


TEACHER = Teacher()


def make_task(*, distilled=True, **options):
    defaults = dict(
        model=classification.ImageClassifier(
            Backbone(), classifier.ClassifierHead(CLASSES, distilled=distilled)
        ),
        num_classes=CLASSES,
        mean=MEAN,
        std=STD,
        label_smoothing=0.1,
        mixup_alpha=0.8,
        erasing_prob=0.3,
        teacher=TEACHER.apply,
        teacher_variables=TEACHER.init(KEY, jnp.zeros((1, 8, 8, 3))),
        teacher_mean=MEAN,
        teacher_std=STD,
    )
    return distillation.DistillationTask(**{**defaults, **options})


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, size=(8, 8, 8, 3), dtype=np.uint8),
        "label": rng.integers(0, CLASSES, size=8).astype(np.int32),
    }


@pytest.fixture(scope="module")
def variables():
    return make_task().init(KEY, image_shape=(8, 8, 3))


def loss_of(task, variables, batch):
    prepared = task.prepare(batch, key=KEY)
    loss, _ = task.loss(
        variables["params"], variables["batch_stats"], prepared, rngs={}
    )
    return loss


def heads_of(task, variables, prepared):
    outputs, _ = task.model.apply(
        variables, prepared["image"], train=True, mutable=["batch_stats"]
    )
    return outputs


@pytest.mark.parametrize(
    ("mode", "alpha", "tau"), [("hard", 0.5, 3.0), ("soft", 0.3, 2.0)]
)
def test_loss_is_deits(variables, batch, mode, alpha, tau):
    task = make_task(mode=mode, alpha=alpha, tau=tau)
    prepared = task.prepare(batch, key=KEY)
    logits, distill_logits = heads_of(task, variables, prepared)
    opinion = TEACHER.apply(task.teacher_variables, prepared["image"])
    label_loss = -(prepared["target"] * nn.log_softmax(logits)).sum(-1).mean()
    if mode == "hard":
        chosen = np.asarray(opinion).argmax(-1)
        teacher_loss = -nn.log_softmax(distill_logits)[np.arange(8), chosen].mean()
    else:
        q = nn.softmax(opinion / tau)
        log_p = nn.log_softmax(distill_logits / tau)
        teacher_loss = tau**2 * special.kl_div(q, jnp.exp(log_p)).sum(-1).mean()
    expected = (1 - alpha) * label_loss + alpha * teacher_loss
    assert float(loss_of(task, variables, batch)) == pytest.approx(
        float(expected), rel=1e-5
    )


def test_cached_and_live_logits_give_the_same_loss_and_gradient(variables, batch):
    task = make_task(mode="soft")
    opinion = task.teacher_logits(task.prepare(batch, key=KEY)["image"])
    cached = {**batch, distillation.TEACHER_LOGITS: opinion}
    # A teacher that must not be asked.
    deaf = dataclasses.replace(task, teacher=lambda variables, images: 1 / 0)

    def value_and_grad(task, batch):
        # Not one program: two of them may be rounded differently.
        return jax.value_and_grad(
            lambda params: loss_of(task, {**variables, "params": params}, batch)
        )(variables["params"])

    live, stored = value_and_grad(task, batch), value_and_grad(deaf, cached)
    jax.tree.map(np.testing.assert_array_equal, live, stored)


def test_the_teacher_sees_mixed_images_in_its_own_normalisation(batch):
    seen = {}

    def spy(variables, images):
        seen["images"] = images
        return TEACHER.apply(variables, images)

    mean, std = (0.5, 0.5, 0.5), (0.5, 0.4, 0.3)
    task = make_task(teacher=spy, teacher_mean=mean, teacher_std=std)
    prepared = task.prepare(batch, key=KEY)
    task.teacher_logits(prepared["image"])
    pixels = np.asarray(prepared["image"]) * STD + MEAN  # Mixed, in [0, 1] but noise.
    np.testing.assert_allclose(
        seen["images"], (pixels - mean) / std, rtol=1e-4, atol=1e-5
    )
    other = task.prepare(batch, key=jax.random.key(4))["image"]
    assert not np.allclose(prepared["image"], other)  # Mixing is a matter of the key.


def test_weight_of_the_teacher_runs_from_none_to_all(variables, batch):
    def grads(alpha):
        task = make_task(alpha=alpha)
        return jax.jit(
            jax.grad(
                lambda params: loss_of(task, {**variables, "params": params}, batch)
            )
        )(variables["params"])["head"]

    def moved(tree):
        return any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(tree))

    labels_only, teacher_only = grads(0.0), grads(1.0)
    assert moved(labels_only["classifier"])
    assert not moved(labels_only["distill_classifier"])
    assert not moved(teacher_only["classifier"])
    assert moved(teacher_only["distill_classifier"])


def test_one_head_learns_from_both(batch):
    task = make_task(distilled=False, mode="soft", alpha=0.5)
    variables = task.init(KEY, image_shape=(8, 8, 3))
    halves = [
        loss_of(dataclasses.replace(task, alpha=alpha), variables, batch)
        for alpha in (0.0, 1.0)
    ]
    assert float(loss_of(task, variables, batch)) == pytest.approx(
        float(sum(halves)) / 2, rel=1e-6
    )


def test_evaluation_averages_the_heads_and_asks_no_teacher(variables, batch):
    task = make_task(teacher=lambda variables, images: 1 / 0)
    mask = np.ones(8, bool)
    metrics = task.evaluate(variables, {**batch, "mask": mask})
    images = (batch["image"] / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
    features = Backbone().apply(
        {"params": variables["params"]["backbone"]}, images, train=False
    )
    heads = []
    for prefix in ("", "distill_"):
        single = {"params": {}, "batch_stats": {}}
        for kind, tree in single.items():
            for name, leaf in variables[kind]["head"].items():
                bare = name.removeprefix("distill_")
                if name == prefix + bare:
                    tree[bare] = leaf
        head = classifier.ClassifierHead(CLASSES)
        heads.append(head.apply(single, features["stage4"], train=False))
    right = (sum(heads) / 2).argmax(-1) == batch["label"]
    assert int(metrics["top1"].total) == int(right.sum())


def test_binding_replaces_the_variables_only(variables, batch):
    task = make_task()
    zeros = jax.tree.map(jnp.zeros_like, task.teacher_variables)

    @jax.jit
    def loss(teacher_variables):
        return loss_of(task.bind(teacher_variables), variables, batch)

    assert loss(task.teacher_variables) == pytest.approx(
        float(loss_of(task, variables, batch)), rel=1e-6
    )
    assert float(loss(zeros)) != pytest.approx(
        float(loss(task.teacher_variables)), rel=1e-3
    )


def test_a_teacher_of_other_classes_is_refused(variables, batch):
    task = make_task(teacher=lambda variables, images: jnp.zeros((8, 7)))
    with pytest.raises(ValueError, match=r"teacher logits \(8, 7\)"):
        loss_of(task, variables, batch)
