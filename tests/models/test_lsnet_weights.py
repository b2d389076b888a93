"""Official LSNet checkpoints: every name and shape, equal logits, safe reading."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from reference import lsnet_layout
from sizes import slow_but

from lvb.heads import classifier
from lvb.models import lsnet, lsnet_compare, lsnet_weights
from lvb.tasks import classification

DIMS, DEPTHS = (16, 24, 32, 48), (2, 2, 3, 2)
SIZE = 200  # Maps of 25, 13, 7 and 4.
TRAIN_COUNTS = {"T": 11_409_832, "S": 16_146_304, "B": 23_313_608}
DISTILLED_COUNTS = {"T": 11_795_600, "S": 16_596_200, "B": 23_827_632}


def build(*, dims=DIMS, depths=DEPTHS, num_classes=5, distilled=False, **options):
    head = classifier.ClassifierHead(num_classes, distilled=distilled)
    return classification.ImageClassifier(
        lsnet.LSNet(dims=dims, depths=depths, **options), head
    )


def convert(state, **options):
    backbone = lsnet.LSNet(dims=DIMS, depths=DEPTHS, **options)
    return lsnet_weights.from_torch(state, lsnet_weights.template(backbone, state))


def images(size=SIZE, *, batch=2):
    return np.random.default_rng(1).standard_normal((batch, size, size, 3))


def count(state):
    skipped = ("num_batches_tracked", "idxs", "running_mean", "running_var")
    return sum(
        int(np.prod(shape))
        for name, shape in state.items()
        if not name.endswith(skipped)
    )


@pytest.fixture(scope="module")
def layout():
    return lsnet_layout.layout(DIMS, DEPTHS, num_classes=5, two_heads=True)


@pytest.fixture(scope="module")
def state(layout):
    return lsnet_layout.random_state(layout)


@pytest.fixture(scope="module")
def reference(state):
    network = lsnet_layout.Network(state, DEPTHS)
    logits = network(np.moveaxis(images(), -1, 1))
    return logits, network.outputs


@pytest.fixture(scope="module")
def converted(state):
    """Logits and outputs of our network with the converted weights."""
    model = build(distilled=True)

    @jax.jit
    def run(variables, x):
        return model.apply(
            variables,
            x,
            train=False,
            capture_intermediates=True,
            mutable=["intermediates"],
        )

    logits, extra = run(convert(state), jnp.asarray(images(), jnp.float32))
    return logits, extra["intermediates"]


@pytest.mark.parametrize("variant", lsnet.VARIANTS)
def test_the_written_layout_has_the_official_counts(variant):
    fields = lsnet.VARIANTS[variant]
    one, two = (
        lsnet_layout.layout(*fields, two_heads=two_heads) for two_heads in (False, True)
    )
    assert count(one) == TRAIN_COUNTS[variant]
    assert count(two) == DISTILLED_COUNTS[variant]
    if variant == "T":
        assert len(two) == 703  # Entries of the released two-head file.
    if variant == "B":  # The released logs: no 1x1 branch in the fourteen even blocks.
        plain = lsnet_layout.layout(*fields, two_heads=True, rep_branch=False)
        assert count(two) - count(plain) == 15_360


@pytest.mark.parametrize("variant", slow_but(1, lsnet.VARIANTS))
@pytest.mark.parametrize("two_heads", [False, True])
def test_every_official_name_and_shape_is_ours(variant, two_heads):
    fields = lsnet.VARIANTS[variant]
    shapes = lsnet_layout.layout(*fields, two_heads=two_heads)
    state = {name: np.broadcast_to(0.0, shape) for name, shape in shapes.items()}
    model = build(
        dims=fields.dims,
        depths=fields.depths,
        num_classes=1000,
        distilled=two_heads,
    )
    wanted = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False),
        jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32),
    )
    variables = lsnet_weights.from_torch(state, wanted)
    ours = traverse_util.flatten_dict(variables, sep="/")
    expected = traverse_util.flatten_dict(wanted, sep="/")
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in expected.items()
    }
    # And back: the names and shapes of a strict load, in any order.
    back = lsnet_weights.to_torch(variables)
    assert {name: array.shape for name, array in back.items()} == shapes


def test_logits_equal_an_independent_network(reference, converted):
    # float32 rounding through 9 blocks, relative to logits of order 1.
    np.testing.assert_allclose(converted[0], reference[0], rtol=0, atol=1e-4)
    assert np.ptp(reference[0]) > 0.1  # The comparison is not of zeros.


@pytest.mark.slow
@pytest.mark.parametrize("name", lsnet.VARIANTS)
def test_logits_equal_at_full_size(name):
    """The three published sizes at 224 px, with two heads."""
    dims, depths = lsnet.VARIANTS[name]
    shapes = lsnet_layout.layout(dims, depths, two_heads=True)
    state = lsnet_layout.random_state(shapes)
    x = images(224, batch=1)
    expected = lsnet_layout.Network(state, depths)(np.moveaxis(x, -1, 1))
    backbone = lsnet.LSNet(dims=dims, depths=depths)
    variables = lsnet_weights.from_torch(state, lsnet_weights.template(backbone, state))
    model = build(dims=dims, depths=depths, num_classes=1000, distilled=True)
    run = jax.jit(functools.partial(model.apply, train=False))
    found = run(variables, jnp.asarray(x, jnp.float32))
    # Uncalibrated statistics let activations grow: relative to the logits' scale.
    scale = max(1.0, np.max(np.abs(expected)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * scale)


def test_round_trip_is_bit_exact(state):
    narrow = {
        name: array if array.dtype == np.int64 else array.astype(np.float32)
        for name, array in state.items()
    }
    back = lsnet_weights.to_torch(convert(narrow))
    assert back.keys() == narrow.keys()
    for name, array in narrow.items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(back[name], array, err_msg=name)


@pytest.mark.slow
def test_without_the_rep_branch_zeros_take_its_place(state):
    plain = {name: a for name, a in state.items() if ".mixer.conv1." not in name}
    expected = lsnet_layout.Network(plain, DEPTHS)(np.moveaxis(images(), -1, 1))
    x = jnp.asarray(images(), jnp.float32)
    for options in ({}, {"rep_branch": False}):
        model = build(distilled=True, **options)
        run = jax.jit(functools.partial(model.apply, train=False))
        logits = run(convert(plain, **options), x)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def test_each_head_alone_and_their_mean(state, reference):
    """The heads on the reference's last map: either alone gives other logits."""
    x = jnp.moveaxis(jnp.asarray(reference[1]["blocks4.3"], jnp.float32), 1, -1)

    def logits(state, *, distilled=False):
        variables = convert(state)
        head = classifier.ClassifierHead(5, distilled=distilled)
        own = {collection: tree["head"] for collection, tree in variables.items()}
        return head.apply(own, x, train=False)

    first = logits({n: a for n, a in state.items() if not n.startswith("head_dist")})
    second = logits(
        {
            name.replace("head_dist.", "head."): array
            for name, array in state.items()
            if not name.startswith("head.")
        }
    )
    both = logits(state, distilled=True)
    assert float(jnp.max(jnp.abs(first - second))) > 0.1
    np.testing.assert_allclose(both, (first + second) / 2, atol=1e-6)
    np.testing.assert_allclose(both, reference[0], rtol=0, atol=1e-5)


