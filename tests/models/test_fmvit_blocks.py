"""FMViT's blocks against loops over their equations, and their structure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import attention as attention_loops
from reference import fmvit as loops

from lvb.models import fmvit, fmvit_blocks

DOUBLE = dict(dtype=jnp.float64, param_dtype=jnp.float64)
SMALL = dict(groups=(2, 4), head_dim=4)
FMB = dict(embed_dim=8, attention_dim=16, frequency_dim=4, **SMALL)


def random_variables(module, x, *, seed=0):
    """Float64 variables of the module's shapes, every batch norm a random affine."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("var", "scale"):
            return rng.uniform(0.5, 1.5, leaf.shape)
        fan_in = np.prod(leaf.shape[:-1]) if name == "kernel" else 1
        return rng.normal(size=leaf.shape) / np.sqrt(fan_in)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def run(module, variables, x, **options):
    """Evaluates under x64."""
    return np.asarray(
        jax.jit(lambda v, x: module.apply(v, x, train=False, **options))(variables, x)
    )


BLOCKS = {
    "gmlp": (fmvit_blocks.MultiGroupMLP(**SMALL, **DOUBLE), loops.gmlp),
    "cfb": (fmvit_blocks.ConvolutionalFusionBlock(**SMALL, **DOUBLE), loops.cfb),
    "rlmhsa": (fmvit_blocks.SelfAttention(**SMALL, **DOUBLE), loops.rlmhsa),
    "fmb": (fmvit_blocks.MultiFrequencyFusionBlock(**FMB, **DOUBLE), loops.fmb),
}


@pytest.mark.parametrize("block", BLOCKS)
def test_block_equals_loops(block):
    module, reference = BLOCKS[block]
    x = np.random.default_rng(1).normal(size=(2, 3, 2, 8))
    options = dict(head_dim=4) if block in ("rlmhsa", "fmb") else {}
    with jax.enable_x64(True):
        variables = random_variables(module, x)
        y = run(module, variables, x)
    expected = reference(x, variables, groups=(2, 4), **options)
    # Chains of some 20 float64 sums, each of at most 1e2 terms.
    np.testing.assert_allclose(y, expected, atol=1e-10 * np.abs(expected).max())


def attention_variables(channels, *, seed=0, **options):
    """A deployed SelfAttention and random variables for it."""
    module = fmvit_blocks.SelfAttention(deploy=True, **SMALL, **DOUBLE, **options)
    return module, random_variables(module, np.zeros((1, 3, 4, channels)), seed=seed)


def test_rlmhsa_is_equation_4_with_one_projection():
    x = np.random.default_rng(2).normal(size=(2, 3, 4, 8))
    with jax.enable_x64(True):
        module, variables = attention_variables(
            8, attn_prenorm="none", attn_out_proj=False
        )
        y = run(module, variables, x)
    shared = variables["params"]["shared"]["conv"]
    expected = attention_loops.shared_projection_attention(
        x.reshape(2, 12, 8),
        shared["kernel"][0, 0],
        shared["bias"],
        head_dim=4,
        scale=0.5,
    )
    np.testing.assert_allclose(y.reshape(2, 12, 8), expected, atol=1e-12)


def test_rlmhsa_equals_mhsa_with_identity_queries():
    x = np.random.default_rng(3).normal(size=(2, 3, 4, 8))
    with jax.enable_x64(True):
        ours, variables = attention_variables(8)
        theirs, _ = attention_variables(8, attention="mhsa")
        params = dict(variables["params"])
        shared = params.pop("shared")
        identity = {"kernel": np.eye(8)[None, None], "bias": np.zeros(8)}
        params |= {"query": {"conv": identity}, "key": shared, "value": shared}
        y = run(ours, variables, x)
        y_mhsa = run(theirs, {"params": params}, x)
    np.testing.assert_allclose(y, y_mhsa, atol=1e-12)


