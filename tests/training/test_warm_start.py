"""Weights of one run as the start of another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import lvb
from lvb.ops import relative_bias
from lvb.training import ema, sharding, state, warm_start

SMALL = dict(dims=(8, 16, 16, 32), depths=(0, 1, 1, 2), num_heads=2, key_dim=8)


def variables_of(*, seed=0, num_classes=5, **options):
    """Random variables of a small LSNet; nothing is compiled."""
    options = {**SMALL, **options}
    model = lvb.create_model("lsnet_t", num_classes=num_classes, **options)
    images = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)


@pytest.fixture(scope="module")
def loaded():
    return variables_of(seed=1)


@pytest.fixture(scope="module")
def two_heads():
    return variables_of(seed=2, distilled=True)


def equal(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_same_model_takes_everything_over(loaded):
    start = warm_start.fit(loaded, variables_of())
    assert equal(start.variables, loaded)
    assert jax.tree.structure(start.variables["params"]) == jax.tree.structure(
        loaded["params"]
    )
    assert (start.resized, start.fresh, start.dropped) == ((), (), ())
    count = len(jax.tree.leaves(loaded))
    assert start.describe() == f"{count} arrays taken over"


def test_two_heads_into_one_and_one_into_two(loaded, two_heads):
    narrow = warm_start.fit(two_heads, loaded)
    assert set(narrow.variables["params"]["head"]) == {"norm", "classifier"}
    assert equal(
        narrow.variables["params"]["backbone"], two_heads["params"]["backbone"]
    )
    assert {name.split("/")[1] for name in narrow.dropped} == {
        "distill_norm",
        "distill_classifier",
    }
    wide = warm_start.fit(loaded, two_heads)
    head = wide.variables["params"]["head"]
    assert equal(head["classifier"], loaded["params"]["head"]["classifier"])
    # What one head does not give is the model's own start.
    own = two_heads["params"]["head"]["distill_classifier"]
    assert equal(head["distill_classifier"], own)
    assert "head/distill_classifier/kernel" in wide.fresh
    assert f"{len(wide.fresh)} new (" in wide.describe()


def test_bias_tables_follow_the_map(loaded):
    own = variables_of(bias_table_size=6)
    start = warm_start.fit(loaded, own)
    assert len(start.resized) == 1

    def table(tree):
        return next(
            leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
            if path[-1].key == "attention_biases"
        )

    assert table(loaded).shape == (2, 16)
    np.testing.assert_array_equal(
        table(start.variables),
        relative_bias.resize_table(jnp.asarray(table(loaded)), size=(6, 6)),
    )


def test_other_classes_ask_for_a_reset(loaded):
    own = variables_of(num_classes=3)
    with pytest.raises(ValueError, match=r"head/classifier/.*reset_head=True"):
        warm_start.fit(loaded, own)
    reset = lvb.reset_head(loaded, num_classes=3, rng=jax.random.key(0))
    start = warm_start.fit(reset, own)
    assert start.variables["params"]["head"]["classifier"]["bias"].shape == (3,)
    assert equal(start.variables["params"]["backbone"], loaded["params"]["backbone"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"squeeze_excite": False}, "the checkpoint has backbone/.*squeeze"),
        ({"ls_kernel_size": 5}, r"perception.* has shape \(7, 7.*model's \(5, 5"),
    ],
)
def test_another_backbone_is_refused_by_name(options, message):
    deep = {"depths": (0, 2, 1, 2)}  # With a block of each kind.
    with pytest.raises(ValueError, match=message):
        warm_start.fit(variables_of(**deep), variables_of(**deep, **options))


def test_missing_backbone_leaf_is_named(loaded):
    params = {**loaded["params"], "backbone": dict(loaded["params"]["backbone"])}
    del params["backbone"]["stage4"]
    with pytest.raises(ValueError, match="the checkpoint has no backbone/stage4/"):
        warm_start.fit({**loaded, "params": params}, loaded)


@pytest.mark.parametrize("keep_ema", [False, True])
def test_state_and_averages_start_at_the_weights(loaded, keep_ema):
    own = variables_of()
    mesh = sharding.make_mesh()
    fresh = state.TrainState(
        step=jnp.zeros((), jnp.int32),
        params=own["params"],
        batch_stats=own["batch_stats"],
        opt_state=(),
        ema=ema.init_ema(own["params"], own["batch_stats"]) if keep_ema else (),
        window=(),
        nonfinite_step=jnp.full((), -1, jnp.int32),
    )
    whole = NamedSharding(mesh, PartitionSpec())
    shardings = jax.tree.map(lambda _: whole, fresh)
    started = warm_start.apply_start(fresh, loaded, shardings=shardings)
    assert equal(started.variables(), loaded)
    assert started.step == 0
    assert bool(started.ema) == keep_ema
    if keep_ema:
        assert equal(started.variables(use_ema=True), loaded)
        # A donated state must not hold one buffer twice.
        raw, average = (
            jax.tree.leaves(tree)[0].addressable_shards[0].data
            for tree in (started.params, started.ema.params)
        )
        assert raw.unsafe_buffer_pointer() != average.unsafe_buffer_pointer()


def test_inputs_made_ready_otherwise_are_refused():
    theirs = {"size": 224, "channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3}
    ours = {"size": 160, "channels": 3, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    warm_start.check_inputs(theirs, ours, what="W")  # The size may differ.
    with pytest.raises(
        ValueError, match=r"W learnt with mean=\(0.5, 0.5, 0.5\).*check_inputs=False"
    ):
        warm_start.check_inputs(theirs, {**ours, "mean": (0.4, 0.5, 0.5)}, what="W")
    with pytest.raises(ValueError, match=r"channels=3, and data\.channels is 1"):
        warm_start.check_inputs(theirs, {**ours, "channels": 1}, what="W")
