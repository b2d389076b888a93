"""One update: devices, accumulation, averages, metrics, randomness."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs

from lvb.tasks import classification
from lvb.training import compilation, sharding, state, step

CLASSES, BATCH = 7, 16


def make_task(**changes):
    options = dict(
        model=runs.MicroNet(CLASSES),
        num_classes=CLASSES,
        mean=(0.5,),
        std=(0.25,),
        label_smoothing=0.1,
        mixup_alpha=0.8,
    )
    return classification.ClassificationTask(**{**options, **changes})


def make_batch(number=0):
    rng = np.random.default_rng(number)
    return {
        "image": rng.integers(0, 256, (BATCH, 8, 8, 1), np.uint8),
        "label": rng.integers(0, CLASSES, BATCH, np.int32),
    }


TX = optax.adamw(1e-2)


def make_state(task, *, seed=0, keep_ema=True):
    init = functools.partial(task.init, image_shape=(8, 8, 1))
    shapes = jax.eval_shape(init, jax.random.key(0))
    return state.first_state(
        jax.jit(init)(jax.random.key(seed)),
        tx=TX,
        keep_ema=keep_ema,
        window=step.metric_shapes(task, shapes, make_batch()),
    )


def make_step(task, **options):
    options = {"ema_decay": 0.9, "log_every": 4, **options}
    return functools.partial(
        step.train_step, task=task, tx=TX, seed_key=jax.random.key(0), **options
    )


@pytest.fixture(scope="module")
def task():
    return make_task()


@pytest.fixture(scope="module")
def three_steps(task):
    """States after 0, 1, 2 and 3 steps on one device, and the metrics of each."""
    update = jax.jit(make_step(task))
    states, metrics = [make_state(task)], []
    for number in range(3):
        new, measured = update(states[-1], make_batch(number))
        states.append(new)
        metrics.append(measured)
    return states, metrics


def test_eight_devices_agree_with_one(task, three_steps):
    mesh = sharding.make_mesh()
    assert mesh.devices.size == 8
    replicated = sharding.replicated(mesh)
    update = jax.jit(
        make_step(task),
        in_shardings=(replicated, sharding.batch_sharding(mesh)),
        out_shardings=replicated,
    )
    train_state = jax.device_put(make_state(task), replicated)
    for number in range(3):
        train_state, metrics = update(train_state, make_batch(number))
    states, single = three_steps
    # Sums over the batch in another order: a few float32 roundings per step, which
    # AdamW's first steps, near the sign of the gradient, enlarge at tiny gradients.
    np.testing.assert_allclose(
        metrics["loss"].total, single[-1]["loss"].total, rtol=1e-5
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, train_state.batch_stats, states[-1].batch_stats)
    jax.tree.map(close, train_state.params, states[-1].params)


def test_statistics_are_those_of_the_global_batch(task):
    """On 8 devices too, the first update uses the mean over all 16 images."""
    mesh = sharding.make_mesh()
    train_state = make_state(task)
    batch = make_batch()
    placed = sharding.put_batch(batch, mesh, names=("image", "label"))
    new, _ = jax.jit(make_step(task))(train_state, placed)
    key = state.stream_key(jax.random.key(0), "mixup", step=0)
    images = task.prepare(batch, key=key)["image"]
    kernel = train_state.params["conv"]["kernel"]
    maps = jax.lax.conv_general_dilated(
        images, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    expected = 0.1 * maps.mean(axis=(0, 1, 2))  # From 0 with momentum 0.9.
    np.testing.assert_allclose(new.batch_stats["norm"]["mean"], expected, atol=1e-6)


class Frozen(runs.MicroNet):
    """A MicroNet whose batch norm uses its stored statistics, and drops nothing."""

    def __call__(self, images, *, train):
        del train
        return runs.MicroNet.__call__(self, images, train=False)


@pytest.mark.parametrize("grad_accum", [2, 4])
def test_accumulation_equals_the_large_batch_with_frozen_statistics(grad_accum):
    task = make_task(model=Frozen(CLASSES))
    train_state = make_state(task)
    whole, whole_metrics = jax.jit(make_step(task))(train_state, make_batch())
    parts, parts_metrics = jax.jit(make_step(task, grad_accum=grad_accum))(
        train_state, make_batch()
    )
    # Means of means of equal parts; AdamW's first step enlarges as above.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, parts.params, whole.params)
    for name in ("loss", "top1", "grad_norm"):
        close(parts_metrics[name].total, whole_metrics[name].total)
        assert int(parts_metrics[name].count) == int(whole_metrics[name].count)


def test_accumulation_has_the_statistics_of_micro_batches(task):
    train_state = make_state(task)
    update = jax.jit(make_step(task, grad_accum=2))
    new, _ = update(train_state, make_batch())
    key = state.stream_key(jax.random.key(0), "mixup", step=0)
    batch = task.prepare(make_batch(), key=key)
    stats = train_state.batch_stats
    for part in (0, 1):
        micro = {name: value[part::2] for name, value in batch.items()}
        rngs = {"drop_path": jax.random.key(9)}  # Acts behind the batch norm.
        _, (stats, _) = task.loss(train_state.params, stats, micro, rngs=rngs)
    np.testing.assert_allclose(
        new.batch_stats["norm"]["var"], stats["norm"]["var"], rtol=1e-5
    )


def test_accumulation_splits_without_moving_rows_between_devices(task):
    mesh = sharding.make_mesh(jax.devices()[:2])
    rows = np.arange(8)
    placed = jax.device_put(rows, sharding.batch_sharding(mesh))
    parts = jax.jit(lambda x: step._split(x, 2))(placed)
    assert parts.tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_a_batch_that_does_not_split_is_refused(task):
    with pytest.raises(
        ValueError, match="grad_accum=3 does not divide the batch of 16"
    ):
        jax.eval_shape(make_step(task, grad_accum=3), make_state(task), make_batch())


def test_step_counts_and_draws_follow_the_step(task, three_steps):
    states, _ = three_steps
    assert [int(s.step) for s in states] == [0, 1, 2, 3]
    update = jax.jit(make_step(task))
    again, _ = update(states[0], make_batch(0))
    jax.tree.map(np.testing.assert_array_equal, again, states[1])
    # The same batch at another step draws otherwise.
    late = states[0].replace(step=jnp.asarray(5))
    other, _ = update(late, make_batch(0))
    kernels = [s.params["conv"]["kernel"] for s in (again, other)]
    assert not jnp.array_equal(*kernels)


def test_streams_of_a_seed_are_independent():
    seed_key = jax.random.key(0)
    keys = {
        (name, number): tuple(
            jax.random.key_data(state.stream_key(seed_key, name, step=number)).tolist()
        )
        for name in state.STREAMS
        for number in (0, 1)
    }
    assert len(set(keys.values())) == len(keys)


def test_averages_follow_parameters_and_statistics(three_steps):
    states, _ = three_steps
    for number in (1, 2, 3):
        decay = min(0.9, number / (9 + number))  # (1 + t) / (10 + t) at t = number - 1
        old, new = states[number - 1], states[number]
        for tree in ("params", "batch_stats"):
            expected = jax.tree.map(
                lambda average, value, d=decay: d * average + (1 - d) * value,
                getattr(old.ema, tree),
                getattr(new, tree),
            )
            close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
            jax.tree.map(close, getattr(new.ema, tree), expected)


def test_variables_are_raw_or_averaged(three_steps):
    last = three_steps[0][-1]
    raw, averaged = last.variables(), last.variables(use_ema=True)
    assert raw["params"] is last.params
    assert averaged["params"] is last.ema.params
    assert averaged["batch_stats"] is last.ema.batch_stats


def test_without_averages_none_are_kept(task):
    train_state = make_state(task, keep_ema=False)
    assert train_state.ema == ()
    new, _ = jax.jit(make_step(task, ema_decay=0.0))(train_state, make_batch())
    assert new.ema == ()


def test_the_window_adds_up_and_starts_anew(task):
    update = jax.jit(make_step(task, log_every=2))
    train_state, sums = make_state(task), []
    for number in range(3):
        train_state, metrics = update(train_state, make_batch(number))
        sums.append(metrics)
    assert [int(m["loss"].count) for m in sums] == [16, 32, 16]
    assert [int(m["grad_norm"].count) for m in sums] == [1, 2, 1]
    assert float(sums[1]["loss"].total) > float(sums[0]["loss"].total)


def test_the_first_bad_step_is_remembered(task, three_steps):
    states, _ = three_steps
    state.check_finite(states[-1], schedule=optax.constant_schedule(0.5))
    spoiled = states[1].replace(
        params=jax.tree.map(lambda x: x * jnp.nan, states[1].params)
    )
    update = jax.jit(make_step(task))
    bad, _ = update(spoiled, make_batch(1))
    worse, metrics = update(bad, make_batch(2))
    assert int(metrics["nonfinite_step"]) == 1
    with pytest.raises(FloatingPointError, match=r"step 1 .*learning rate 0\.5"):
        state.check_finite(worse, schedule=optax.constant_schedule(0.5))


def test_evaluation_adds_batches(task):
    variables = make_state(task).variables()
    masks = [np.ones(BATCH, bool), np.arange(BATCH) < 3]
    batches = [{**make_batch(i), "mask": mask} for i, mask in enumerate(masks)]
    totals = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        jax.eval_shape(task.evaluate, variables, batches[0]),
    )
    for batch in batches:
        totals = step.eval_step(variables, totals, batch, task=task)
    alone = [task.evaluate(variables, batch) for batch in batches]
    assert int(totals["top1"].count) == 19
    assert int(totals["top1"].total) == sum(int(m["top1"].total) for m in alone)


def test_compiled_steps_refuse_other_shapes_and_keep_no_old_state(task):
    shapes = jax.eval_shape(lambda: make_state(task))
    eval_batch = {**make_batch(), "mask": np.ones(BATCH, bool)}
    steps = types.SimpleNamespace(
        train_step=lambda s, b, key, _: step.train_step(
            s, b, task=task, tx=TX, seed_key=key, ema_decay=0.9
        ),
        eval_step=functools.partial(step.eval_step, task=task),
        health_step=None,
        state=shapes,
        shardings=sharding.state_shardings(shapes, sharding.make_mesh()),
        constants=(),
        train_batch=make_batch(),
        eval_batch=eval_batch,
        totals=jax.eval_shape(task.evaluate, shapes.variables(), eval_batch),
    )
    mesh = sharding.make_mesh()
    programs = compilation.compile_programs(steps, mesh=mesh)
    assert programs.train.seconds > 0
    key = sharding.put_key(0, mesh)
    train_state = jax.device_put(make_state(task), sharding.replicated(mesh))
    batch = sharding.put_batch(make_batch(), mesh, names=("image", "label"))
    new, _ = programs.train.call(train_state, batch, key, ())
    assert int(new.step) == 1
    assert train_state.params["conv"]["kernel"].is_deleted()
    short = {name: value[:8] for name, value in make_batch().items()}
    placed = sharding.put_batch(short, mesh, names=("image", "label"))
    with pytest.raises(TypeError):
        programs.train.call(new, placed, key, ())