def test_identity_projection_and_zero_scale_average_the_map():
    x = np.random.default_rng(4).normal(size=(2, 3, 4, 8))
    with jax.enable_x64(True):
        module, _ = attention_variables(
            8, attn_prenorm="none", attn_out_proj=False, attn_scale=0.0
        )
        identity = {"kernel": np.eye(8)[None, None], "bias": np.zeros(8)}
        y = run(module, {"params": {"shared": {"conv": identity}}}, x)
    mean = x.mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(y, np.broadcast_to(mean, y.shape), atol=1e-14)


def test_attention_options_change_what_they_name():
    x = np.random.default_rng(5).normal(size=(1, 3, 4, 8))
    with jax.enable_x64(True):
        module, variables = attention_variables(8)
        y = run(module, variables, x)
        scaled, _ = attention_variables(8, attn_scale=4**-0.5)
        residual, _ = attention_variables(8, attn_residual=True)
        blocks, _ = attention_variables(8, attention_block_size=5)
        unscaled, _ = attention_variables(8, attn_scale=1.0)
        np.testing.assert_allclose(run(scaled, variables, x), y)
        np.testing.assert_allclose(run(residual, variables, x), x + y)
        np.testing.assert_allclose(run(blocks, variables, x), y, atol=1e-13)
        assert np.abs(run(unscaled, variables, x) - y).max() > 1e-2


def test_sr_ratio_pools_keys_and_values():
    # At inference the pooling commutes with W, so pooling after it is the same.
    x = np.random.default_rng(6).normal(size=(1, 3, 5, 8))
    with jax.enable_x64(True):
        module, variables = attention_variables(
            8, sr_ratio=2, attn_prenorm="none", attn_out_proj=False
        )
        y = run(module, variables, x)
    shared = variables["params"]["shared"]["conv"]
    projected = x @ shared["kernel"][0, 0] + shared["bias"]
    pooled = [
        projected[:, i : i + 2, j : j + 2].mean(axis=(1, 2))
        for i in (0, 2)
        for j in (0, 2, 4)
    ]
    keys = np.stack(pooled, axis=1).reshape(1, 6, 2, 4)
    queries = x.reshape(1, 15, 2, 4)
    expected = attention_loops.attention_loops(queries, keys, keys, scale=0.5)
    np.testing.assert_allclose(y.reshape(1, 15, 2, 4), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("tokens", "field", "expected"),
    [(2048, None, None), (2049, None, 256), (16, 4, 4), (16800, 512, 512)],
)
def test_long_inputs_are_attended_in_blocks(tokens, field, expected, monkeypatch):
    seen = []

    def record(query, key, *, value, scale, block_size):
        seen.append(block_size)
        return query

    monkeypatch.setattr(
        fmvit_blocks.attention, "dot_product_attention", record, raising=True
    )
    module = fmvit_blocks.SelfAttention(attention_block_size=field, **SMALL)
    x = jax.ShapeDtypeStruct((1, tokens, 1, 8), jnp.float32)
    jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    assert seen == [expected]


def test_attention_over_the_tokens_of_a_detection_image():
    # Stage 2 at 800 x 1344 has 16,800 tokens; a few queries are checked one by one.
    rng = np.random.default_rng(12)
    tokens = rng.normal(size=(1, 100, 168, 8))
    module = fmvit_blocks.SelfAttention(
        deploy=True, head_dim=8, attn_prenorm="none", attn_out_proj=False
    )
    identity = {"kernel": np.eye(8)[None, None], "bias": np.zeros(8)}
    variables = {"params": {"shared": {"conv": identity}}}
    y = run(module, jax.tree.map(jnp.float32, variables), jnp.float32(tokens))
    flat = tokens.reshape(1, -1, 1, 8)
    queries = rng.choice(16800, size=3, replace=False)
    expected = attention_loops.attention_loops(
        flat[:, queries], flat, flat, scale=8**-0.5
    )
    # Float32 sums of 16,800 positive weights.
    np.testing.assert_allclose(
        y.reshape(1, -1, 1, 8)[:, queries], expected, rtol=1e-4, atol=1e-4
    )


