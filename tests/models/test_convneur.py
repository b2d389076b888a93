"""ConvNeur: published counts, shapes, knobs, independence, gradients, learning."""

import functools

import fixtures
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sizes import slow_but

from lvb.analysis import flops
from lvb.heads.classifier import ClassifierHead
from lvb.layers import fusion
from lvb.models import convneur, convneur_counts
from lvb.tasks.classification import ImageClassifier

# (trainable parameters, multiply-adds at 224 px, those of the local branch alone)
COUNTS = {
    "M1": (4_114_772, 1_344_475_200, 547_332_480),
    "M2": (5_817_652, 1_927_446_912, 779_629_824),
    "M3": (10_103_540, 3_407_467_008, 1_367_055_360),
    "M4": (17_242_932, 5_633_528_960, 2_445_528_320),
}
# Published parameters in M (Table 2) and, by its counter, multiply-adds of modules in
# G without norms, biases and activations.
PUBLISHED = {
    "M1": (4.3, 0.696),
    "M2": (6.1, 0.993),
    "M3": (10.6, 1.747),
    "M4": (18.1, 3.038),
}
# Table 5 on M3: fields, parameters, templates counted twice by the paper, published M.
ABLATIONS = [
    (dict(memory_at="none"), 9_066_280, 0, None),
    (dict(memory_at="every_block"), 12_194_508, 12, None),
    (dict(memory_width=64), 9_388_788, 4, None),
    (dict(memory_width=256), 12_712_692, 4, None),
    (dict(fusion="add"), 10_103_540, 4, None),
    (dict(fusion="concat"), 10_800_820, 4, 11.3),  # Published as + 0.7 M.
    (dict(global_branch="cbam"), 9_322_104, 0, None),
    (dict(global_branch="nonlocal"), 9_445_864, 0, None),
    (dict(global_branch="attention"), 9_577_704, 0, None),
]
# True multiply-adds, whether the published counter saw them or not.
ABLATION_MACS = [
    (dict(global_branch="cbam"), 1_463_817_834),
    (dict(global_branch="nonlocal"), 2_942_588_032),
    (dict(global_branch="attention"), 4_421_782_784),
    (dict(memory_at="every_block"), 5_614_864_384),
]
# At 32 x 48 px and 12 tokens a chunk the stages have 8, 2, 1 and 1 chunks.
TINY = dict(depths=(1, 2, 1, 1), dims=(4, 6, 8, 10), memory_width=6, kernel_size=3)


def classifier(name, **options):
    fields = {**convneur.VARIANTS[name]._asdict(), **options}
    return ImageClassifier(
        convneur.ConvNeur(**fields, op_form="reference"),
        ClassifierHead(1000, norm="layer"),
    )


def shapes_of(model, *shape, dtype=jnp.float32):
    """Images and variables as shapes."""
    images = jax.ShapeDtypeStruct(shape, dtype)
    init = functools.partial(model.init, train=False)
    return images, jax.eval_shape(init, jax.random.key(0), images)