def test_bias_table_is_resized(state):
    variables = convert(state, bias_table_size=14)
    block = variables["params"]["backbone"]["stage4"]["block1"]
    table = block["token_mixer"]["attention_biases"]
    assert table.shape == (4, 196)
    given = state["blocks4.3.mixer.m.attention_biases"]
    # Bicubic enlargement stays near the range of what it interpolates.
    assert table.min() > given.min() - 0.3
    assert table.max() < given.max() + 0.3


def test_first_difference_names_the_layer(state, reference, converted):
    _, outputs = reference
    assert lsnet_compare.first_difference(outputs, converted[1]) is None
    spoilt = dict(outputs)
    spoilt["blocks3.3.mixer.lkp.cv2"] = outputs["blocks3.3.mixer.lkp.cv2"] + 0.01
    spoilt["blocks4.3"] = outputs["blocks4.3"] * np.nan
    found = lsnet_compare.first_difference(spoilt, converted[1])
    assert found.torch_name == "blocks3.3.mixer.lkp.cv2"
    assert found.path == "backbone/stage3/block1/token_mixer/perception/depthwise"
    assert found.error == pytest.approx(0.01, rel=0.05)
    del spoilt["blocks3.3.mixer.lkp.cv2"]
    assert lsnet_compare.first_difference(spoilt, converted[1]).torch_name == (
        "blocks4.3"
    )
    cut = {"patch_embed.0": outputs["patch_embed.0"][:, :, :-1]}
    assert lsnet_compare.first_difference(cut, converted[1]).error == np.inf
    with pytest.raises(ValueError, match="is a module of LSNet"):
        lsnet_compare.first_difference({"layer1.0": np.zeros((1, 2))}, converted[1])


