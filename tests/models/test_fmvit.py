"""FMViT's backbone: shapes, options, fused = unfused, training."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sizes import slow_but

from lvb.heads import classifier
from lvb.layers import drop_path, fusion, module
from lvb.models import fmvit
from lvb.tasks import classification

TINY = dict(
    stem_dim=8,
    stage1_dim=16,
    embed_dims=(8, 8, 16),
    attention_dims=(16, 16, 24),
    frequency_dims=(8, 8, 8),
    depths=(1, 1, 1, 1),
    head_dim=8,
    groups=(4,),
)


def tiny(**options):
    """A tiny backbone."""
    return fmvit.FMViT(**(TINY | options))


def classify(backbone, *, num_classes=10):
    """The classifier on a backbone, with the backbone's settings."""
    head = classifier.ClassifierHead(
        num_classes, norm="batch_before_pool", **backbone.inherited
    )
    return classification.ImageClassifier(backbone, head)


@functools.cache
def shapes_of(model, size=(64, 64), channels=3):
    """Shapes of the variables, nothing computed."""
    images = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
    return jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), images
    )


SIZES = [(32, 32), (33, 47), (50, 100), (95, 64), (800, 1344)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_feature_shapes(size, channels):
    backbone = tiny()
    variables = shapes_of(backbone, (32, 32), channels)
    images = jax.ShapeDtypeStruct((2, *size, channels), jnp.bfloat16)
    features = jax.eval_shape(
        lambda v, x: backbone.apply(v, x, train=False), variables, images
    )
    for index, (stride, dim) in enumerate(
        zip(backbone.strides, backbone.dims, strict=True), start=1
    ):
        rows, columns = (-(-side // stride) for side in size)
        assert features[f"stage{index}"].shape == (2, rows, columns, dim)
        assert features[f"stage{index}"].dtype == jnp.float32


def random_variables(model, *, seed=0):
    """Variables with kernels of unit gain, norms at their start."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            deviation = np.prod(leaf.shape[:-1]) ** -0.5
            return np.asarray(deviation * rng.normal(size=leaf.shape), leaf.dtype)
        fill = np.ones if name in ("scale", "var") else np.zeros
        return fill(leaf.shape, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes_of(model))


def calibrate(model, variables, images, *, seed=1):
    """Statistics of one batch; then scales and biases move, as training would.

    Statistics drawn at random instead would let the sums of branches explode.
    """
    rng = np.random.default_rng(seed)

    @jax.jit
    def update(variables, images):
        return model.apply(variables, images, train=True, mutable=["batch_stats"])[1]

    new = update(variables, images)["batch_stats"]
    # running' = 0.9 running + 0.1 batch.
    stats = jax.tree.map(
        lambda after, before: np.asarray((after - 0.9 * before) / 0.1, before.dtype),
        new,
        variables["batch_stats"],
    )

    def move(path, leaf):
        if path[-1].key == "scale":
            leaf = leaf * rng.uniform(0.9, 1.1, leaf.shape)
        if path[-1].key == "bias":
            leaf = leaf + 0.02 * rng.normal(size=leaf.shape)
        return np.asarray(leaf, np.asarray(leaf).dtype)

    params = jax.tree_util.tree_map_with_path(move, variables["params"])
    return {"params": params, "batch_stats": stats}


def images_of(batch, height, width, *, seed=2):
    """Random images in float64, which a model casts to its own dtype."""
    return np.random.default_rng(seed).normal(size=(batch, height, width, 3))


def evaluate(model, variables, images):
    """Jitted inference, 64 images at a time."""
    apply = jax.jit(lambda v, x: model.apply(v, x, train=False))
    starts = range(0, len(images), 64)
    parts = [apply(variables, images[start : start + 64]) for start in starts]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def cast(tree, dtype):
    """All leaves in one type."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, dtype), tree)


@pytest.fixture(scope="module")
def calibrated():
    """A tiny classifier's variables, float32."""
    model = classify(tiny(op_form="reference"))
    return calibrate(model, random_variables(model), jnp.float32(images_of(4, 64, 64)))


def fused_difference(fields, variables, images, *, dtype, num_classes=10):
    """Logits before and after fusing, and the fused variables, computed in `dtype`."""
    backbone = fmvit.FMViT(**fields, dtype=dtype, param_dtype=dtype)
    model = classify(backbone, num_classes=num_classes)
    deployed = classify(backbone.clone(deploy=True), num_classes=num_classes)
    variables, images = cast(variables, dtype), np.asarray(images, dtype)
    fused = fusion.fuse_variables(model, deployed, variables)
    before = evaluate(model, variables, images)
    return before, evaluate(deployed, fused, images), fused


def relative(after, before):
    """Largest difference over the largest logit."""
    return np.abs(after - before).max() / np.abs(before).max()


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    slow_but([("float64", 1e-9)], [("float32", 1e-4), ("float64", 1e-9)]),
)
def test_fused_equals_unfused(calibrated, dtype, tolerance):
    # One dtype in each form of the operators.
    fields = TINY | dict(op_form="shift" if dtype == "float32" else "reference")
    with jax.enable_x64(dtype == "float64"):
        before, after, fused = fused_difference(
            fields, calibrated, images_of(3, 64, 48), dtype=dtype
        )
    assert before.dtype == dtype
    assert np.ptp(before) > 0.1  # The logits are not all alike.
    assert relative(after, before) < tolerance
    np.testing.assert_array_equal(before.argmax(-1), after.argmax(-1))
    assert set(fused) == {"params"}
    prenorm = fused["params"]["backbone"]["stage4"]["block0"]["attention"]["prenorm"]
    assert jax.tree.map(np.shape, prenorm) == {"scale": (24,), "bias": (24,)}


@pytest.mark.slow
@pytest.mark.parametrize("variant", fmvit.VARIANTS)
def test_fused_equals_unfused_in_every_size(variant):
    fields = fmvit.VARIANTS[variant]._asdict() | dict(op_form="reference")
    if variant in "SMB":  # Between the others in depth; they would take minutes more.
        fields["depths"] = (1, 1, 1, 1)
    images = images_of(256 if variant == "T" else 32, 64, 64)
    model = classify(fmvit.FMViT(**fields), num_classes=1000)
    variables = calibrate(model, random_variables(model), jnp.float32(images[:32]))
    compare = functools.partial(fused_difference, num_classes=1000)
    if variant != "L":  # It chains twelve residual CFBs, and rounding with them.
        before, after, _ = compare(fields, variables, images, dtype="float32")
        assert relative(after, before) < 1e-4
        np.testing.assert_array_equal(before.argmax(-1), after.argmax(-1))
    fields["op_form"] = "shift"  # Stock convolutions are slow in float64.
    with jax.enable_x64(True):
        before, after, _ = compare(fields, variables, images[:2], dtype="float64")
    assert relative(after, before) < 1e-9


@pytest.mark.slow
def test_bfloat16_odd_images_stay_finite(calibrated):
    backbone = tiny(dtype=jnp.bfloat16, op_form="reference")
    variables = {name: tree["backbone"] for name, tree in calibrated.items()}
    images = jnp.float32(images_of(2, 45, 71))
    for name, feature in evaluate(backbone, variables, images).items():
        assert feature.dtype == jnp.bfloat16
        assert np.isfinite(np.asarray(feature, np.float32)).all(), name
    assert all(
        leaf.dtype == np.float32 for leaf in jax.tree.leaves(shapes_of(backbone))
    )


def gradient_of(model, variables, images):
    """Gradient of a curved function of the logits, in training."""

    @jax.jit
    @jax.grad
    def gradient(params, rest, images):
        logits, _ = model.apply(
            rest | {"params": params}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(jnp.sin(logits) * jnp.cos(jnp.arange(10.0)[None]))

    grads = gradient(variables["params"], variables, images)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
    }


# Biases that only the batch norm behind a 1x1 convolution sees, which subtracts them.
# In frozen statistics nothing does.
SILENT = re.compile(
    r"backbone/(stage1/block0/(token_mixer|channel_mixer/reduce)"
    r"|stage[234]/(embed|block0/channel_mixer/reduce)"
    r"|stage./block0/(fusion.|cfb2/token_mixer|cfb2/channel_mixer/reduce)"
    r"|stage./block0/attention/(shared|projection))/.*bias"
)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
def test_every_parameter_trains(calibrated, frozen):
    with jax.enable_x64(True):
        backbone = tiny(
            dtype=jnp.float64,
            param_dtype=jnp.float64,
            frozen_batch_norm=frozen,
            op_form="reference",
        )
        grads = gradient_of(
            classify(backbone),
            cast(calibrated, np.float64),
            images_of(4, 64, 64),
        )
    for path, leaf in grads.items():
        assert np.isfinite(leaf).all(), path
        silent = not frozen and SILENT.fullmatch(path) is not None
        # Float64: what cancels is below 1e-12 of gradients of order 1.
        assert (np.abs(leaf).max() < 1e-10) == silent, path


@pytest.mark.slow
def test_rematerialisation_does_not_change_gradients(calibrated):
    images = jnp.float32(images_of(4, 64, 64))
    plain, remat = (
        gradient_of(
            classify(tiny(remat=remat, op_form="reference")),
            calibrated,
            images,
        )
        for remat in (False, True)
    )
    for path, leaf in plain.items():
        # The same float32 sums, which XLA may fuse in another order.
        np.testing.assert_allclose(
            remat[path], leaf, rtol=1e-3, atol=1e-4 * np.abs(leaf).max() + 1e-5
        )


@pytest.mark.slow
def test_rematerialisation_is_per_stage_and_keeps_the_tree():
    assert shapes_of(tiny(remat=True)) == shapes_of(tiny())

    def recomputed(backbone):
        jaxpr = jax.make_jaxpr(
            lambda v, x: backbone.apply(v, x, train=True, mutable=["batch_stats"])
        )(shapes_of(backbone), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
        names = [equation.primitive.name for equation in jaxpr.jaxpr.eqns]
        return sum(name in ("checkpoint", "remat", "remat2") for name in names)

    assert recomputed(tiny()) == 0
    assert recomputed(tiny(remat=True)) == 4


def test_drop_path_rates_grow_with_depth(monkeypatch):
    seen = {}

    def record(self, x, *, train):
        seen["/".join(self.path[:2])] = self.rate
        return x

    monkeypatch.setattr(drop_path.DropPath, "__call__", record)
    shapes_of.__wrapped__(tiny(depths=(2, 1, 2, 1), drop_path_rate=0.5))
    order = ["stage1/block0", "stage1/block1", "stage2/block0"]
    order += ["stage3/block0", "stage3/block1", "stage4/block0"]
    np.testing.assert_allclose([seen[name] for name in order], np.linspace(0, 0.5, 6))


def test_frozen_batch_norm_updates_nothing():
    backbone = tiny(frozen_batch_norm=True)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)

    def apply(variables, images):
        _, state = backbone.apply(
            variables, images, train=True, mutable=["intermediates"]
        )
        return state

    # An update would raise: batch_stats are not mutable here.
    state = jax.eval_shape(apply, shapes_of(backbone), images)
    assert set(state) == {"intermediates"}
    with pytest.raises(Exception, match="batch_stats"):
        jax.eval_shape(
            lambda v, x: tiny().apply(v, x, train=True), shapes_of(tiny()), images
        )


def test_shared_settings_reach_every_module(monkeypatch):
    given = dict(dtype=jnp.bfloat16, frozen_batch_norm=True, op_form="reference")
    seen = []

    def record(call, args, kwargs, context):
        if isinstance(context.module, module.Layer):
            seen.append(context.module)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        shapes_of.__wrapped__(tiny(**given))
    assert len(seen) > 50
    for layer in seen:
        assert {name: getattr(layer, name) for name in given} == given, layer.path


@pytest.mark.slow
def test_overfits_one_batch(calibrated):
    model = classify(tiny(op_form="reference"))
    images, labels = jnp.float32(images_of(8, 64, 64)), jnp.arange(8)

    @jax.jit
    def step(variables, momentum):
        def loss(params):
            logits, state = model.apply(
                variables | {"params": params},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            log_probs = jax.nn.log_softmax(logits)
            picked = jnp.take_along_axis(log_probs, labels[:, None], axis=-1)
            return -picked.mean(), state

        (value, state), grads = jax.value_and_grad(loss, has_aux=True)(
            variables["params"]
        )
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, grads)
        params = jax.tree.map(lambda p, m: p - 0.02 * m, variables["params"], momentum)
        return {"params": params, **state}, momentum, value

    variables = jax.tree.map(jnp.asarray, calibrated)
    momentum = jax.tree.map(jnp.zeros_like, variables["params"])
    losses = []
    for _ in range(40):
        variables, momentum, value = step(variables, momentum)
        losses.append(float(value))
    assert losses[0] > 1.5
    assert losses[-1] < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(attention="linear"), "attention='linear' is unknown; use one of rlmhsa"),
        (dict(channel_mixer="ffn"), "channel_mixer='ffn' is unknown"),
        (dict(fm_x_from="raw"), "fm_x_from='raw' is unknown; use one of pe, input"),
        (dict(cfb_width="m"), "cfb_width='m' is unknown"),
        (dict(attn_prenorm="layer"), "attn_prenorm='layer' is unknown"),
        (dict(dw_branches=("1x1",)), "dw_branches has '1x1'; use any of pointwise"),
        (dict(head_dim=5), "are not multiples of head_dim=5"),
        (dict(groups=(3,)), "groups=3"),
        (dict(depths=(1, 1)), "depths=(1, 1) does not have 4 entries"),
        (dict(embed_dims=()), "embed_dims=() does not have 3 entries"),
    ],
)
def test_bad_fields_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        shapes_of(tiny(**options))


@pytest.mark.parametrize("shape", [(1, 16, 64, 3), (1, 64, 64, 4), (64, 64, 3)])
def test_bad_images_are_refused(shape):
    with pytest.raises(ValueError, match=re.escape(f"{shape} do not fit")):
        jax.eval_shape(
            lambda x: tiny().init(jax.random.key(0), x, train=False),
            jax.ShapeDtypeStruct(shape, jnp.float32),
        )