def num_params(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def macs(model):
    images, variables = shapes_of(model, 1, 224, 224, 3)
    return flops.count_macs(
        functools.partial(model.apply, train=False), variables, images
    )


def tiny(**options):
    return convneur.ConvNeur(**{**TINY, "chunk_size": 12, **options})


def images_of(*shape, dtype=jnp.float32, seed=3):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def init(model, images):
    return fixtures.init(model, images, train=False)


def apply(model, variables, images, **options):
    return fixtures.apply(model, variables, images, **{"train": False, **options})


@pytest.fixture(scope="module")
def network():
    """A tiny backbone with random variables, and three images."""
    model, images = tiny(), images_of(3, 32, 48, 3)
    return model, fixtures.randomised(init(model, images)), images


@pytest.mark.parametrize("name", slow_but(1, COUNTS))
def test_parameters_and_multiply_adds_are_exact(name):
    params, total, local = COUNTS[name]
    model = classifier(name)
    assert num_params(shapes_of(model, 1, 224, 224, 3)[1]) == params
    assert macs(model) == total
    assert macs(classifier(name, memory_at="none")) == local


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_of_the_paper(name):
    params, giga = PUBLISHED[name]
    variant = convneur.VARIANTS[name]
    ours = COUNTS[name][0]
    counted = convneur_counts.published_params(variant)
    assert counted == ours + 4 * convneur_counts.template_params(variant.memory_width)
    assert round(counted / 1e6, 1) == params
    assert round(convneur_counts.published_macs(variant) / 1e9, 3) == giga


@pytest.mark.parametrize(
    ("fields", "params", "templates", "published"), slow_but(2, ABLATIONS)
)
def test_parameters_of_the_ablations(fields, params, templates, published):
    model = classifier("M3", **fields)
    assert num_params(shapes_of(model, 1, 224, 224, 3)[1]) == params
    if published is not None:
        template = convneur_counts.template_params(model.backbone.memory_width)
        assert round((params + templates * template) / 1e6, 1) == published


@pytest.mark.slow
@pytest.mark.parametrize(("fields", "expected"), ABLATION_MACS)
def test_multiply_adds_of_the_ablations(fields, expected):
    assert macs(classifier("M3", **fields)) == expected


def test_layer_scale_instead_of_grn_costs_m4_its_published_count():
    """18.1 M is published: 18.06 with GRN, 18.03 with a layer scale."""
    model = classifier("M4", block="layer_scale")
    params = num_params(shapes_of(model, 1, 224, 224, 3)[1])
    assert params + 4 * convneur_counts.template_params(160) == 18_032_532


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((32, 32, 3), {}),
        ((33, 47, 1), {}),
        ((225, 311, 3), dict(read="after")),
        ((64, 100, 3), dict(chunk_layout="window", chunk_size=16)),
        ((50, 50, 3), dict(preset="package", recurrence="associative")),
        ((800, 1344, 3), dict(**convneur.VARIANTS["M2"]._asdict(), chunk_size=4096)),
    ],
)
def test_maps_have_the_stated_strides_and_widths(shape, options):
    model = tiny(**options)
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    features, _ = jax.eval_shape(
        functools.partial(model.init_with_output, train=False),
        jax.random.key(0),
        images,
    )
    assert list(features) == ["stage1", "stage2", "stage3", "stage4"]
    for feature, stride, dim in zip(
        features.values(), model.strides, model.dims, strict=True
    ):
        sides = (-(-shape[0] // stride), -(-shape[1] // stride))  # Rounded up.
        assert feature.shape == (2, *sides, dim)


def test_parameters_do_not_depend_on_the_image_size():
    shapes = [
        jax.tree.map(lambda leaf: leaf.shape, shapes_of(tiny(), 1, *size, 3)[1])
        for size in ((32, 32), (97, 50))
    ]
    assert shapes[0] == shapes[1]


def test_odd_sides_are_padded_at_the_bottom_and_on_the_right():
    model = tiny(memory_at="none")
    images = images_of(2, 29, 46, 3)
    padded = jnp.pad(images, ((0, 0), (0, 3), (0, 2), (0, 0)))
    variables = init(model, images)
    one, other = (apply(model, variables, x) for x in (images, padded))
    np.testing.assert_array_equal(one["stage1"], other["stage1"])


def test_images_are_independent_bit_for_bit(network):
    model, variables, images = network
    one = apply(model, variables, images)
    other = apply(model, variables, images[jnp.array([0, 2, 1])])
    for name, feature in one.items():
        np.testing.assert_array_equal(feature[0], other[name][0])
        np.testing.assert_array_equal(feature[1], other[name][2])


def test_gate_is_open_by_half_at_first_and_never_shut(network):
    model, variables, images = network
    for tree, spread in ((init(model, images), 0.1), (variables, 0.5)):
        _, state = apply(model, tree, images, mutable=["intermediates"])
        for stage in range(1, 5):
            block = state["intermediates"][f"stage{stage}"]["block0"]
            gate = block["gate"][0]
            assert gate.dtype == jnp.float32
            assert gate.min() > 0
            assert gate.max() < 1
            assert np.abs(gate - 0.5).max() < spread
            if stage < 3:  # The later ones are a single chunk.
                assert "loss_before" in block["global_branch"]["memory"]
        assert "gate" not in state["intermediates"]["stage2"].get("block1", {})


def test_an_open_gate_is_the_local_network(network):
    model, variables, images = network
    opened = jax.tree.map(lambda leaf: leaf, variables)
    for stage in range(1, 5):
        expand = opened["params"][f"stage{stage}"]["block0"]["global_branch"]["expand"]
        expand["bias"] = jnp.full_like(expand["bias"], 100.0)
        expand["kernel"] = jnp.zeros_like(expand["kernel"])
    local = jax.tree.map(lambda leaf: leaf, variables)
    for stage in range(1, 5):
        del local["params"][f"stage{stage}"]["block0"]["global_branch"]
    one = apply(model, opened, images)
    other = apply(tiny(memory_at="none"), local, images)
    for name, feature in one.items():
        # The same operations, compiled as two programs.
        np.testing.assert_allclose(feature, other[name], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_fusions_differ_as_their_formulas_say(network):
    """Add with G = c shifts the block's output by c; concat = [I, 0] is local."""
    _, variables, images = network
    constant = jax.tree.map(lambda leaf: leaf, variables)
    local = jax.tree.map(lambda leaf: leaf, variables)
    concat = jax.tree.map(lambda leaf: leaf, variables)
    for stage, width in enumerate(TINY["dims"], start=1):
        name = f"stage{stage}"
        del local["params"][name]["block0"]["global_branch"]
        expand = constant["params"][name]["block0"]["global_branch"]["expand"]
        expand["kernel"] = jnp.zeros_like(expand["kernel"])
        expand["bias"] = jnp.full_like(expand["bias"], 0.25)
        concat["params"][name]["block0"]["concat"] = {
            "kernel": jnp.eye(2 * width, width),
            "bias": jnp.zeros(width),
        }
    plain = apply(tiny(memory_at="none"), local, images)
    shifted = apply(tiny(fusion="add"), constant, images)
    np.testing.assert_allclose(
        shifted["stage1"], plain["stage1"] + 0.25, rtol=0, atol=1e-5
    )
    joined = apply(tiny(fusion="concat"), concat, images)
    np.testing.assert_allclose(joined["stage4"], plain["stage4"], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_gate_scope_stage_gates_later_blocks_too(network):
    _, variables, images = network
    model = tiny(gate_scope="stage")
    features, state = apply(model, variables, images, mutable=["intermediates"])
    gates = state["intermediates"]["stage2"]
    np.testing.assert_array_equal(
        gates["block0"]["gate"][0], gates["block1"]["gate"][0]
    )
    first = apply(tiny(), variables, images)
    # The same operations, compiled as two programs.
    np.testing.assert_allclose(
        features["stage1"], first["stage1"], rtol=1e-5, atol=1e-5
    )
    assert np.abs(features["stage2"] - first["stage2"]).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({}, dict(grad_at="previous", inner_clip=1.0, norm_epsilon=1e-3)),
        (
            dict(preset="package"),
            dict(grad_at="initial", token_reduce="sum", inner_clip=0.0, decay_bias=0.0),
        ),
        (dict(preset="package", inner_lr=1e-3), dict(inner_lr=1e-3, grad_at="initial")),
        (dict(chunk_size=4096, inner_clip=0.0), dict(chunk_size=4096, inner_clip=0.0)),
        (dict(memory_norm_eps=1e-4), dict(norm_epsilon=1e-4, decay_bias=-3.0)),
        (
            dict(read="after", pool="mean", inner_second_order=False, bptt_chunks=8),
            dict(read="after", pool="mean", inner_second_order=False, bptt_chunks=8),
        ),
    ],
)
def test_fields_reach_the_memory(options, fields):
    found = {}

    def record(call, args, kwargs, context):
        if type(context.module).__name__ == "NeuralMemory":
            found[context.module.path] = context.module
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        shapes_of(tiny(**options), 1, 64, 64, 3)
    assert len(found) == 4
    for layer in found.values():
        for name, value in fields.items():
            assert getattr(layer, name) == value


def slopes_of(model, images):
    """A function of the variables that differentiates a loss in the parameters."""

    def loss(params, state):
        features, _ = model.apply(
            {"params": params, **state}, images, train=True, mutable=["batch_stats"]
        )
        return sum(
            jnp.mean(jnp.square(feature.astype(jnp.float32) - 1))
            for feature in features.values()
        )

    def slopes(variables):
        state = {k: v for k, v in variables.items() if k != "params"}
        return jax.grad(loss)(variables["params"], state)

    return slopes


@pytest.mark.parametrize(
    "options",
    [
        dict(preset="package", recurrence="associative"),
        dict(read="after", chunk_layout="window", chunk_size=16),
        dict(memory_at="every_block", inner_dtype=jnp.bfloat16, layer_scale=0.1),
        dict(gate_scope="stage", bptt_chunks=2, inner_second_order=False),
        dict(pool="mean", dtype=jnp.bfloat16, remat=True),
    ],
)
def test_knobs_of_the_memory_can_be_differentiated(options):
    model, images = tiny(**options), images_of(2, 40, 33, 3)
    _, variables = shapes_of(model, 2, 40, 33, 3)
    slopes = jax.eval_shape(slopes_of(model, images), variables)
    for slope, leaf in zip(
        jax.tree.leaves(slopes), jax.tree.leaves(variables), strict=True
    ):
        assert (slope.shape, slope.dtype) == (leaf.shape, leaf.dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        dict(global_branch="cbam", memory_width=128),
        dict(global_branch="nonlocal"),
        dict(global_branch="attention", memory_width=8, block="layer_scale"),
    ],
)
def test_rivals_of_the_memory_train(options):
    model, images = tiny(**options), images_of(2, 32, 48, 3)
    variables = init(model, images)
    # The output layer of the non-local block starts at zero and holds back the others.
    held_back = ("theta/kernel", "phi/kernel", "g/kernel")
    # A bias common to all keys moves no softmax.
    indifferent = ("theta/bias", "phi/bias", "g/bias", "qkv/bias")
    for path, leaf in jax.tree_util.tree_leaves_with_path(
        jax.jit(slopes_of(model, images))(variables)
    ):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert np.isfinite(leaf).all(), name
        if not name.endswith((*held_back, *indifferent)):
            assert np.abs(leaf).max() > 0, name


def test_scan_and_associative_networks_agree(network):
    _, variables, images = network
    options = dict(preset="package", inner_lr=0.01)
    one = apply(tiny(**options), variables, images)
    other = apply(tiny(**options, recurrence="associative"), variables, images)
    for name, feature in one.items():
        # Eight chunks in two orders of float32 additions.
        np.testing.assert_allclose(feature, other[name], rtol=0, atol=1e-3)


@pytest.mark.slow
def test_every_parameter_learns_where_each_stage_has_three_chunks():
    model = tiny(chunk_size=3, depths=(1, 1, 1, 1))
    images = images_of(1, 96, 96, 3)
    slopes = jax.jit(slopes_of(model, images))(init(model, images))
    for path, leaf in jax.tree_util.tree_leaves_with_path(slopes):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert np.isfinite(leaf).all(), name
        # b_p moves all pooling logits of a channel alike; a softmax does not see it.
        if not name.endswith("memory/store/pool/bias"):
            assert np.abs(leaf).max() > 0, name


@pytest.mark.slow
def test_stages_of_one_chunk_leave_their_store_without_gradient_and_decay():
    """At 32 px and 16 tokens a chunk, stages 2 to 4 are one chunk; stage 1 is four."""
    model, images = tiny(chunk_size=16), images_of(2, 32, 32, 3)
    slopes = jax.jit(slopes_of(model, images))(init(model, images))
    idle = convneur.idle_stores(32, chunk_size=16, max_depth=1)
    assert [name.split("/")[0] for name in idle] == ["stage2", "stage3", "stage4"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(slopes):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if any(name.startswith(f"{store}/") for store in idle):
            np.testing.assert_array_equal(leaf, 0)
        elif "/store/" in name and not name.endswith("pool/bias"):
            assert np.abs(leaf).max() > 0, name


def test_undecayed_names_are_parameters():
    _, variables = shapes_of(tiny(), 1, 64, 64, 3)
    paths = [
        f"/{jax.tree_util.keystr(path, simple=True, separator='/')}/"
        for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])
    ]
    first_blocks = [n for n in convneur.NO_DECAY if "/" not in n or "block0" in n]
    assert {n.split("/")[0] for n in first_blocks} == {
        "initial_hidden", "initial_output", "stage3", "stage4",
    }  # fmt: skip
    for name in first_blocks:
        assert any(f"/{name}/" in path for path in paths)