def test_prenorm_is_a_bare_affine_map_when_deployed():
    x = np.random.default_rng(7).normal(size=(2, 3, 3, 8))
    with jax.enable_x64(True):
        module = fmvit_blocks.PreNorm(**DOUBLE)
        variables = random_variables(module, x)
        fused = module.fuse(variables)
        deployed = fmvit_blocks.PreNorm(deploy=True, **DOUBLE)
        y, y_fused = run(module, variables, x), run(deployed, fused, x)
    assert set(fused) == {"params"}
    assert jax.tree.map(np.shape, fused["params"]) == {"scale": (8,), "bias": (8,)}
    np.testing.assert_allclose(y_fused, y, atol=1e-13)


def positive_variables(module, x):
    """Positive kernels: on positive inputs no ReLU cuts a path."""
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    return jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1e-2, leaf.dtype), shapes)


def test_without_attention_an_fmb_sees_15_cells_each_way():
    # Three CFBs of 3 x 3 and 7 x 7, then a 7 x 7: 3 (1 + 3) + 3 = 15.
    module = fmvit_blocks.MultiFrequencyFusionBlock(
        deploy=True, op_form="reference", **FMB
    )
    x = jnp.ones((1, 35, 36, 8))
    variables = positive_variables(module, x)

    def centre(x, variables):
        return module.apply(variables, x, train=False)[0, 17, 17].sum()

    reach = jax.jit(jax.grad(centre))
    everywhere = np.abs(reach(x, variables)).max(axis=-1)[0]
    assert (everywhere > 0).all()
    attention = variables["params"]["attention"]
    attention["projection"] = jax.tree.map(jnp.zeros_like, attention["projection"])
    rows, columns = np.nonzero(np.abs(reach(x, variables)).max(axis=-1)[0])
    assert (rows.min(), rows.max()) == (2, 32)
    assert (columns.min(), columns.max()) == (2, 32)


def test_concatenation_order():
    # PE_i selects the first f channels of its source and the MLP is silent.
    module = fmvit_blocks.MultiFrequencyFusionBlock(deploy=True, **FMB)
    x = jnp.asarray(np.random.default_rng(8).normal(size=(1, 3, 4, 8)), jnp.float32)
    variables = jax.tree.map(jnp.float32, random_variables(module, x))
    params = variables["params"]
    selector = {"kernel": jnp.eye(16, 4)[None, None], "bias": jnp.zeros(4)}
    params |= {f"fusion{index}": {"conv": selector} for index in range(5)}
    reduce = params["channel_mixer"]["reduce"]
    params["channel_mixer"]["reduce"] = jax.tree.map(jnp.zeros_like, reduce)
    y, state = module.apply(variables, x, train=False, mutable=["intermediates"])
    (frequencies,) = state["intermediates"]["frequencies"]
    assert len(frequencies) == 5
    for index, z in enumerate(frequencies):
        assert z.shape == (1, 3, 4, 16)
        np.testing.assert_array_equal(y[..., 4 * index : 4 * index + 4], z[..., :4])


def tree_names(module, channels):
    """Names of the module's direct parts."""
    x = jnp.zeros((1, 4, 4, channels))
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    return set(shapes["params"])


def test_fmb_options_change_its_parts():
    parts = {"cfb0", "cfb1", "cfb2", "attention", "channel_mixer"}
    fusion = {f"fusion{index}" for index in range(5)}
    fmb = fmvit_blocks.MultiFrequencyFusionBlock
    assert tree_names(fmb(**FMB), 16) == parts | fusion
    assert tree_names(fmb(**FMB), 8) == parts | fusion | {"embed"}
    assert tree_names(fmb(**FMB, mix_frequencies=False), 16) == parts | {"fusion"}
    assert tree_names(fmb(**FMB, block_pe_to_stage_width=True), 20) == (
        parts | fusion | {"embed", "stage_embed"}
    )
    assert tree_names(fmb(**FMB, cfb_width="pe"), 8) == (
        parts | fusion | {"attention_embed"}
    )


