"""From a config to the functions of a run."""

import jax
import pytest
import runs

from lvb import assembly
from lvb.training import sharding


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh()


def plan_of(mesh, num_train=100, **changes):
    return assembly.plan_run(
        runs.tiny_config(**changes), num_train=num_train, mesh=mesh
    )


def test_epochs_become_steps(mesh):
    plan = plan_of(
        mesh,
        **{
            "schedule.steps": 0,
            "schedule.epochs": 2.5,
            "schedule.warmup_steps": 0,
            "schedule.warmup_epochs": 0.5,
            "checkpoint.every_steps": 0,
            "eval.every_epochs": 2.0,
        },
    )
    assert plan.steps_per_epoch == 6  # 100 // 16; the rest comes in another epoch.
    assert plan.total_steps == 15
    assert plan.warmup_steps == 3
    assert plan.eval_every == 12
    assert plan.save_every == 6


def test_steps_go_before_epochs(mesh):
    plan = plan_of(mesh)
    assert (plan.total_steps, plan.warmup_steps, plan.save_every) == (24, 4, 4)


@pytest.mark.parametrize(
    ("batch_size", "reference", "peak"), [(16, 64, 1e-3), (64, 64, 4e-3), (16, 0, 4e-3)]
)
def test_the_rate_scales_with_the_batch(mesh, batch_size, reference, peak):
    changes = {"batch_size": batch_size, "optimizer.lr_batch_size": reference}
    assert plan_of(mesh, **changes).peak_lr == pytest.approx(peak)


@pytest.mark.parametrize(("size", "rounded"), [(0, 16), (1, 8), (20, 24)])
def test_evaluation_batches_fit_the_devices(mesh, size, rounded):
    assert plan_of(mesh, **{"eval.batch_size": size}).eval_batch_size == rounded


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 12}, "batch_size=12 does not split over 8 devices"),
        ({"batch_size": 128}, "has 100 images, fewer than batch_size=128"),
        ({"log_every": 0}, "log_every gives 0"),
        ({"eval.every_epochs": 0.0}, "eval.every_epochs gives 0"),
        ({"schedule.steps": 0, "schedule.epochs": 0.0}, "gives 0; it must be positive"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(mesh, changes, message):
    with pytest.raises(ValueError, match=message):
        plan_of(mesh, **changes)


def assemble(mesh, **changes):
    config = runs.tiny_config(**changes)
    return assembly.assemble(config, num_classes=10, num_train=96, mesh=mesh)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.name": "lsnet_x"}, "'lsnet_x' is unknown"),
        ({"model.dtype": "int8"}, "model.dtype='int8' is unknown"),
        ({"optimizer.name": "lion"}, "'lion' is unknown"),
        ({"optimizer.clip_mode": "value"}, "clip_mode='value' is unknown"),
        ({"schedule.kind": "linear"}, "kind='linear' is unknown"),
        ({"data.image_size": 16}, "image_size=16 is out of range"),
        ({"schedule.warmup_steps": 24}, "the warm-up must end before"),
        ({"ema.decay": 1.5}, "ema: decay=1.5"),
        ({"mixup.num_groups": 3}, "num_groups=3"),
    ],
)
def test_words_that_do_not_fit_are_refused(mesh, changes, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(*trace(assemble(mesh, **changes)))


def trace(run):
    return run.train_step, run.state, run.train_batch, jax.random.key(0), run.constants


def test_a_step_keeps_the_shapes_of_the_state(mesh):
    run = assemble(mesh)
    state, metrics = jax.eval_shape(*trace(run))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), run.state
    )
    assert {"loss", "top1", "grad_norm"} <= set(metrics)


def test_averages_are_kept_only_when_asked_for(mesh):
    assert assemble(mesh, **{"ema.decay": 0.0}).state.ema == ()
    assert assemble(mesh).state.ema.params.keys() == {"backbone", "head"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_and_statistics_stay_float32(mesh, dtype):
    state = assemble(mesh, **{"model.dtype": dtype}).state
    leaves = jax.tree.leaves((state.params, state.batch_stats, state.ema))
    assert {str(leaf.dtype) for leaf in leaves} == {"float32"}


def test_recomputing_changes_no_shape(mesh):
    plain, remat = (assemble(mesh, **{"model.remat": value}) for value in (False, True))
    assert jax.tree.structure(remat.state) == jax.tree.structure(plain.state)
    jax.eval_shape(*trace(remat))


def test_macs_are_those_of_the_runs_own_images(mesh):
    gray = runs.tiny_config()
    colour = runs.tiny_config(
        **{"data.channels": 3, "data.mean": (0.5,) * 3, "data.std": (0.5,) * 3}
    )
    counts = [
        assembly.count_macs(
            config,
            assembly.assemble(config, num_classes=10, num_train=96, mesh=mesh),
        )
        for config in (gray, colour)
    ]
    # The first convolution: 16 x 16 positions, 3 x 3 taps, 2 more channels, C1 / 4 = 4.
    assert counts[1] - counts[0] == 16 * 16 * 9 * 2 * 4
