"""Every form of a convolution is the sum it stands for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.test_util import check_grads
from reference import convolution as reference
from sizes import slow_but

from lvb.ops import convolution, depthwise, forms

# (map, channels, features, kernel, strides, padding, groups)
CASES = {
    "dense 3x3 s2": ((5, 6), 5, 6, (3, 3), 2, (1, 1), 1),
    "dense 3x3 s2, even map": ((6, 4), 5, 6, (3, 3), 2, (1, 1), 1),
    "dense 5x4 s3, one pixel": ((1, 2), 5, 2, (5, 4), 3, (2, 2), 1),
    "3 channels 3x3 s2": ((5, 6), 3, 6, (3, 3), 2, (1, 1), 1),
    "1 channel 4x2 s4": ((8, 9), 1, 3, (4, 2), 4, (0, 1), 1),
    "dense 1x1": ((3, 4), 4, 6, (1, 1), 1, (0, 0), 1),
    "dense 1x1, narrowing": ((3, 4), 6, 4, (1, 1), 1, (0, 0), 1),
    "depthwise 3x3": ((5, 4), 4, 4, (3, 3), 1, (1, 1), 4),
    "depthwise 3x3 s2, even map": ((6, 8), 4, 4, (3, 3), 2, (1, 1), 4),
    "depthwise 3x3 s2, odd map": ((7, 5), 4, 4, (3, 3), 2, (1, 1), 4),
    "depthwise 7x7 on 4x4": ((4, 4), 2, 2, (7, 7), 1, (3, 3), 2),
    "depthwise 3x3, large": ((14, 15), 2, 2, (3, 3), 1, (1, 1), 2),
    "depthwise 3x3 s2, large": ((29, 28), 2, 2, (3, 3), 2, (1, 1), 2),
    "depthwise 7x7, large": ((16, 13), 2, 2, (7, 7), 1, (3, 3), 2),
    "depthwise 5x5, 17 rows": ((17, 14), 2, 2, (5, 5), 1, (2, 2), 2),
    "depthwise 3x1 s2": ((6, 6), 2, 2, (3, 1), 2, (1, 0), 2),
    "depthwise on one pixel": ((1, 1), 2, 2, (3, 3), 1, (1, 1), 2),
    "grouped 1x1": ((3, 2), 8, 4, (1, 1), 1, (0, 0), 2),
    "grouped 3x3": ((4, 4), 8, 4, (3, 3), 1, (1, 1), 4),
}


def draw(case):
    size, channels, features, kernel, strides, padding, groups = CASES[case]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *size, channels))
    weights = rng.normal(size=(*kernel, channels // groups, features))
    return x, weights, dict(strides=strides, padding=padding, groups=groups)


# One program a case, not one an operation.
convolve = jax.jit(
    convolution.conv2d, static_argnames=("strides", "padding", "groups", "form")
)


def slopes_of(function):
    """The gradients of a curved function of the result in both arguments, compiled."""
    return jax.jit(
        jax.grad(lambda x, w: jnp.sum(jnp.sin(function(x, w))), argnums=(0, 1))
    )


@pytest.mark.parametrize("form", ["reference", "shift"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_loops(case, form):
    x, weights, options = draw(case)
    with jax.enable_x64(True):
        y = convolve(x, weights, **options, form=form)
        # Sums of at most 147 products in float64.
        np.testing.assert_allclose(
            y, reference.conv2d(x, weights, **options), rtol=0, atol=1e-12
        )


# Unrolled taps compile slowly.
SMALL = [case for case in CASES if "large" not in case and "7x7" not in case]


@pytest.mark.parametrize(
    "case", slow_but(SMALL, [case for case in CASES if not case.startswith("dense")])
)
def test_forms_have_equal_gradients(case):
    x, weights, options = draw(case)
    with jax.enable_x64(True):
        args = jnp.asarray(x), jnp.asarray(weights)

        shift, stock = (
            functools.partial(convolve, **options, form=form)
            for form in ("shift", "reference")
        )
        # Central differences of step 1e-4; the third derivative is of order 100.
        check_grads(
            jax.jit(lambda x, w: jnp.sum(jnp.sin(shift(x, w)))),
            args,
            order=1,
            modes=["rev"],
            atol=1e-5,
            rtol=1e-5,
        )
        for ours, theirs in zip(
            slopes_of(shift)(*args), slopes_of(stock)(*args), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("case", "gradient"),
    slow_but(
        5,
        [
            ("depthwise 3x3", "rows"),
            ("depthwise 3x3", "turned"),
            ("depthwise 5x5, 17 rows", "rows"),
            ("depthwise 5x5, 17 rows", "turned"),
            ("depthwise 3x3 s2, large", "rows"),
            ("depthwise 7x7, large", "turned"),
        ],
    ),
)
def test_every_gradient_of_the_depthwise_form_is_equal(case, gradient):
    x, weights, options = draw(case)
    del options["groups"]
    with jax.enable_x64(True):
        args = jnp.asarray(x), jnp.asarray(weights)

        given, plain = (
            slopes_of(
                functools.partial(depthwise.depthwise_shift, gradient=name, **options)
            )
            for name in (gradient, "autodiff")
        )
        for ours, theirs in zip(given(*args), plain(*args), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("shape", "kernel", "strides", "expected"),
    [
        ((512, 3, 5), 3, 1, "autodiff"),  # Small maps.
        ((5, 7, 7), 3, 1, "autodiff"),  # Few of them.
        ((6, 7, 7), 3, 1, "turned"),
        ((16, 4, 4), 7, 1, "turned"),
        ((11, 14, 14), 5, 2, "rows"),
    ],
)
def test_gradient_follows_map_and_kernel(shape, kernel, strides, expected):
    padding = (kernel // 2,) * 2
    found = depthwise.choose_gradient(
        (*shape, 8), (kernel, kernel, 1, 8), strides=strides, padding=padding
    )
    assert found == expected


def test_a_batch_may_be_symbolic():
    """As in exported programs; the map is one whose gradient depends on the batch."""
    kernel = np.ones((3, 3, 1, 2), np.float32)
    shape = (*export.symbolic_shape("batch"), 14, 14, 2)
    program = export.export(
        jax.jit(lambda x: depthwise.depthwise_shift(x, kernel, padding=(1, 1)))
    )(jax.ShapeDtypeStruct(shape, np.float32))
    y = program.call(np.ones((3, 14, 14, 2), np.float32))
    assert y.shape == (3, 14, 14, 2)
    assert y[2, 0, 0, 1] == 4  # Taps inside the map, at its corner.
    assert y[2, 7, 7, 0] == 9


def test_few_channels_are_shifted_only_where_it_pays():
    def products(features, form):
        shapes = ((1, 8, 8, 3), (3, 3, 3, features))
        arrays = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
        conv = functools.partial(convolution.conv2d, form=form)
        return str(jax.make_jaxpr(conv)(*arrays)).count("conv_general_dilated")

    assert products(40, "shift") == 0
    assert products(41, "shift") == products(40, "reference") == 1


def test_strides_leave_no_convolution_of_two_axes():
    def program(strides, form):
        shapes = ((1, 8, 8, 5), (3, 3, 5, 6))
        arrays = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
        conv = functools.partial(convolution.conv2d, strides=strides, form=form)
        return str(jax.make_jaxpr(conv)(*arrays))

    assert "window_strides=(2,)" in program(2, "shift")
    assert "window_strides=(2, 2)" in program(2, "reference")
    assert "window_strides=(1, 1)" in program(1, "shift")


def test_strided_gradients_of_bf16_are_rounded_once():
    x, weights, options = draw("dense 3x3 s2")
    args = jnp.asarray(x, jnp.bfloat16), jnp.asarray(weights, jnp.bfloat16)
    shift = functools.partial(convolve, **options, form="shift")
    narrow = jax.jit(jax.vjp(shift, *args)[1])
    exact = jax.jit(jax.vjp(shift, *(a.astype(jnp.float32) for a in args))[1])
    dy = jnp.ones((2, 3, 3, 6))
    for ours, wanted in zip(narrow(dy.astype(jnp.bfloat16)), exact(dy), strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_array_equal(ours, wanted.astype(jnp.bfloat16))


def test_turned_gradient_has_no_form_for_strides():
    x, weights, options = draw("depthwise 3x3 s2, even map")
    del options["groups"]
    with pytest.raises(ValueError, match="no form for strides=2; use one of autodiff"):
        depthwise.depthwise_shift(x, weights, gradient="turned", **options)


def test_cpu_shifts_and_other_backends_do_not(monkeypatch):
    assert forms.resolve("auto") == "shift"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert forms.resolve("auto") == "reference"
    assert forms.resolve("shift") == "shift"


def test_unknown_form_is_named():
    with pytest.raises(ValueError, match="op_form='fast' is unknown"):
        forms.resolve("fast")