def test_first_difference_sees_every_module_with_parameters(state, converted):
    """A wrong leaf cannot hide: each owner of parameters is compared somewhere."""
    compared = {
        lsnet_weights.torch_name("/".join(path[:-1]))
        for path in traverse_util.flatten_dict(converted[1])
    }
    owners = {
        name.rpartition(".")[0]
        for name in state
        if not name.endswith(("attention_biases", "attention_bias_idxs"))
    }
    assert owners <= compared


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks3.3.mixer.bn.bias"), "misses key 'blocks3.3.mixer.bn"),
        (
            lambda s: s.pop("blocks1.0.mixer.conv1.c.weight"),
            "misses key 'blocks1.0.mixer.conv1.c.weight'",
        ),
        (lambda s: s.update({"fc.weight": np.ones(3)}), "unknown key 'fc.weight'"),
        (
            lambda s: s.update({"blocks2.1.c.weight": np.ones((24, 16, 3, 3))}),
            r"'blocks2.1.c.weight' has shape \(24, 16, 3, 3\)",
        ),
        (
            lambda s: s.update(
                {"blocks4.3.mixer.m.attention_biases": np.ones((3, 16))}
            ),
            r"attention_biases' has shape \(3, 16\)",
        ),
    ],
)
def test_refuses_what_does_not_fit(state, change, message):
    changed = dict(state)
    change(changed)
    with pytest.raises(ValueError, match=message):
        convert(changed)


def test_rep_branch_off_refuses_a_checkpoint_with_it(state):
    with pytest.raises(ValueError, match=r"unknown key .*conv1.* and 24 more"):
        convert(state, rep_branch=False)  # 5 even blocks of 5 arrays.


def test_ablations_have_no_official_counterpart(state):
    with pytest.raises(ValueError, match="has no counterpart in the official LSNet"):
        convert(state, aggregate=False)


def test_load_torch_of_a_distilled_file(tmp_path):
    fields = lsnet.VARIANTS["T"]
    shapes = lsnet_layout.layout(*fields, num_classes=3, two_heads=True)
    state = {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}
    state["head_dist.l.bias"] += np.asarray([1, 2, 3], np.float16)
    path = tmp_path / "lsnet_t.npz"
    np.savez(path, **state)
    variables = lsnet_weights.load_torch("lsnet_t", path)
    head = variables["params"]["head"]
    np.testing.assert_array_equal(head["distill_classifier"]["bias"], [1, 2, 3])
    assert head["classifier"]["kernel"].shape == (384, 3)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    with pytest.raises(ValueError, match="weights of lsnet_t, not of lsnet_s"):
        lsnet_weights.load_torch("lsnet_s", path)
    with pytest.raises(ValueError, match="'fvnet_n' has no official PyTorch"):
        lsnet_weights.load_torch("fvnet_n", path)
    with pytest.raises(ValueError, match="not an unfused LSNet"):
        lsnet_weights.variant_of({"patch_embed.4.c.weight": np.ones((5, 1))})


def test_convolution_of_the_reference_is_torchs(state):
    torch = pytest.importorskip("torch", reason="needs lvb[torch]")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 16, 9, 9))
    for name, strides, groups in (
        ("blocks2.0.c.weight", 2, 16),
        ("blocks1.0.ffn.m.pw1.c.weight", 1, 1),
    ):
        kernel = state[name]
        expected = torch.nn.functional.conv2d(
            torch.from_numpy(x),
            torch.from_numpy(kernel),
            stride=strides,
            padding=kernel.shape[-1] // 2,
            groups=groups,
        )
        ours = lsnet_layout.conv(x, kernel, strides=strides)
        np.testing.assert_allclose(ours, expected.numpy(), atol=1e-12)
