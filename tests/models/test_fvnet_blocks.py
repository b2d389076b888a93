"""Attention, blocks, stages and stem of FVNet: references, fusion, carry, switches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import apply, init, init_with_output, randomised
from reference import attention as reference
from reference import convolution
from scipy import special

from lvb.models import fvnet_blocks, fvnet_fluid

FLUID = fvnet_fluid.MultiPhaseFluidBlock


def started(model, *args):
    return randomised(fresh(model, *args))


def fresh(model, *args):
    return init(model, *args, train=False)


def normalised(x, stats, params):
    """Batch norm at inference, from its definition."""
    x = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    return x * params["scale"] + params["bias"]


def attention_from_definition(variables, x, *, head_dim):
    """Norm, q | k | v, softmax per head, depthwise on v, projection."""
    params, stats = variables["params"], variables["batch_stats"]

    def linear(name, x):
        y = x @ params[name]["conv"]["kernel"][0, 0]
        return normalised(y, stats[name]["norm"], params[name]["norm"])

    tokens = linear("qkv", normalised(x, stats["norm"], params["norm"]))
    query, key, value = np.split(tokens, 3, axis=-1)  # (B, H, W, C)
    by_head = (x.shape[0], -1, x.shape[-1] // head_dim, head_dim)
    out = reference.attention_loops(
        query.reshape(by_head),
        key.reshape(by_head),
        value.reshape(by_head),
        scale=head_dim**-0.5,
    ).reshape(x.shape)
    position = convolution.conv2d(
        value, params["position"]["kernel"], padding=(1, 1), groups=x.shape[-1]
    )
    return linear("project", out + position)


def test_attention_equals_loops():
    with jax.enable_x64():
        model = fvnet_blocks.MultiHeadSelfAttention(
            4, dtype=jnp.float64, param_dtype=jnp.float64
        )
        x = jax.random.normal(jax.random.key(1), (2, 3, 4, 8))
        variables = started(model, x)
        y = apply(model, variables, x, train=False)
        variables = jax.tree.map(np.asarray, variables)
    expected = attention_from_definition(variables, np.asarray(x), head_dim=4)
    np.testing.assert_allclose(y, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("norm", fvnet_blocks.NORMS)
def test_fused_attention_is_the_same(norm):
    with jax.enable_x64():
        fields = dict(norm=norm, dtype=jnp.float64, param_dtype=jnp.float64)
        model = fvnet_blocks.MultiHeadSelfAttention(4, **fields)
        deployed = model.clone(deploy=True)
        x = jax.random.normal(jax.random.key(1), (2, 3, 4, 8))
        variables = started(model, x)
        fused = model.fuse(variables)
        wanted = jax.eval_shape(lambda: init(deployed, x, train=False))
        assert jax.tree.map(jnp.shape, fused) == jax.tree.map(jnp.shape, wanted)
        np.testing.assert_allclose(
            apply(deployed, fused, x, train=False),
            apply(model, variables, x, train=False),
            rtol=1e-10,
            atol=1e-12,
        )


def test_attention_refuses_a_head_that_does_not_divide():
    x = jnp.ones((1, 2, 2, 8))
    model = fvnet_blocks.MultiHeadSelfAttention(3)
    with pytest.raises(ValueError, match="8 channels are not divisible by head_dim=3"):
        init(model, x, train=False)


def test_feed_forward_starts_at_zero():
    x = jax.random.normal(jax.random.key(1), (2, 3, 4, 8))
    model = fvnet_blocks.FeedForward(2.5)
    y, variables = init_with_output(model, x, train=False)
    np.testing.assert_array_equal(y, 0.0)
    assert variables["params"]["expand"]["conv"]["kernel"].shape == (1, 1, 8, 20)


@pytest.mark.parametrize(
    ("activation", "act"),
    [
        ("gelu", lambda a: a * special.ndtr(a)),
        ("relu", lambda a: np.maximum(a, 0)),
        ("silu", lambda a: a * special.expit(a)),
    ],
)
def test_feed_forward_from_definition(activation, act):
    x = jax.random.normal(jax.random.key(1), (2, 3, 4, 8))
    model = fvnet_blocks.FeedForward(2, activation)
    variables = started(model, x)
    y = apply(model, variables, x, train=False)
    params, stats = jax.tree.map(
        np.asarray, (variables["params"], variables["batch_stats"])
    )
    x = np.asarray(x)
    for name in ("expand", "project"):
        x = x @ params[name]["conv"]["kernel"][0, 0]
        x = normalised(x, stats[name]["norm"], params[name]["norm"])
        x = act(x) if name == "expand" else x
    np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-5)


def test_block_without_residual_is_the_mixer_alone():
    x = jax.random.normal(jax.random.key(1), (2, 3, 4, 8))
    fields = dict(token_mixer=FLUID, head_dim=None, ffn_ratio=0)
    block = fvnet_blocks.Block(**fields)
    variables = started(block, x, None)
    with_residual, carry = apply(block, variables, x, None, train=False)
    alone, same_carry = apply(
        fvnet_blocks.Block(**fields, residual=False), variables, x, None, train=False
    )
    np.testing.assert_allclose(with_residual, x + alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(carry, same_carry)


@pytest.mark.slow
def test_dropped_paths_leave_the_input():
    x = jax.random.normal(jax.random.key(1), (8, 3, 4, 8))
    block = fvnet_blocks.Block(
        token_mixer=FLUID, head_dim=4, ffn_ratio=2, drop_path_rate=0.9
    )
    variables = started(block, x, None)
    (y, _), _ = apply(
        block,
        variables,
        x,
        None,
        train=True,
        mutable=["batch_stats"],
        rngs={"drop_path": jax.random.key(3)},
    )
    kept = np.all(y == x, axis=(1, 2, 3))
    assert kept.any()
    assert not kept.all()


def stage(features=16, num_blocks=2, **fields):
    fields = {"token_mixer": FLUID, **fields}
    block = functools.partial(
        fvnet_blocks.Block,
        token_mixer=fields["token_mixer"],
        head_dim=None,
        ffn_ratio=0,
    )
    return fvnet_blocks.Stage(
        features,
        block,
        (0.0,) * num_blocks,
        downsample=True,
        carry_form=fields.get("carry_form", "repeat"),
    )


def sown_taus(model, variables, x, carry):
    _, sown = apply(model, variables, x, carry, train=False, mutable=["intermediates"])
    return [
        sown["intermediates"][name]["token_mixer"]["gate"]["tau"][0]
        for name in sorted(sown["intermediates"])
    ]


@pytest.mark.parametrize("size", [(5, 7), (4, 6)])
def test_downsampling_rounds_up(size):
    x = jnp.ones((1, *size, 8))
    model = fvnet_blocks.Downsample(16)
    y, _ = init_with_output(model, x, train=False)
    assert y.shape == (1, -(-size[0] // 2), -(-size[1] // 2), 16)


def test_every_block_of_a_stage_receives_the_carry_doubled():
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 8))
    carry = jax.random.normal(jax.random.key(2), (2, 8))
    model = stage()
    variables = fresh(model, x, carry)
    # At the start tau depends on the carry alone: the logit is 0.1 of it.
    expected = 0.02 + 0.23 / (1 + np.exp(-0.1 * np.repeat(carry, 2, axis=-1)))
    for tau in sown_taus(model, variables, x, carry):
        np.testing.assert_allclose(tau[0], expected, rtol=1e-5)
    _, leaving = apply(model, variables, x, carry, train=False)
    np.testing.assert_allclose(
        leaving, np.tanh(0.1 * np.repeat(carry, 2, axis=-1)), rtol=1e-5
    )


def test_learned_carry_starts_as_repetition():
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 8))
    carry = jax.random.normal(jax.random.key(2), (2, 8))
    model = stage(carry_form="learned")
    variables = fresh(model, x, carry)
    assert variables["params"]["carry"]["kernel"].shape == (8, 16)
    repeated = fresh(stage(), x, carry)
    for learned, plain in zip(
        sown_taus(model, variables, x, carry),
        sown_taus(stage(), repeated, x, carry),
        strict=True,
    ):
        np.testing.assert_allclose(learned, plain, rtol=1e-6)


def test_a_stage_without_mpfb_hands_the_carry_on_and_none_drops_it():
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 8))
    carry = jax.random.normal(jax.random.key(2), (2, 8))
    for form in ("repeat", "none"):
        model = stage(token_mixer=None, carry_form=form)
        (_, leaving), _ = init_with_output(model, x, carry, train=False)
        if form == "none":
            assert leaving is None
        else:
            np.testing.assert_array_equal(leaving, np.repeat(carry, 2, axis=-1))


def test_stem_replaces_its_map_by_one_flow_without_kappa():
    images = jax.random.normal(jax.random.key(1), (2, 33, 32, 3))
    flow = functools.partial(fvnet_fluid.MultiPhaseFluidBlock, tau_spans=((0.02, 0.5),))
    model = fvnet_blocks.Stem(8, 4, flow)
    (x, carry), variables = init_with_output(model, images, train=False)
    assert x.shape == (2, 9, 8, 8)
    np.testing.assert_allclose(carry, 0.0)
    params = variables["params"]
    assert params["embed0"]["conv"]["kernel"].shape == (3, 3, 3, 4)
    assert set(params["flow"]) == {"gate", "local", "phase0"}
    assert set(params["flow"]["gate"]) == {"reduce", "expand", "s", "t"}
