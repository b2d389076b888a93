"""The fused LSNet computes what the training form does."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import lsnet_cases as cases
import numpy as np
import pytest
from flax import traverse_util

from lvb.layers import fusion, norm
from lvb.models import lsnet


@pytest.fixture(scope="module")
def tiny():
    return cases.tiny_classifier()


@pytest.mark.parametrize(("name", "left"), [("T", 10), ("S", 10), ("B", 18)])
def test_norm_layers_their_settings_and_those_left_by_fusion(name, left):
    found = {False: [], True: []}
    for deploy, layers in found.items():

        def record(call, args, kwargs, context, layers=layers):
            if isinstance(context.module, nn.BatchNorm | norm.GroupNorm):
                layers.append(context.module)
            return call(*args, **kwargs)

        with nn.intercept_methods(record):
            cases.shapes(cases.build(cases.variant(name, deploy=deploy)))
    assert len(found[True]) == left
    for layer in found[False]:
        assert layer.epsilon == 1e-5  # Flax's default for group norm is 1e-6.
        if isinstance(layer, nn.BatchNorm):
            assert layer.momentum == 0.9  # PyTorch's 0.1.
        else:
            assert layer.num_groups * 9 == layer.variables["params"]["scale"].size


def test_fused_equals_unfused_in_float32(tiny):
    model, variables, apply = tiny
    deployed = cases.build(lsnet.LSNet(**cases.TINY, deploy=True))
    fused = fusion.fuse_variables(model, deployed, variables)
    # LSConv's own norms stay: a batch norm in each of two blocks.
    left = traverse_util.flatten_dict(fused["batch_stats"], sep="/")
    assert len(left) == 2 * 2
    run = jax.jit(functools.partial(deployed.apply, train=False))
    for size in ((cases.SIZE, cases.SIZE), (40, 72)):
        x = cases.images(size=size, seed=3)
        expected = apply(variables, x)
        error = np.max(np.abs(run(fused, x) - expected))
        assert error <= 1e-5 * np.max(np.abs(expected))


@pytest.mark.slow
def test_fused_equals_unfused_in_float64(tiny):
    _, variables, _ = tiny
    with jax.enable_x64():
        options = dict(cases.TINY, dtype=jnp.float64, param_dtype=jnp.float64)
        model, deployed = (
            cases.build(lsnet.LSNet(**options, deploy=deploy), dtype=jnp.float64)
            for deploy in (False, True)
        )
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), variables)
        fused = fusion.fuse_variables(model, deployed, wide)
        x = jnp.asarray(cases.images(batch=1), jnp.float64)
        expected, found = (
            jax.jit(functools.partial(m.apply, train=False))(v, x)
            for m, v in ((model, wide), (deployed, fused))
        )
        assert found.dtype == jnp.float64
        error = np.max(np.abs(found - expected)) / np.max(np.abs(expected))
        assert error <= 1e-9


def full_size(name, *, dtype=jnp.float32):
    """A published size, its fused form, and both jitted at evaluation."""
    options = dict(dtype=dtype, param_dtype=dtype)
    models = [
        cases.build(
            cases.variant(name, deploy=deploy, **options),
            num_classes=1000,
            dtype=dtype,
        )
        for deploy in (False, True)
    ]
    runs = [jax.jit(functools.partial(m.apply, train=False)) for m in models]
    return *models, *runs


def relative_error(found, expected):
    return float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["T", "S"])
def test_fused_equals_unfused_at_full_size_in_float32(name):
    """Without calibration, which in LSNet-B lets activations and rounding grow."""
    model, deployed, run, run_fused = full_size(name)
    variables = cases.random_variables(model)
    fused = fusion.fuse_variables(model, deployed, variables)
    x = cases.images(batch=256, size=(64, 64), seed=3)
    expected, found = run(variables, x), run_fused(fused, x)
    assert relative_error(found, expected) <= 1e-5
    np.testing.assert_array_equal(found.argmax(-1), expected.argmax(-1))


@pytest.mark.slow
@pytest.mark.parametrize("name", lsnet.VARIANTS)
def test_fused_equals_unfused_at_full_size_calibrated(name):
    """Exact in float64; in float32 as near to the truth as the unfused network.

    Random networks of this depth amplify rounding a hundredfold and more once their
    statistics are calibrated, in either form, so the unfused one's own error is the
    measure.
    """
    model, deployed, run, run_fused = full_size(name)
    variables = cases.calibrated(
        model,
        cases.random_variables(model),
        cases.images(batch=8, size=(224, 224)),
    )
    fused = fusion.fuse_variables(model, deployed, variables)
    x = cases.images(batch=4, size=(224, 224), seed=3)
    rounded = [run(variables, x), run_fused(fused, x)]
    with jax.enable_x64():
        model, deployed, run, run_fused = full_size(name, dtype=jnp.float64)
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), variables)
        fused = fusion.fuse_variables(model, deployed, wide)
        x = jnp.asarray(x, jnp.float64)
        truth = np.asarray(run(wide, x))
        assert relative_error(run_fused(fused, x), truth) <= 1e-9
    unfused_error, fused_error = (relative_error(y, truth) for y in rounded)
    assert fused_error <= 3 * unfused_error
    for logits in rounded:
        np.testing.assert_array_equal(logits.argmax(-1), truth.argmax(-1))
