"""The classification task around a model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs

from lvb.tasks import classification

CLASSES = 7


def make_task(**changes):
    options = dict(
        model=runs.MicroNet(CLASSES),
        num_classes=CLASSES,
        mean=(0.5,),
        std=(0.25,),
    )
    return classification.ClassificationTask(**{**options, **changes})


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (8, 8, 8, 1), np.uint8)),
        "label": jnp.asarray(rng.integers(0, CLASSES, 8, np.int32)),
    }


def test_init_depends_on_the_key_alone():
    task = make_task()
    a, b, c = (task.init(jax.random.key(k), image_shape=(8, 8, 1)) for k in (0, 0, 1))
    assert all(jax.tree.leaves(jax.tree.map(jnp.array_equal, a, b)))
    kernels = [v["params"]["conv"]["kernel"] for v in (a, c)]
    assert not jnp.array_equal(*kernels)


def test_without_augmentation_prepare_only_normalises(batch):
    got = make_task().prepare(batch, key=jax.random.key(0))
    expected = (batch["image"].astype(jnp.float32) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(got["image"], expected, atol=1e-6)
    np.testing.assert_array_equal(
        got["target"], jax.nn.one_hot(batch["label"], CLASSES)
    )


def test_smoothing_and_mixing_keep_distributions(batch):
    task = make_task(label_smoothing=0.1, mixup_alpha=0.8, cutmix_alpha=1.0)
    got = task.prepare(batch, key=jax.random.key(3))
    np.testing.assert_allclose(got["target"].sum(axis=-1), 1.0, atol=1e-6)
    assert float(got["target"].min()) >= 0.1 / CLASSES - 1e-6
    np.testing.assert_array_equal(got["label"], batch["label"])


def test_erasing_comes_before_mixing(batch):
    """Mixed erased pixels are noise scaled by lambda, so both parts must differ."""
    plain = make_task(mixup_alpha=1.0).prepare(batch, key=jax.random.key(5))
    erased = make_task(mixup_alpha=1.0, erasing_prob=1.0).prepare(
        batch, key=jax.random.key(5)
    )
    np.testing.assert_array_equal(plain["target"], erased["target"])
    assert not jnp.array_equal(plain["image"], erased["image"])


def test_loss_is_the_mean_cross_entropy_and_moves_statistics(batch):
    task = make_task()
    variables = task.init(jax.random.key(0), image_shape=(8, 8, 1))
    params, stats = variables["params"], variables["batch_stats"]
    prepared = task.prepare(batch, key=jax.random.key(0))
    rngs = {"drop_path": jax.random.key(1)}
    loss, (new_stats, metrics) = task.loss(params, stats, prepared, rngs=rngs)
    logits, _ = task.model.apply(
        variables, prepared["image"], train=True, rngs=rngs, mutable=["batch_stats"]
    )
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"].total, expected.sum(), rtol=1e-6)
    assert int(metrics["loss"].count) == 8
    assert not jnp.array_equal(new_stats["norm"]["mean"], stats["norm"]["mean"])


def test_both_heads_of_a_distilled_model_learn(batch):
    class TwoHeads(runs.MicroNet):
        @runs.nn.compact
        def __call__(self, images, *, train):
            x = images.mean(axis=(1, 2))
            a = runs.nn.Dense(CLASSES, name="a")(x)
            b = runs.nn.Dense(CLASSES, name="b")(x)
            return (a, b) if train else (a + b) / 2

    task = make_task(model=TwoHeads(CLASSES))
    variables = task.init(jax.random.key(0), image_shape=(8, 8, 1))
    assert variables["batch_stats"] == {}
    prepared = task.prepare(batch, key=jax.random.key(0))
    grads, (stats, _) = jax.grad(task.loss, has_aux=True)(
        variables["params"], {}, prepared, rngs={}
    )
    assert stats == {}
    assert all(jnp.abs(grads[head]["kernel"]).max() > 0 for head in ("a", "b"))


def test_evaluation_counts_masked_rows_out(batch):
    task = make_task(label_smoothing=0.1)
    variables = task.init(jax.random.key(0), image_shape=(8, 8, 1))
    mask = jnp.arange(8) < 5
    got = task.evaluate(variables, {**batch, "mask": mask})
    half = {name: value[:5] for name, value in batch.items()}
    alone = task.evaluate(variables, {**half, "mask": jnp.ones(5, bool)})
    assert int(got["top1"].count) == 5
    assert int(got["top1"].total) == int(alone["top1"].total)
    # Without label smoothing, whatever training uses.
    plain = make_task().evaluate(variables, {**batch, "mask": mask})
    assert float(got["loss"].total) == float(plain["loss"].total)
    np.testing.assert_allclose(got["loss"].total, alone["loss"].total, rtol=1e-6)
