"""LSNet's structure, knobs and gradients on a tiny network."""

import functools

import jax
import jax.numpy as jnp
import lsnet_cases as cases
import numpy as np
import pytest
from flax import traverse_util

from lvb.models import lsnet, lsnet_blocks


@pytest.fixture(scope="module")
def tiny():
    return cases.tiny_classifier()


@pytest.fixture(scope="module")
def initial():
    """A backbone without blocks in stage 1, as LSNet-T, and its initial variables."""
    backbone = lsnet.LSNet(**{**cases.TINY, "depths": (0, 2, 1, 2)})
    init = jax.jit(lambda x: backbone.init(jax.random.key(0), x, train=False))
    return backbone, init(cases.images(batch=1, size=(64, 64)))


@pytest.mark.parametrize(
    ("size", "sides"),
    [
        ((800, 1344), [(100, 168), (50, 84), (25, 42), (13, 21)]),
        ((512, 512), [(64, 64), (32, 32), (16, 16), (8, 8)]),
        ((33, 47), [(5, 6), (3, 3), (2, 2), (1, 1)]),
        ((32, 32), [(4, 4), (2, 2), (1, 1), (1, 1)]),
    ],
)
def test_maps_of_any_size(size, sides):
    backbone = cases.variant("T", bias_table_size=14)
    variables = cases.shapes(backbone)
    features = jax.eval_shape(
        lambda v, x: backbone.apply(v, x, train=False),
        variables,
        jax.ShapeDtypeStruct((1, *size, 3), jnp.float32),
    )
    assert backbone.strides == (8, 16, 32, 64)
    expected = {
        f"stage{index + 1}": (1, *side, width)
        for index, (side, width) in enumerate(zip(sides, backbone.dims, strict=True))
    }
    assert {name: y.shape for name, y in features.items()} == expected


def test_lsnet_t_has_no_block_in_stage_1(initial):
    """Its first map is the stem's output, which no ReLU follows."""
    backbone, variables = initial
    x = cases.images(batch=1, size=(64, 64))
    assert "stage1" not in variables["params"]
    first = jax.jit(lambda v, x: backbone.apply(v, x, train=False)["stage1"])(
        variables, x
    )
    stem = lsnet_blocks.Stem(16, op_form="reference")
    own = {name: tree["stem"] for name, tree in variables.items()}
    np.testing.assert_allclose(first, stem.apply(own, x, train=False), atol=1e-6)
    assert float(first.min()) < 0


def test_initialisation(initial):
    """PyTorch's uniform kernels; feed-forward and attention branches start silent."""
    params = traverse_util.flatten_dict(initial[1]["params"], sep="/")
    silent = ("channel_mixer/project/norm/scale", "token_mixer/project/norm/scale")
    for path, value in params.items():
        if path.endswith("scale"):
            assert np.all(value == (0 if path.endswith(silent) else 1)), path
        elif path.endswith("kernel"):
            bound = np.prod(value.shape[:-1]) ** -0.5  # Of 16 values at least.
            assert 0.5 * bound < np.abs(value).max() <= bound, path
    assert np.all(params["stage4/block1/token_mixer/attention_biases"] == 0)


@pytest.mark.slow
def test_every_parameter_receives_a_gradient(tiny):
    model, variables, _ = tiny

    @jax.jit
    def gradient(params):
        def loss(params):
            logits, _ = model.apply(
                {**variables, "params": params},
                cases.images(),
                train=True,
                mutable=["batch_stats"],
            )
            return jnp.mean(jnp.sin(logits + jnp.arange(5.0)[None]))

        return jax.grad(loss)(params)

    leaves = traverse_util.flatten_dict(gradient(variables["params"]), sep="/")
    for path, value in leaves.items():
        assert np.all(np.isfinite(value)), path
        assert np.any(value != 0), path


def test_forms_agree(tiny):
    _, variables, apply = tiny
    model = cases.build(lsnet.LSNet(**{**cases.TINY, "op_form": "shift"}))
    x = cases.images()
    found = jax.jit(functools.partial(model.apply, train=False))(variables, x)
    np.testing.assert_allclose(found, apply(variables, x), atol=1e-5)


def test_interleaved_and_contiguous_kernels_are_different_functions(tiny):
    _, variables, apply = tiny
    model = cases.build(lsnet.LSNet(**cases.TINY, ska_grouping="contiguous"))
    x = cases.images(size=(40, 72))
    found = jax.jit(functools.partial(model.apply, train=False))(variables, x)
    assert not np.allclose(found, apply(variables, x), atol=1e-3)


def test_bias_modes_agree_on_the_tables_own_map(tiny):
    _, variables, apply = tiny
    model = cases.build(lsnet.LSNet(**cases.TINY, bias_mode="exact_offsets"))
    run = jax.jit(functools.partial(model.apply, train=False))
    for size, same in (((cases.SIZE, cases.SIZE), True), ((40, 72), False)):
        x = cases.images(size=size)
        close = np.allclose(run(variables, x), apply(variables, x), atol=1e-6)
        assert close == same


