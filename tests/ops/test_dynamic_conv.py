"""LS aggregation against loops, its limits, its channel map and its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from reference import dynamic_conv as reference

from lvb.analysis import flops
from lvb.ops import dynamic_conv

FORMS = ("reference", "shift")
# One program a case, not one an operation.
ska = jax.jit(dynamic_conv.ska, static_argnames=("kernel_size", "grouping", "form"))
# (height, width, channels, kernels, kernel size): R = 8, 3, 1; a 1x1 map; 1x1 taps;
# R = 3 of 4 kernels, more kernels than channels of one.
SHAPES = [
    (4, 5, 16, 2, 3),
    (6, 3, 6, 2, 5),
    (3, 3, 8, 8, 1),
    (1, 1, 8, 2, 3),
    (4, 3, 12, 4, 3),
]


def _inputs(height, width, channels, kernels, kernel_size, *, batch=2, dtype=float):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, height, width, channels))
    weights = rng.standard_normal((batch, height, width, kernels, kernel_size**2))
    return x.astype(dtype), weights.astype(dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("grouping", dynamic_conv.GROUPINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_loops(shape, grouping, form):
    x, weights = _inputs(*shape)
    options = dict(kernel_size=shape[-1], grouping=grouping)
    expected = reference.ska_loops(x, weights, **options)
    with jax.enable_x64():
        y = ska(x, weights, form=form, **options)
        # Both add at most 25 products; float64 leaves 1e-15 a product.
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-13)
    narrow = ska(x.astype(np.float32), weights.astype(np.float32), form=form, **options)
    # 25 products of size about 1 with 6e-8 rounding each, adding up at random.
    np.testing.assert_allclose(narrow, expected, rtol=0, atol=4e-6)


def test_reference_loops_agree_with_a_known_case():
    """The loops themselves: channel c mod M, taps row by row, not flipped."""
    x = np.arange(18.0).reshape(1, 3, 3, 2)
    weights = np.zeros((1, 3, 3, 2, 9))
    weights[..., 0, 5] = 1.0  # Kernel 0 reads its right neighbour.
    weights[..., 1, 1] = 2.0  # Kernel 1 reads twice the one above.
    y = reference.ska_loops(x, weights, kernel_size=3, grouping="interleaved")
    np.testing.assert_array_equal(y[0, :, :2, 0], x[0, :, 1:, 0])
    np.testing.assert_array_equal(y[0, :, 2, 0], 0)
    np.testing.assert_array_equal(y[0, 1:, :, 1], 2 * x[0, :2, :, 1])


@pytest.mark.parametrize("form", FORMS)
def test_centre_tap_is_the_identity_and_ninths_a_box_filter(form):
    x, _ = _inputs(4, 5, 6, 3, 3)
    x = x.astype(np.float32)
    centre = np.zeros((2, 4, 5, 3, 9), np.float32)
    centre[..., 4] = 1.0
    np.testing.assert_array_equal(ska(x, centre, form=form), x)
    box = ska(x, np.full_like(centre, 1 / 9), form=form)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    # Zeros outside the map, divided by 9 at the border too: nothing is renormalised.
    np.testing.assert_allclose(box, windows.sum((-1, -2)) / 9, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("grouping", "zeroed"), [("interleaved", [0, 3, 6, 9]), ("contiguous", range(4))]
)
def test_which_channels_a_kernel_serves(grouping, zeroed, form):
    x = np.ones((1, 2, 2, 12), np.float32)
    weights = np.zeros((1, 2, 2, 3, 9), np.float32)
    weights[..., 4] = 1.0
    weights[..., 0, :] = 0.0
    y = ska(x, weights, grouping=grouping, form=form)
    expected = np.ones(12)
    expected[list(zeroed)] = 0
    np.testing.assert_array_equal(y, np.broadcast_to(expected, y.shape))


def test_groupings_differ_by_a_permutation_of_channels():
    x, weights = _inputs(4, 4, 12, 3, 3, dtype=np.float32)
    order = np.arange(12).reshape(3, 4).T.ravel()  # Interleaved place -> contiguous.
    contiguous = ska(x, weights, grouping="contiguous")
    interleaved = ska(x[..., order], weights, grouping="interleaved")
    np.testing.assert_allclose(contiguous[..., order], interleaved, atol=1e-6)
    direct = ska(x, weights, grouping="interleaved")
    assert not np.allclose(contiguous, direct, atol=1e-2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "shape",
    # Unrolled, 25 taps compile slowly.
    [SHAPES[0], pytest.param(SHAPES[1], marks=pytest.mark.slow), *SHAPES[2:]],
)
def test_gradients_are_the_derivatives(shape, form):
    x, weights = _inputs(*shape)
    dy = np.random.default_rng(1).standard_normal(x.shape)
    with jax.enable_x64():

        @jax.jit
        def aggregate(x, weights):
            return ska(x, weights, kernel_size=shape[-1], form=form)

        arguments = (jnp.asarray(x), jnp.asarray(weights))
        # Bilinear, so central differences are exact up to rounding.
        check_grads(aggregate, arguments, order=2, modes=["rev"], atol=1e-6, rtol=1e-6)
        gradients = jax.jit(
            lambda dy, *arguments: jax.vjp(aggregate, *arguments)[1](dy)
        )(dy, *arguments)
    expected = reference.ska_gradients(x, weights, dy, kernel_size=shape[-1])
    for gradient, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("grouping", dynamic_conv.GROUPINGS)
def test_forms_agree_in_gradient_for_both_groupings(grouping):
    x, weights = _inputs(4, 3, 8, 2, 3, dtype=np.float32)

    def loss(form):
        def value(x, weights):
            y = ska(x, weights, grouping=grouping, form=form)
            return jnp.sum(jnp.sin(y))

        return jax.jit(jax.grad(value, argnums=(0, 1)))(x, weights)

    for one, other in zip(loss("reference"), loss("shift"), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_accumulates_in_float32(form):
    """256 + 8 ones: bfloat16 sums stay at 256, because its spacing there is 2."""
    x = np.ones((1, 3, 3, 1), np.float32)
    weights = np.ones((1, 3, 3, 1, 9), np.float32)
    weights[..., 0] = 256.0
    x, weights = jnp.asarray(x, jnp.bfloat16), jnp.asarray(weights, jnp.bfloat16)
    y = ska(x, weights, form=form)
    assert y.dtype == jnp.bfloat16
    assert float(y[0, 1, 1, 0]) == 264.0
    gradients = jax.jit(
        jax.grad(
            lambda x, w: ska(x, w, form=form).astype(jnp.float32).sum(),
            argnums=(0, 1),
        )
    )(x, weights)
    assert [gradient.dtype for gradient in gradients] == [jnp.bfloat16] * 2


def test_reference_form_counts_its_products():
    x, weights = _inputs(6, 7, 16, 2, 3, batch=1, dtype=np.float32)

    def aggregate(x, weights):
        return ska(x, weights, form="reference")

    assert flops.count_macs(aggregate, x, weights) == 6 * 7 * 16 * 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(kernel_size=2), "kernel_size=2 has no centre tap"),
        (dict(kernel_size=5), r"must be \(B, H, W, M, 25\)"),
        (dict(grouping="mixed"), "grouping='mixed' is unknown"),
        (dict(form="fast"), "op_form='fast' is unknown"),
    ],
)
def test_refuses_what_does_not_fit(options, message):
    x, weights = _inputs(3, 3, 8, 2, 3, dtype=np.float32)
    with pytest.raises(ValueError, match=message):
        ska(x, weights, **options)


def test_refuses_kernels_that_do_not_divide_the_channels():
    x, weights = _inputs(3, 3, 8, 3, 3, dtype=np.float32)
    with pytest.raises(ValueError, match="M a divisor of the channels"):
        ska(x, weights)