@pytest.mark.slow
def test_remat_changes_no_gradient(network):
    _, variables, images = network
    one, other = (
        jax.jit(slopes_of(tiny(chunk_size=48, remat=remat), images))(variables)
        for remat in (False, True)
    )
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        # Recomputed activations may be fused otherwise: float32 rounding.
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_drop_path_grows_with_depth_and_needs_training(network):
    _, variables, images = network
    model = tiny(drop_path_rate=0.9)
    calm = apply(model, variables, images)
    keys = jax.random.split(jax.random.key(0), 2)
    runs = [
        apply(model, variables, images, train=True, rngs={"drop_path": key})
        for key in keys
    ]
    plain = apply(tiny(), variables, images)
    for name in calm:
        np.testing.assert_array_equal(calm[name], plain[name])
    np.testing.assert_allclose(runs[0]["stage1"], calm["stage1"], atol=1e-5)
    assert np.abs(runs[0]["stage4"] - runs[1]["stage4"]).max() > 1e-2


def test_bf16_keeps_parameters_float32_and_stays_near(network):
    model, variables, images = network
    narrow = apply(tiny(dtype=jnp.bfloat16), variables, images)
    wide = apply(model, variables, images)
    for name, feature in narrow.items():
        assert feature.dtype == jnp.bfloat16
        error = np.abs(np.asarray(feature, np.float32) - wide[name])
        # bf16 keeps 1 in 256; a handful of layers and chunks add up to a few of those.
        assert error.max() < 0.1 * np.abs(wide[name]).max()


