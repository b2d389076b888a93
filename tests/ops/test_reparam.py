"""The algebra of reparameterisation against convolution loops, in float64."""

import numpy as np
import pytest
from reference import reparam as loops

from lvb.ops import reparam


def random_norm(rng, channels):
    params = {"scale": rng.normal(size=channels), "bias": rng.normal(size=channels)}
    stats = {"mean": rng.normal(size=channels), "var": rng.uniform(0.5, 2, channels)}
    return params, stats


def test_batch_norm_affine_equals_batch_norm():
    rng = np.random.default_rng(0)
    params, stats = random_norm(rng, 5)
    x = rng.normal(size=(2, 3, 4, 5))
    affine = reparam.batch_norm_affine(params, stats, epsilon=1e-5)
    expected = loops.batch_norm_loops(x, params, stats, epsilon=1e-5)
    np.testing.assert_allclose(x * affine.scale + affine.offset, expected, atol=1e-13)


def test_batch_norm_affine_counts_epsilon():
    stats = {"mean": np.zeros(1), "var": np.zeros(1)}
    affine = reparam.batch_norm_affine({}, stats, epsilon=1e-4)
    np.testing.assert_allclose(affine.scale, 100.0)


@pytest.mark.parametrize("missing", [("scale",), ("bias",), ("scale", "bias")])
def test_batch_norm_affine_without_parameters(missing):
    params, stats = random_norm(np.random.default_rng(1), 3)
    neutral = {"scale": np.ones(3), "bias": np.zeros(3)}
    given = {name: params[name] for name in params if name not in missing}
    filled = {name: (neutral if name in missing else params)[name] for name in params}
    ours = reparam.batch_norm_affine(given, stats, epsilon=1e-5)
    theirs = reparam.batch_norm_affine(filled, stats, epsilon=1e-5)
    np.testing.assert_array_equal(np.broadcast_to(ours.scale, 3), theirs.scale)
    np.testing.assert_array_equal(ours.offset, theirs.offset)


def test_fold_after():
    rng = np.random.default_rng(2)
    x, kernel = rng.normal(size=(1, 4, 5, 2)), rng.normal(size=(3, 3, 2, 4))
    bias = rng.normal(size=4)
    params, stats = random_norm(rng, 4)
    affine = reparam.batch_norm_affine(params, stats, epsilon=1e-5)
    merged = reparam.fold_after(kernel, affine, bias=bias)
    y = loops.conv_loops(x, kernel, bias=bias)
    np.testing.assert_allclose(
        loops.conv_loops(x, merged.kernel, bias=merged.bias),
        loops.batch_norm_loops(y, params, stats),
        atol=1e-12,
    )


def test_fold_before():
    rng = np.random.default_rng(3)
    x, kernel = rng.normal(size=(6, 5)), rng.normal(size=(5, 3))
    bias = rng.normal(size=3)
    affine = reparam.Affine(rng.normal(size=5), rng.normal(size=5))
    merged = reparam.fold_before(affine, kernel, bias=bias)
    expected = (x * affine.scale + affine.offset) @ kernel + bias
    np.testing.assert_allclose(x @ merged.kernel + merged.bias, expected, atol=1e-13)


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_expand_groups_equals_the_grouped_convolution(groups):
    # FMViT Fig. 3: 8 -> 16 channels, so input and output blocks differ in size.
    rng = np.random.default_rng(groups)
    x = rng.normal(size=(1, 3, 2, 8))
    kernel = rng.normal(size=(1, 1, 8 // groups, 16))
    dense = reparam.expand_groups(kernel, groups=groups)
    assert dense.shape == (1, 1, 8, 16)
    assert np.count_nonzero(dense) == kernel.size
    np.testing.assert_allclose(
        loops.conv_loops(x, dense), loops.conv_loops(x, kernel, groups=groups)
    )


@pytest.mark.parametrize(("groups", "to_groups"), [(4, 2), (8, 2), (8, 4), (4, 4)])
def test_expand_groups_to_fewer_groups(groups, to_groups):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 4, 3, 8))
    kernel = rng.normal(size=(3, 3, 8 // groups, 16))
    wider = reparam.expand_groups(kernel, groups=groups, to_groups=to_groups)
    assert wider.shape == (3, 3, 8 // to_groups, 16)
    np.testing.assert_allclose(
        loops.conv_loops(x, wider, groups=to_groups),
        loops.conv_loops(x, kernel, groups=groups),
        atol=1e-13,
    )


def test_expand_groups_refuses_what_does_not_divide():
    with pytest.raises(ValueError, match="2 groups cannot be written with 3"):
        reparam.expand_groups(np.ones((1, 1, 2, 4)), groups=2, to_groups=3)


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("height", [6, 7])
@pytest.mark.parametrize("inner", [(1, 1), (3, 1), (1, 3), (3, 3)])
def test_pad_kernel_keeps_the_samples(inner, height, strides):
    # Even and odd maps: the centres a strided kernel samples must not move.
    rng = np.random.default_rng(4)
    x, kernel = rng.normal(size=(1, height, 5, 2)), rng.normal(size=(*inner, 2, 3))
    padded = reparam.pad_kernel(kernel, size=(5, 3))
    np.testing.assert_allclose(
        loops.conv_loops(x, padded, strides=strides),
        loops.conv_loops(x, kernel, strides=strides),
        atol=1e-13,
    )


@pytest.mark.parametrize("size", [(1, 1), (4, 3)])
def test_pad_kernel_refuses_what_it_cannot_centre(size):
    with pytest.raises(ValueError, match="cannot be centred"):
        reparam.pad_kernel(np.ones((3, 3, 1, 1)), size=size)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_identity_kernel_returns_its_input(groups):
    x = np.random.default_rng(5).normal(size=(1, 3, 2, 6))
    kernel = reparam.identity_kernel(6, groups=groups)
    np.testing.assert_array_equal(loops.conv_loops(x, kernel, groups=groups), x)


def test_merge_adds_parallel_convolutions():
    rng = np.random.default_rng(6)
    x = rng.normal(size=(1, 3, 3, 2))
    branches = [
        reparam.Kernel(rng.normal(size=(3, 3, 2, 3)), rng.normal(size=3))
        for _ in range(3)
    ]
    merged = reparam.merge(branches)
    expected = sum(loops.conv_loops(x, b.kernel, bias=b.bias) for b in branches)
    np.testing.assert_allclose(
        loops.conv_loops(x, merged.kernel, bias=merged.bias), expected, atol=1e-13
    )


def test_results_are_float64():
    single = np.ones((1, 1, 2, 4), np.float32)
    affine = reparam.batch_norm_affine(
        {}, {"mean": np.zeros(4, np.float32), "var": np.ones(4, np.float32)}, epsilon=0
    )
    merged = reparam.fold_after(single, affine)
    dense = reparam.expand_groups(single, groups=2)
    for array in (*affine, *merged, dense, reparam.pad_kernel(single, size=(3, 3))):
        assert array.dtype == np.float64
