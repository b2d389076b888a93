"""CBAM, non-local and self-attention against loops; counts; blocks of queries."""

import functools

import fixtures
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lvb.analysis import flops
from lvb.layers import context_branch, fusion

BRANCHES = {
    "cbam": functools.partial(context_branch.CBAM, reduction=4, kernel_size=3),
    "nonlocal": context_branch.NonLocal,
    "attention": functools.partial(context_branch.SelfAttention, heads=2),
}
D = 8


def features(height=3, width=4, *, batch=2, channels=D, dtype=jnp.float64):
    return jax.random.normal(jax.random.key(1), (batch, height, width, channels), dtype)


def build(name, dtype=jnp.float64, **fields):
    return BRANCHES[name](dtype=dtype, param_dtype=dtype, **fields)


def variables_of(layer, x):
    return fixtures.randomised(fixtures.init(layer, x, train=False))


def apply(layer, variables, x):
    return fixtures.apply(layer, variables, x, train=False)


def numpy_tree(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def linear(params, x):
    return x @ params["kernel"] + params.get("bias", 0)


def attend(query, key, value, scale):
    """One query after the other: (N, D) each."""
    return np.stack([softmax(scale * (key @ q)) @ value for q in query])


def nonlocal_loops(params, _, x):
    tokens = x.reshape(-1, D)
    theta, phi, g = (linear(params[name], tokens) for name in ("theta", "phi", "g"))
    y = linear(params["project"], attend(theta, phi, g, (D / 2) ** -0.5))
    return y.reshape(x.shape)


def attention_loops(params, _, x):
    qkv = linear(params["qkv"], x.reshape(-1, D))
    heads = []
    for head in range(2):
        q, k, v = (
            qkv[:, part * D + head * 4 : part * D + head * 4 + 4] for part in range(3)
        )
        heads.append(attend(q, k, v, 4**-0.5))
    return linear(params["project"], np.concatenate(heads, axis=1)).reshape(x.shape)


def cbam_loops(params, stats, x):
    def mlp(v):
        hidden = np.maximum(linear(params["reduce"], v), 0)
        return linear(params["expand"], hidden)

    y = x * sigmoid(mlp(x.mean(axis=(0, 1))) + mlp(x.max(axis=(0, 1))))
    maps = np.stack([y.mean(axis=-1), y.max(axis=-1)], axis=-1)
    kernel = params["spatial"]["conv"]["kernel"][..., 0]
    padded = np.pad(maps, ((1, 1), (1, 1), (0, 0)))
    norm, moving = params["spatial"]["norm"], stats["spatial"]["norm"]
    out = np.zeros(x.shape)
    for i, j in np.ndindex(*x.shape[:2]):
        z = np.sum(kernel * padded[i : i + 3, j : j + 3])
        z = (z - moving["mean"]) / np.sqrt(moving["var"] + 1e-5)
        out[i, j] = y[i, j] * sigmoid(norm["scale"] * z + norm["bias"])
    return out


LOOPS = {
    "cbam": cbam_loops,
    "nonlocal": nonlocal_loops,
    "attention": attention_loops,
}


@pytest.mark.parametrize("name", BRANCHES)
def test_equals_loops_per_image(name):
    with jax.enable_x64():
        x = features()
        layer = build(name)
        variables = variables_of(layer, x)
        y = apply(layer, variables, x)
    trees = numpy_tree(variables)
    for b in range(2):
        expected = LOOPS[name](
            trees["params"], trees.get("batch_stats"), np.asarray(x[b])
        )
        # Flax keeps batch norm in float32 statistics; the rest is float64.
        atol = 1e-6 if name == "cbam" else 1e-13
        np.testing.assert_allclose(y[b], expected, rtol=0, atol=atol)


@pytest.mark.parametrize("name", ["nonlocal", "attention"])
def test_blocks_of_queries_change_nothing(name, monkeypatch):
    with jax.enable_x64():
        x = features(5, 7)
        layer = build(name)
        variables = variables_of(layer, x)

        def loss(variables, x):
            return jnp.sum(jnp.sin(layer.apply(variables, x, train=False)))

        whole = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(variables, x)
        monkeypatch.setattr(context_branch, "_BLOCK_SIZE", 8)
        assert context_branch.block_size(35) == 7
        blocks = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(variables, x)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(blocks), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_block_sizes_are_even_and_bounded():
    assert context_branch.block_size(1024) is None
    assert context_branch.block_size(3136) == 784  # 56 x 56 in four, without padding.
    for tokens in (1025, 4200, 16800, 67200):
        size = context_branch.block_size(tokens)
        assert size <= 1024
        assert -(-tokens // size) * size - tokens < -(-tokens // size)


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        # MLP 2 d^2 / r, twice; 7x7 convolution of two maps, batch norm.
        ("cbam", 2 * 128 * 8 + 98 + 2, 2 * 2 * 128 * 8 + 98 * 196),
        ("nonlocal", 4 * 64 * 128 + 3 * 64 + 128, 4 * 64 * 128 * 196 + 2 * 196**2 * 64),
        ("attention", 4 * (128**2 + 128), 4 * 128**2 * 196 + 2 * 196**2 * 128),
    ],
)
def test_counts_at_the_published_width(name, params, macs):
    """Table 5 at C_m = 128 on a 14 x 14 map."""
    layer = {
        "cbam": context_branch.CBAM,
        "nonlocal": context_branch.NonLocal,
        "attention": context_branch.SelfAttention,
    }[name](op_form="reference")
    x = jax.ShapeDtypeStruct((1, 14, 14, 128), jnp.float32)
    variables = jax.eval_shape(
        functools.partial(layer.init, train=False), jax.random.key(0), x
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == params
    run = functools.partial(layer.apply, train=False)
    assert flops.count_macs(run, variables, x) == macs


def test_nonlocal_starts_at_zero():
    x = features(dtype=jnp.float32)
    layer = context_branch.NonLocal()
    variables = layer.init(jax.random.key(0), x, train=False)
    np.testing.assert_array_equal(apply(layer, variables, x), 0)


@pytest.mark.parametrize("name", BRANCHES)
def test_bf16_is_finite_and_images_are_independent(name):
    x = features(3, 3, batch=3, dtype=jnp.bfloat16)
    layer = BRANCHES[name](dtype=jnp.bfloat16)
    variables = variables_of(layer, x)
    y = apply(layer, variables, x)
    assert y.dtype == jnp.bfloat16
    assert jnp.isfinite(y).all()
    order = np.array([0, 2, 1])
    np.testing.assert_array_equal(y[order], apply(layer, variables, x[order]))


def test_cbam_fuses():
    layer = context_branch.CBAM(reduction=1)
    x = features(8, 8, channels=3, dtype=jnp.float32)
    variables = variables_of(layer, x)
    deployed = layer.clone(deploy=True)
    fused = fusion.fuse_variables(layer, deployed, variables)
    assert "batch_stats" not in fused
    # One batch norm folded in float64 and rounded to float32.
    np.testing.assert_allclose(
        apply(deployed, fused, x), apply(layer, variables, x), rtol=0, atol=2e-6
    )


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (context_branch.CBAM(reduction=16), "8 channels are fewer than reduction=16"),
        (context_branch.SelfAttention(heads=3), "8 channels are not divisible by"),
    ],
)
def test_refuses_what_does_not_fit(layer, message):
    with pytest.raises(ValueError, match=message):
        layer.init(jax.random.key(0), jnp.zeros((1, 2, 2, D)), train=False)
    with pytest.raises(ValueError, match="7 channels cannot be halved"):
        context_branch.NonLocal().init(
            jax.random.key(0), jnp.zeros((1, 2, 2, 7)), train=False
        )
