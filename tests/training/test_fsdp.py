"""The rule that splits a state, and a train step on a split state."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs
from jax.sharding import NamedSharding, PartitionSpec

from lvb import train
from lvb.training import fsdp, metric_writer, sharding, workdir

WHOLE = PartitionSpec()


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((3, 3, 64, 256), PartitionSpec(None, None, None, "model")),
        ((512, 128), PartitionSpec("model")),
        ((256, 256), PartitionSpec(None, "model")),
        ((1000, 384), PartitionSpec("model")),
        ((999, 384), PartitionSpec(None, "model")),  # 999 is odd.
        ((999, 385), WHOLE),  # Nothing divides by 4.
        ((16, 16), WHOLE),  # Small.
        ((), WHOLE),
    ],
)
def test_longest_dividing_dimension_is_split(shape, spec):
    assert fsdp.partition_spec(shape, axis="model", axis_size=4) == spec


def test_one_device_splits_nothing():
    assert fsdp.partition_spec((512, 512), axis="model", axis_size=1) == WHOLE


def test_bounds_of_the_smallest_array():
    at, below = (128, 128), (128, 124)
    options = dict(axis="model", axis_size=4, min_elements=128 * 128)
    assert fsdp.partition_spec(at, **options) != WHOLE
    assert fsdp.partition_spec(below, **options) == WHOLE


@pytest.fixture(scope="module")
def params():
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "backbone": {"kernel": jax.random.normal(keys[0], (64, 256)) / 8},
        "head": {
            "kernel": jax.random.normal(keys[1], (256, 64)) / 16,
            "bias": jnp.zeros(64),
        },
    }


def test_names_stay_whole_in_parameters_and_moments(params):
    state = {"params": params, "opt_state": optax.adam(1e-3).init(params)}
    specs = fsdp.partition_state(
        state, axis="model", axis_size=2, min_elements=100, whole=("head",)
    )
    moments = specs["opt_state"][0]
    for tree in (specs["params"], moments.mu, moments.nu):
        assert tree["backbone"]["kernel"] == PartitionSpec(None, "model")
        assert tree["head"]["kernel"] == WHOLE
    # 64 * 256 of 2 * 64 * 256 + 64 numbers, three times, and a count.
    assert fsdp.split_share(state, specs) == pytest.approx(0.5, abs=2e-3)


def test_a_split_state_trains_like_a_whole_one(params):
    tx = optax.adamw(1e-2)
    images = np.random.default_rng(0).normal(size=(16, 64)).astype(np.float32)

    def loss(params, x):
        hidden = jnp.tanh(x @ params["backbone"]["kernel"])
        head = params["head"]
        logits = hidden @ head["kernel"] + head["bias"][None]
        return jnp.square(logits - x).mean()

    def step(state, x):
        params, opt_state = state
        grads = jax.grad(loss)(params, x)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    state = (params, tx.init(params))
    expected = state
    for _ in range(3):
        expected = step(expected, images)

    types = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 4), ("data", "model"), types)
    specs = fsdp.partition_state(state, axis="model", axis_size=4, min_elements=1000)
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        specs,
        is_leaf=lambda x: isinstance(x, PartitionSpec),
    )
    rows = NamedSharding(mesh, PartitionSpec(("data", "model")))
    compiled = jax.jit(step, in_shardings=(shardings, rows), out_shardings=shardings)
    split = jax.device_put(state, shardings)
    for _ in range(3):
        split = compiled(split, jax.device_put(images, rows))

    kernel = split[0]["backbone"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (64, 64)
    # Sums over images in another order: float32 rounding, and Adam divides by the
    # root of a second moment that may itself be at rounding level.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        split,
        expected,
    )


def test_the_mesh_holds_the_state_in_parts():
    mesh = sharding.make_mesh(model_axis=4)
    assert dict(mesh.shape) == {"data": 2, "model": 4}
    shapes = {"kernel": jax.ShapeDtypeStruct((64, 256), jnp.float32)}
    split = sharding.state_shardings(shapes, mesh)["kernel"]
    assert split.shard_shape((64, 256)) == (64, 64)
    kept = sharding.state_shardings(shapes, mesh, whole=("kernel",))["kernel"]
    assert kept.is_fully_replicated
    # Rows are split over all eight devices either way.
    assert sharding.batch_sharding(mesh).shard_shape((16, 3)) == (2, 3)
    one = sharding.state_shardings(shapes, sharding.make_mesh())["kernel"]
    assert one.is_fully_replicated


@pytest.mark.parametrize("model_axis", [0, 3, 16])
def test_a_mesh_that_does_not_divide_is_refused(model_axis):
    with pytest.raises(ValueError, match=f"model_axis={model_axis} does not divide"):
        sharding.make_mesh(model_axis=model_axis)


@pytest.mark.slow
def test_a_run_may_change_its_split_on_the_way(tmp_path):
    def losses():
        lines = metric_writer.read_metrics(tmp_path / workdir.METRICS)
        return [line["train/loss"] for line in lines if "train/loss" in line]

    split = {"sharding.min_elements": 64, "sharding.model_axis": 4}
    train.train_and_evaluate(runs.tiny_config(**split), workdir=str(tmp_path))
    expected = losses()
    # As if the session had ended before the last checkpoint.
    newest = max((tmp_path / workdir.CHECKPOINTS).iterdir())
    assert newest.name == "00000024"
    shutil.rmtree(newest)
    summary = train.train_and_evaluate(runs.tiny_config(), workdir=str(tmp_path))
    assert summary.step == 24
    # Four steps whose sums over images are taken in another order.
    np.testing.assert_allclose(losses(), expected, rtol=1e-4)