def test_frozen_batch_norm_trains_as_it_evaluates(tiny):
    """Without mutable collections: nothing is updated."""
    _, variables, apply = tiny
    model = cases.build(
        lsnet.LSNet(**cases.TINY, frozen_batch_norm=True), frozen_batch_norm=True
    )
    run = jax.jit(functools.partial(model.apply, train=True))
    x = cases.images()
    np.testing.assert_allclose(run(variables, x), apply(variables, x), atol=1e-6)


@pytest.mark.slow
def test_rematerialisation_changes_no_value():
    options = {**cases.TINY, "depths": (0, 2, 0, 0)}
    variables = cases.random_variables(lsnet.LSNet(**options))
    results = []
    for remat in (False, True):
        backbone = lsnet.LSNet(**options, remat=remat)

        def loss(params, backbone=backbone):
            features, new = backbone.apply(
                {**variables, "params": params},
                cases.images(size=(64, 64)),
                train=True,
                mutable=["batch_stats"],
            )
            return jnp.mean(jnp.sin(features["stage4"])), new

        run = jax.value_and_grad(loss, has_aux=True)
        trace = str(jax.make_jaxpr(run)(variables["params"]))
        assert ("remat" in trace or "checkpoint" in trace) == remat
        results.append(jax.jit(run)(variables["params"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *results)


def test_drop_path_draws_per_key_and_only_in_training(tiny):
    _, variables, apply = tiny
    model = cases.build(lsnet.LSNet(**cases.TINY, drop_path_rate=0.5))

    @jax.jit
    def train(key):
        return model.apply(
            variables,
            cases.images(size=(40, 72)),
            train=True,
            rngs={"drop_path": key},
            mutable=["batch_stats"],
        )[0]

    first, again, other = (train(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other, atol=1e-3)
    run = jax.jit(functools.partial(model.apply, train=False))
    np.testing.assert_allclose(
        run(variables, cases.images(size=(40, 72))),
        apply(variables, cases.images(size=(40, 72))),
        atol=1e-6,
    )


def test_bfloat16_keeps_float32_parameters(tiny):
    _, variables, apply = tiny
    model = cases.build(lsnet.LSNet(**cases.TINY, dtype=jnp.bfloat16))
    x = cases.images()
    features = jax.eval_shape(
        lambda v, x: model.backbone.apply(v, x, train=False),
        {name: tree["backbone"] for name, tree in variables.items()},
        x,
    )
    assert {y.dtype for y in features.values()} == {jnp.dtype(jnp.bfloat16)}
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, x)
    scale = np.max(np.abs(apply(variables, x)))
    # 8 bits of mantissa through 7 blocks.
    assert np.max(np.abs(logits - apply(variables, x))) < 0.1 * scale
    initial = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(initial)} == {jnp.dtype(jnp.float32)}


def test_no_decay_names_the_bias_tables_only():
    params = traverse_util.flatten_dict(
        cases.shapes(cases.variant("T"))["params"], sep="/"
    )
    matched = [path for path in params if any(name in path for name in lsnet.NO_DECAY)]
    assert len(matched) == 5
    assert all(params[path].ndim == 2 for path in matched)


def test_one_channel_images():
    backbone = lsnet.LSNet(**cases.TINY)
    grey = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
    variables = jax.eval_shape(
        lambda x: backbone.init(jax.random.key(0), x, train=False), grey
    )
    assert variables["params"]["stem"]["conv0"]["conv"]["kernel"].shape == (3, 3, 1, 4)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, (1, 31, 64, 3), "images are 31 x 64 px; sides must be 32 px or more"),
        ({}, (1, 64, 64, 4), r"images have shape \(1, 64, 64, 4\)"),
        ({}, (64, 64, 3), r"pass \(B, H, W, 1 or 3\)"),
        (dict(dims=(16, 16)), (1, 64, 64, 3), "must name 4 stages"),
        (dict(token_mixer="lscov"), (1, 64, 64, 3), "token_mixer='lscov' is unknown"),
        (dict(local_mixer="conv"), (1, 64, 64, 3), "use one of repdw, identity"),
        (dict(bias_mode="none"), (1, 64, 64, 3), "bias_mode='none' is unknown"),
        (dict(ska_grouping="mixed"), (1, 64, 64, 3), "ska_grouping='mixed'"),
        (dict(group_width=0), (1, 64, 64, 3), "group_width=0; it must be 1 or more"),
        (dict(group_width=5), (1, 64, 64, 3), "not divisible by 2 and by group_width"),
        (dict(num_heads=5), (1, 64, 64, 3), "32 channels, not divisible by num_heads"),
        (dict(small_kernel=2), (1, 64, 64, 3), "kernel_size=2 has no centre tap"),
        (dict(ls_kernel_size=6), (1, 64, 64, 3), "has an even side"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(options, shape, message):
    backbone = lsnet.LSNet(**{**cases.TINY, **options})
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda x: backbone.init(jax.random.key(0), x, train=False),
            jax.ShapeDtypeStruct(shape, jnp.float32),
        )
