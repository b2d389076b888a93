"""A run's first words and last deeds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from lvb import assembly, bookends, inputs
from lvb.config import flags
from lvb.data import decode
from lvb.training import ema, sharding, state

CHANGES = {
    "ema.recalibrate_batches": 1,
    "eval.use_ema": True,
    "eval.confusion": True,
    "model.dims": (16, 16, 16, 32),
    "data.synthetic_length": 24,
    "model.drop_path_rate": 0.5,
}


@pytest.fixture(scope="module")
def parts():
    """Config, run, data, mesh and a state whose averages differ from its weights."""
    config = runs.tiny_config(**CHANGES)
    mesh = sharding.make_mesh(jax.devices()[:1])
    data = inputs.open_data(config, data_dir=None)
    run = assembly.assemble(
        config,
        num_classes=len(data.train.class_names),
        num_train=len(data.train),
        mesh=mesh,
    )
    variables = jax.jit(
        lambda key: run.task.init(key, image_shape=run.train_batch["image"].shape[1:])
    )(jax.random.key(0))
    rng = np.random.default_rng(0)
    averages = jax.tree.map(
        lambda x: x + 0.1 * rng.normal(size=x.shape).astype(x.dtype), variables
    )
    train_state = state.TrainState(
        step=jnp.full((), run.plan.total_steps, jnp.int32),
        opt_state=(),
        window=(),
        nonfinite_step=jnp.full((), -1, jnp.int32),
        ema=ema.Ema(**averages),
        **variables,
    )
    return config, run, data, mesh, train_state


def logits(run, variables, images, *, train):
    model = run.task.model
    calm = model.clone(backbone=model.backbone.clone(drop_path_rate=0.0))

    @jax.jit
    def apply(variables, images):
        return calm.apply(variables, images, train=train, mutable=["batch_stats"])

    return apply(variables, images)[0]


def test_recalibrated_averages_know_the_batch(parts):
    config, run, data, mesh, before = parts
    after = bookends.recalibrate_averages(
        config, run, data, train_state=before, mesh=mesh
    )
    with inputs.train_batches(config, data, start_step=0) as batches:
        first = next(batches)
    batch = {name: jnp.asarray(first[name]) for name in run.train_batch}
    seed_key = sharding.put_key(config.seed, mesh)
    key = state.stream_key(seed_key, "mixup", step=0)
    images = run.task.prepare(batch, key=key)["image"]
    # Statistics of exactly one batch: running and batch statistics then agree.
    own = logits(run, before.variables(use_ema=True), images, train=True)
    running = logits(run, after.variables(use_ema=True), images, train=False)
    scale = float(np.abs(own).max())
    np.testing.assert_allclose(running, own, atol=1e-4 * scale)
    stale = logits(run, before.variables(use_ema=True), images, train=False)
    assert not np.allclose(stale, own, atol=1e-2 * scale)
    # Nothing else has moved.
    assert after.params is before.params
    assert after.batch_stats is before.batch_stats
    assert after.ema.params is before.ema.params


def test_recalibrating_twice_is_recalibrating_once(parts):
    config, run, data, mesh, before = parts
    once = bookends.recalibrate_averages(
        config, run, data, train_state=before, mesh=mesh
    )
    twice = bookends.recalibrate_averages(
        config, run, data, train_state=once, mesh=mesh
    )
    jax.tree.map(
        np.testing.assert_array_equal, once.ema.batch_stats, twice.ema.batch_stats
    )


def test_without_the_leaf_nothing_happens(parts):
    _, run, data, mesh, before = parts
    config = runs.tiny_config(**{**CHANGES, "ema.recalibrate_batches": 0})
    assert (
        bookends.recalibrate_averages(config, run, data, train_state=before, mesh=mesh)
        is before
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ema.decay": 0.0}, r"ema\.decay=0 keeps none"),
        ({"model.frozen_batch_norm": True}, r"model\.frozen_batch_norm keeps"),
    ],
)
def test_settings_that_contradict_recalibration(changes, message):
    config = runs.tiny_config(**CHANGES)
    with config.unlocked():
        config.update_from_flattened_dict({"model.frozen_batch_norm": False})
        for name, value in changes.items():
            group, leaf = name.split(".")
            config[group][leaf] = value
    mesh = sharding.make_mesh(jax.devices()[:1])
    with pytest.raises(ValueError, match=message):
        assembly.assemble(config, num_classes=4, num_train=64, mesh=mesh)


def test_confusion_counts_what_the_averages_predict(parts, capsys):
    config, run, data, mesh, train_state = parts
    bookends.say_confusion(config, run, data, train_state=train_state, mesh=mesh)
    text = capsys.readouterr().out
    images = np.stack(
        [data.eval_transform(_picture(data.val, i), None) for i in range(len(data.val))]
    )
    batch = {
        "image": jnp.asarray(images),
        "label": jnp.asarray([data.val[i].label for i in range(len(data.val))]),
        "mask": jnp.ones(len(data.val), bool),
    }
    metrics = jax.jit(run.task.evaluate)(train_state.variables(use_ema=True), batch)
    right = int(metrics["top1"].total)
    assert text.startswith(f"Confusion: {right} of {len(data.val)} images right")


def _picture(source, index):
    return decode.decode_image(source[index].image)


def test_confusion_is_silent_unless_asked_for(parts, capsys):
    _, run, data, mesh, train_state = parts
    config = runs.tiny_config(**{**CHANGES, "eval.confusion": False})
    bookends.say_confusion(config, run, data, train_state=train_state, mesh=mesh)
    assert capsys.readouterr().out == ""


def test_the_start_says_what_will_run(parts, tmp_path, capsys):
    config, run, data, mesh, _ = parts
    bookends.say_start(config, run, data, mesh=mesh, folder=tmp_path, cache=None)
    text = capsys.readouterr().out
    for words in (
        *("model.name = 'lsnet_t'", "head/classifier", "1 x cpu on 1 host"),
        *("24 train, 24 val", "16 images; batch norm sees 16", "cache   off"),
    ):
        assert words in text
    assert "head/classifier/kernel" in (tmp_path / bookends.PARAMETERS).read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "official log 52.43"),
        ({"schedule.epochs": 100.0}, ""),
        ({"model.num_classes": 10}, ""),
        ({"model.distilled": True}, "official log 55.29"),
    ],
)
def test_official_words_need_the_official_run(repo_root, changes, words):
    config = flags.load(str(repo_root / "configs" / "lsnet_t.py"))
    config.update_from_flattened_dict({"batch_size": 8, **changes})
    mesh = sharding.make_mesh(jax.devices()[:1])
    plan = assembly.plan_run(config, num_train=80, mesh=mesh)
    beside = assembly.official_words(config, plan)
    assert beside(20 * plan.steps_per_epoch) == words
