"""The public functions: names, options, shapes, fusion, heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import randomised
from sizes import slow_but
from small_models import SMALL

import lvb


def shapes_of(model, size=(64, 64), channels=3):
    images = jax.ShapeDtypeStruct((2, *size, channels), jnp.float32)
    return jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=False), images
    )


@pytest.fixture(
    scope="module",
    # FMViT and FVNet are fused in their own tests, too, and take the longest.
    params=slow_but(["convneur_m1", "lsnet_t"], sorted(SMALL)),
)
def network(request):
    """A small model, random variables that need not be an initialisation, images."""
    model = lvb.create_model(request.param, num_classes=5, **SMALL[request.param])
    _, shapes = shapes_of(model)
    variables = randomised(
        jax.tree.map_with_path(
            lambda path, leaf: np.full(leaf.shape, path[-1].key == "var", leaf.dtype),
            {"batch_stats": {}, **shapes},
        )
    )
    return model, variables, lvb.fuse(model, variables)


def test_the_fifteen_models():
    assert lvb.list_models() == [
        *(f"convneur_m{i}" for i in (1, 2, 3, 4)),
        *(f"fmvit_{v}" for v in "blmst"),
        *(f"fvnet_{v}" for v in "nst"),
        *(f"lsnet_{v}" for v in "bst"),
    ]


@pytest.mark.parametrize("size", [(64, 64), (33, 47)], ids=["64x64", "33x47"])
@pytest.mark.parametrize("name", ["convneur_m1", "fmvit_t", "fvnet_n", "lsnet_t"])
def test_feature_info_is_what_comes_out(name, size):
    features, _ = shapes_of(lvb.create_backbone(name), size)
    assert list(features) == ["stage1", "stage2", "stage3", "stage4"]
    for stage in lvb.feature_info(name):
        rows, columns = (-(-side // stage.stride) for side in size)
        assert features[stage.name].shape == (2, rows, columns, stage.channels)


@pytest.mark.parametrize("name", ["convneur_m1", "fmvit_t", "fvnet_n", "lsnet_t"])
def test_grey_images_bfloat16_and_the_classifier_apart(name):
    model = lvb.create_model(name, num_classes=7, dtype=jnp.bfloat16)
    logits, variables = shapes_of(model, channels=1)
    assert logits.shape == (2, 7)
    assert logits.dtype == jnp.float32
    assert set(variables["params"]) == {"backbone", "head"}
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(variables)}
    assert dtypes == {jnp.dtype("float32")}


def test_images_below_32_pixels_are_refused_or_fit():
    logits, _ = shapes_of(lvb.create_model("lsnet_t", num_classes=3), (32, 32))
    assert logits.shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lsnet_x", {}, r"model 'lsnet_x' is unknown \(did you mean 'lsnet_"),
        (
            "lsnet_t",
            {"drop_path": 0.1},
            r"'drop_path' is unknown \(did you mean 'drop_",
        ),
        ("lsnet_t", {"num_classes": 0}, "num_classes=0; use 1 or more"),
        ("fvnet_n", {"chunk_size": 4}, "option 'chunk_size' is unknown"),
    ],
)
def test_what_does_not_fit_is_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        lvb.create_model(name, **options)


def test_fused_computes_the_same(network):
    model, variables, (fused_model, fused) = network
    images = jax.random.normal(jax.random.key(1), (2, 40, 33, 3))
    logits, fused_logits = jax.jit(
        lambda v, f, x: (
            model.apply(v, x, train=False),
            fused_model.apply(f, x, train=False),
        )
    )(variables, fused, images)
    # Uncalibrated statistics enlarge the activations; relative to the largest logit.
    error = jnp.abs(fused_logits - logits).max() / jnp.abs(logits).max()
    assert error < 1e-3
    assert jnp.abs(logits).max() > 1e-6


def test_fuse_is_pure_and_idempotent(network):
    model, _, (fused_model, fused) = network
    twice_model, twice = lvb.fuse(fused_model, fused)
    jax.tree.map(np.testing.assert_array_equal, fused, twice)
    assert twice_model == fused_model
    assert not model.backbone.deploy


def test_backbone_alone_fuses_to_the_same_variables(network):
    model, variables, (_, fused) = network
    before = jax.tree.map(np.array, variables)
    own = {name: tree.get("backbone", {}) for name, tree in variables.items()}
    _, alone = lvb.fuse(model.backbone, own)
    jax.tree.map(
        np.testing.assert_array_equal, alone["params"], fused["params"]["backbone"]
    )
    jax.tree.map(np.testing.assert_array_equal, variables, before)


def test_fuse_refuses_what_it_cannot_fuse():
    with pytest.raises(ValueError, match="ClassifierHead has no fused form"):
        lvb.fuse(lvb.create_model("lsnet_t").head, {})
    with pytest.raises(ValueError, match="pass the variables of this very model"):
        lvb.fuse(lvb.create_model("lsnet_t"), {"params": {"head": {}}})


@pytest.mark.parametrize("distilled", [False, True])
def test_reset_head_leaves_every_other_leaf(distilled):
    options = dict(distilled=distilled, **SMALL["lsnet_t"])
    model = lvb.create_model("lsnet_t", num_classes=5, **options)
    _, shapes = shapes_of(model)
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    reset = lvb.reset_head(variables, num_classes=3, rng=jax.random.key(1))
    _, wanted = shapes_of(lvb.create_model("lsnet_t", num_classes=3, **options))
    assert jax.tree.map(jnp.shape, reset) == jax.tree.map(jnp.shape, wanted)
    changed = [
        path[2].key
        for path, old in jax.tree_util.tree_leaves_with_path(variables["params"])
        if path[0].key == "head"
        for new in [reset["params"]["head"][path[1].key][path[2].key]]
        if old is not new
    ]
    assert changed == ["bias", "kernel"] * (1 + distilled)
    same = jax.tree.map(
        lambda a, b: a is b,
        {**variables, "params": variables["params"]["backbone"]},
        {**reset, "params": reset["params"]["backbone"]},
    )
    assert all(jax.tree.leaves(same))


def test_reset_head_needs_a_head():
    with pytest.raises(ValueError, match="params have no head"):
        lvb.reset_head({"params": {}}, num_classes=3, rng=jax.random.key(0))


def test_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'create'"):
        lvb.create  # noqa: B018 - the access is the test