def test_the_plain_mlp_has_single_branches():
    module = fmvit_blocks.MultiGroupMLP(channel_mixer="mlp", **SMALL)
    x = jnp.zeros((1, 4, 4, 8))
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    for name in ("expand", "depthwise", "reduce"):
        assert set(shapes["params"][name]) == {"branch0"}


@pytest.mark.parametrize(
    ("extra", "names"),
    [
        ((), {"branch0"}),
        (("identity",), {"branch0", "identity"}),
        (("pointwise",), {"branch0", "branch1"}),
        (("pointwise", "identity"), {"branch0", "branch1", "identity"}),
    ],
)
def test_depthwise_branches(extra, names):
    module = fmvit_blocks.ConvolutionalFusionBlock(dw_branches=extra, **SMALL)
    x = jnp.zeros((1, 4, 4, 8))
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    assert set(shapes["params"]["token_mixer"]) == names


def test_drop_path_leaves_whole_examples_unchanged():
    module = fmvit_blocks.ConvolutionalFusionBlock(drop_path_rate=0.5, **SMALL)
    x = jnp.asarray(np.random.default_rng(9).normal(size=(16, 3, 3, 8)), jnp.float32)
    variables = jax.tree.map(jnp.float32, random_variables(module, x))

    @jax.jit
    def apply(key):
        return module.apply(
            variables, x, train=True, mutable=["batch_stats"], rngs={"drop_path": key}
        )[0]

    y = np.asarray(apply(jax.random.key(0)))
    unchanged = (y == np.asarray(x)).all(axis=(1, 2, 3))
    # Both residuals drop with probability 1/4; all or none of 16 has odds below 1 %.
    assert 0 < unchanged.sum() < 16
    again = np.asarray(apply(jax.random.key(1)))
    assert ((again == np.asarray(x)).all(axis=(1, 2, 3)) != unchanged).any()


def test_drop_path_does_not_change_evaluation_nor_the_parameters():
    plain = fmvit_blocks.ConvolutionalFusionBlock(**SMALL)
    dropping = fmvit_blocks.ConvolutionalFusionBlock(drop_path_rate=0.5, **SMALL)
    x = jnp.asarray(np.random.default_rng(10).normal(size=(2, 3, 3, 8)), jnp.float32)
    variables = jax.tree.map(jnp.float32, random_variables(plain, x))
    np.testing.assert_array_equal(run(plain, variables, x), run(dropping, variables, x))


TRAINED = dict(groups=(2,), head_dim=4, **DOUBLE)
# Modules and the parameters whose gradient vanishes: biases that only the batch norm
# behind a 1x1 convolution sees, which subtracts them again.
MODULES = {
    "stem": (fmvit.Stem(features=8, **TRAINED), 3, ()),
    "stage1": (
        fmvit.ConvolutionStage(features=16, drop_path_rates=(0.0,), **TRAINED),
        8,
        (),
    ),
    "stage2": (
        fmvit.FrequencyStage(
            embed_dim=8,
            attention_dim=16,
            frequency_dim=4,
            drop_path_rates=(0.0,),
            op_form="reference",
            **TRAINED,
        ),
        12,
        (
            "embed/",
            "block0/cfb2/token_mixer/",
            "block0/cfb2/channel_mixer/reduce/",
            "block0/attention/shared/",
            "block0/attention/projection/",
        ),
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_every_parameter_trains(name):
    module, channels, silent = MODULES[name]
    x = np.random.default_rng(11).normal(size=(3, 8, 6, channels))
    with jax.enable_x64(True):
        variables = random_variables(module, x)

        @jax.jit
        @jax.grad
        def gradient(params):
            y, _ = module.apply(
                variables | {"params": params}, x, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.sin(y) * jnp.cos(jnp.arange(y.size).reshape(y.shape)))

        grads = jax.tree_util.tree_leaves_with_path(gradient(variables["params"]))
    for path, leaf in grads:
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        assert np.isfinite(leaf).all(), path
        is_silent = path.startswith(silent) and path.endswith("bias")
        # Float64: what cancels is below 1e-12 of gradients of order 1.
        assert (np.abs(leaf).max() < 1e-10) == is_silent, path
