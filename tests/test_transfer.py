"""What a run takes over from another: network, weights and opinion."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import tiny_model

import lvb
from lvb import assembly, inputs, train, transfer
from lvb.config import flags
from lvb.tasks import distillation
from lvb.training import metric_writer, sharding, weights

DIGITS = tuple("0123456789")
PREPROCESSING = {
    **{"size": 32, "crop_ratio": 1.0, "channels": 3, "interpolation": "bicubic"},
    **{"mean": [0.3, 0.3, 0.3], "std": [0.4, 0.4, 0.4]},
}


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(jax.devices()[:1])


@pytest.fixture(scope="module")
def variables():
    return tiny_model.random_variables(10, seed=3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, variables):
    """A checkpoint that knows the digits, in three channels."""
    folder = tmp_path_factory.mktemp("saved") / "W"
    weights.save_variables(
        folder,
        variables,
        model=tiny_model.options(10),
        preprocessing=PREPROCESSING,
        class_names=DIGITS,
    )
    return str(folder)


def make_config(saved, **changes):
    """A run on digits that fits the checkpoint, without chance in its images."""
    config = flags.load(str(runs.QUICKSTART))
    plain = {
        "data.channels": 3,
        "data.mean": (0.3, 0.3, 0.3),
        "data.std": (0.4, 0.4, 0.4),
        "data.shift": 0,
        "model.dims": (16, 16, 32, 32),
        "model.depths": (0, 1, 1, 1),
        "distillation.teacher": saved,
        "distillation.kind": "soft",
        "init.checkpoint": saved,
        "batch_size": 16,
    }
    config.update_from_flattened_dict({**plain, **changes})
    return config


def teach(config, mesh, class_names=DIGITS):
    return transfer.open_teacher(config, class_names=class_names, mesh=mesh)


def test_the_network_is_the_checkpoints(saved):
    config = make_config(saved, **{"model.name": "", "model.drop_path_rate": 0.2})
    settled = transfer.resolve_model(config)
    assert settled.model.name == "lsnet_t"
    assert settled.model.dims == (16, 16, 32, 32)  # A tuple again, as the fields are.
    # What concerns training, and the number of classes, stays the run's own.
    assert settled.model.drop_path_rate == 0.2
    assert settled.model.num_classes == 0
    assert config.model.name == ""
    lvb.create_model(**{**settled.model.to_dict(), "num_classes": 3, "dtype": None})


def test_a_named_network_and_a_saved_config_need_no_checkpoint(saved):
    config = make_config(saved)
    assert transfer.resolve_model(config) is config
    gone = make_config("gone", **{"model.name": ""})
    earlier = {"model": {**tiny_model.options(10), "dims": [8, 8, 8, 8]}}
    settled = transfer.resolve_model(gone, saved=earlier)
    assert settled.model.dims == (8, 8, 8, 8)
    with pytest.raises(ValueError, match=r"model\.name is empty"):
        transfer.resolve_model(make_config("", **{"model.name": ""}))


def first_state(config, mesh, class_names=DIGITS):
    run = assembly.assemble(
        config, num_classes=len(class_names), num_train=64, mesh=mesh
    )
    rng = np.random.default_rng(0)
    fresh = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape).astype(x.dtype)), run.state
    )
    return transfer.first_state(
        config,
        lambda key: fresh,
        shardings=run.shardings,
        class_names=class_names,
        seed_key=sharding.put_key(0, mesh),
    ), fresh


def plain(config):
    """Without a teacher, for tests that do not distil."""
    config.distillation.kind = "none"
    return config


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_a_run_starts_at_the_weights(saved, variables, mesh, capsys):
    state, fresh = first_state(plain(make_config(saved)), mesh)
    assert same(state.variables(), variables)
    assert same(state.opt_state, fresh.opt_state)
    assert f"Starting from {saved}:" in capsys.readouterr().out


@pytest.mark.parametrize("changes", [{"init.checkpoint": ""}, {"init.weights": "none"}])
def test_a_run_may_start_from_the_seed(saved, mesh, changes):
    state, fresh = first_state(plain(make_config(saved, **changes)), mesh)
    assert same(state, fresh)


def test_other_classes_need_a_new_head(saved, variables, mesh):
    names = ("cat", "dog", "eel")
    with pytest.raises(ValueError, match=r"other classes than the data.*reset_head"):
        first_state(plain(make_config(saved)), mesh, names)
    config = plain(make_config(saved, **{"init.reset_head": True}))
    state, fresh = first_state(config, mesh, names)
    assert same(state.params["backbone"], variables["params"]["backbone"])
    kernel = state.params["head"]["classifier"]["kernel"]
    assert kernel.shape == (32, 3)
    again, _ = first_state(config, mesh, names)
    assert same(again.params["head"], state.params["head"])  # Drawn from the seed.
    assert same(state.params["head"]["norm"], variables["params"]["head"]["norm"])
    del fresh


def test_both_heads_of_a_pair_are_renewed(tmp_path, mesh):
    model = {**tiny_model.options(10), "distilled": True}
    shapes = jax.eval_shape(
        lambda: lvb.create_model(**{**model, "dtype": jnp.float32}).init(
            jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False
        )
    )
    rng = np.random.default_rng(5)
    both = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)
    folder = str(tmp_path / "two")
    weights.save_variables(
        folder,
        both,
        model=model,
        preprocessing=PREPROCESSING,
        class_names=DIGITS,
    )
    config = plain(make_config(folder, **{"model.name": "", "init.reset_head": True}))
    config = transfer.resolve_model(config)
    assert config.model.distilled
    state, _ = first_state(config, mesh, ("cat", "dog", "eel"))
    head = state.params["head"]
    for name in ("classifier", "distill_classifier"):
        assert head[name]["kernel"].shape == (32, 3)
    assert not same(head["classifier"]["kernel"], head["distill_classifier"]["kernel"])
    assert same(state.params["backbone"], both["params"]["backbone"])


def test_other_inputs_are_refused_unless_told(saved, mesh):
    changes = {"data.mean": (0.5, 0.5, 0.5)}
    with pytest.raises(ValueError, match=r"learnt with mean=\(0\.3, 0\.3, 0\.3\)"):
        first_state(plain(make_config(saved, **changes)), mesh)
    first_state(
        plain(make_config(saved, **changes, **{"init.check_inputs": False})), mesh
    )


def test_a_checkpoint_teaches_what_its_network_says(saved, variables, mesh):
    found = teach(make_config(saved), mesh)
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    model = lvb.create_model(**{**tiny_model.options(10), "dtype": jnp.float32})
    ours = jax.jit(found.logits_of)(found.variables, images)
    theirs = jax.jit(functools.partial(model.apply, train=False))(variables, images)
    # Fused against not: 1e-4 of the logits' own size.
    scale = float(np.abs(theirs).max())
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * scale)
    assert (found.mean, found.num_classes) == ((0.3, 0.3, 0.3), 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distillation.kind": "medium"}, "use one of none, hard, soft"),
        ({"distillation.teacher": ""}, r"needs --config\.distillation\.teacher"),
        ({"distillation.teacher": "nowhere"}, "nowhere holds no checkpoint"),
        ({"distillation.teacher": "gone.onnx"}, "does not exist"),
        ({"data.channels": 1}, "the student gets 32 x 32 x 1"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(saved, mesh, changes, message):
    with pytest.raises(ValueError, match=message):
        teach(make_config(saved, **changes), mesh)


def test_without_distillation_there_is_no_teacher(saved, mesh):
    assert teach(plain(make_config(saved)), mesh) is None


def distil(config, mesh):
    data = inputs.open_data(config, data_dir=None)
    task = assembly.make_task(config, num_classes=10, teacher=teach(config, mesh))
    return task, data


def test_remembered_logits_are_those_of_the_batch(saved, mesh):
    config = make_config(saved, **{"distillation.cache": True})
    task, data = distil(config, mesh)
    complete = transfer.completion(config, task, data, mesh=mesh)
    with inputs.train_batches(config, data, start_step=2) as batches:
        batch = next(batches)
    completed = complete(batch)
    images = task.prepare(
        {name: jnp.asarray(batch[name]) for name in ("image", "label")},
        key=jax.random.key(0),
    )["image"]
    live = jax.jit(lambda v, x: task.bind(v).teacher_logits(x))(
        task.teacher_variables, images
    )
    remembered = completed[distillation.TEACHER_LOGITS]
    np.testing.assert_allclose(remembered, live, rtol=1e-5, atol=1e-5)
    assert len(np.unique(remembered, axis=0)) > 1
    assert np.array_equal(completed["image"], batch["image"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixup.cutmix_alpha": 1.0}, "make every image new"),
        ({"erasing.prob": 0.1}, "make every image new"),
        ({"data.shift": 2}, "the training transform is random"),
    ],
)
def test_chance_in_the_images_forbids_remembering(saved, mesh, changes, message):
    config = make_config(saved, **changes)
    task, data = distil(config, mesh)
    with pytest.raises(ValueError, match=message):
        transfer.cached_logits(config, task, data, mesh=mesh)


def test_frozen_paths_and_exempt_names_reach_the_optimiser(saved, mesh):
    config = plain(
        make_config(
            saved,
            **{
                "optimizer.layer_rates": "backbone=0.5,backbone/stem=0",
                "optimizer.no_decay": ("classifier",),
                "optimizer.name": "sgd",
                "optimizer.momentum": 0.0,
                "optimizer.weight_decay": 0.1,
                "schedule.warmup_epochs": 0.0,
            },
        )
    )
    task = assembly.make_task(config, num_classes=10)
    shapes = jax.eval_shape(
        lambda: task.init(jax.random.key(0), image_shape=(32, 32, 3))
    )["params"]
    params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
    tx = assembly.make_optimizer(config, lambda step: 1.0, params=params)
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = jax.jit(tx.update)(zeros, tx.init(params), params)
    # Decay alone moves them: by 0.1, halved in the backbone, nothing where exempt.
    assert np.all(updates["head"]["classifier"]["kernel"] == 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(updates["backbone"]):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        exempt = name.startswith("stem") or leaf.ndim < 2 or "biases" in name
        np.testing.assert_allclose(leaf, 0 if exempt else -0.05, rtol=1e-6)


def losses(folder):
    lines = metric_writer.read_metrics(folder / "metrics.jsonl")
    return [line["train/loss"] for line in lines if "train/loss" in line]


@pytest.mark.slow
def test_live_and_remembered_teachers_train_alike(saved, tmp_path):
    found = {}
    for cache in (False, True):
        config = make_config(saved, **{"distillation.cache": cache, "log_every": 2})
        config.update_from_flattened_dict(
            {"schedule.steps": 8, "schedule.warmup_steps": 2, "init.checkpoint": ""}
        )
        train.train_and_evaluate(config, workdir=str(tmp_path / str(cache)))
        found[cache] = losses(tmp_path / str(cache))
    assert len(found[True]) == 4
    np.testing.assert_allclose(found[True], found[False], rtol=1e-5)


@pytest.mark.slow
def test_fine_tuning_moves_only_what_it_may(saved, variables, tmp_path, repo_root):
    arg = f"data=digits,checkpoint={saved},res=32,freeze=backbone"
    config = flags.load(f"{repo_root}/configs/finetune_folder.py:{arg}")
    config.update_from_flattened_dict(
        {
            "data.mean": (0.3, 0.3, 0.3),
            "data.std": (0.4, 0.4, 0.4),
            "schedule.steps": 6,
            "schedule.warmup_epochs": 0.0,
            "data.num_workers": 0,
        }
    )
    train.train_and_evaluate(config, workdir=str(tmp_path / "tuned"))
    notes, tuned = weights.load_checkpoint(tmp_path / "tuned")
    assert notes["class_names"] == list(DIGITS)
    assert notes["model"]["dims"] == [16, 16, 32, 32]
    assert same(tuned["params"]["backbone"], variables["params"]["backbone"])
    assert same(tuned["batch_stats"], variables["batch_stats"])
    assert not same(tuned["params"]["head"], variables["params"]["head"])
    # A session more needs the checkpoint for nothing.
    again = train.train_and_evaluate(
        config,
        workdir=str(tmp_path / "tuned"),
    )
    assert again.step == 6