@pytest.mark.slow
def test_a_black_image_has_finite_gradients(network):
    _, variables, _ = network
    model, images = tiny(chunk_size=32), jnp.zeros((1, 32, 32, 3))

    zeros = jax.tree.map(jnp.zeros_like, variables["params"]["stem"])
    slopes = jax.jit(slopes_of(model, images))(
        {"params": {**variables["params"], "stem": zeros}}
    )
    for leaf in jax.tree.leaves(slopes):
        assert np.isfinite(leaf).all()


def test_deployed_network_is_the_trained_one(network):
    model, variables, images = network
    deployed = model.clone(deploy=True)
    fused = fusion.fuse_variables(model, deployed, variables)
    jax.tree.map(np.testing.assert_array_equal, fused, dict(variables))
    one, other = apply(model, variables, images), apply(deployed, fused, images)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
def test_overfits_one_batch():
    model = ImageClassifier(
        tiny(chunk_size=32, depths=(1, 1, 1, 1)), ClassifierHead(4, norm="layer")
    )
    images, labels = images_of(8, 32, 32, 3), jnp.arange(8) % 4
    params = init(model, images)["params"]
    tx = optax.adam(1e-2)

    def loss_of(params):
        logits = model.apply({"params": params}, images, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params, state):
        loss, slopes = jax.value_and_grad(loss_of)(params)
        updates, state = tx.update(slopes, state)
        return optax.apply_updates(params, updates), state, loss

    state, losses = tx.init(params), []
    for _ in range(60):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert losses[0] > 1  # ln 4 = 1.39 at chance.
    assert losses[-1] < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(heads=2), "heads=2, but the published counts fit only one"),
        (
            dict(preset="titans"),
            "preset='titans' is unknown; use one of paper, package",
        ),
        (dict(memory_at="stage_end"), "memory_at='stage_end' is unknown"),
        (dict(global_branch="rnn"), "global_branch='rnn' is unknown"),
        (dict(grad_at="next"), "grad_at='next' is unknown"),
        (dict(chunk_layout="window", chunk_size=200), "chunk_size=200 is no square"),
        (dict(kernel_size=4), "kernel_size=.* even"),
        (dict(memory_width=0), "memory_width=0; use 1 or more"),
        (dict(depths=(1, 1, 1)), "must name 4 stages"),
    ],
)
def test_refuses_what_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        shapes_of(tiny(**options), 1, 64, 64, 3)


def test_refuses_images_of_another_shape():
    with pytest.raises(ValueError, match=r"shape \(1, 3, 64, 64\); pass \(B, H, W"):
        shapes_of(tiny(), 1, 3, 64, 64)
