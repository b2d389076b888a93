"""The closed-form liquid step against integration, limits and exact digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from reference import liquid as reference

from lvb.ops import liquid

# Both sides of the switch to the series, zero, tiny, and the far tails.
EDGES = (0.0, 0.4999999, 0.5, 0.5000001, 1.0)
Z = np.concatenate(
    [
        EDGES,
        np.negative(EDGES[1:]),
        np.logspace(-12, 1.7, 40),
        -np.logspace(-12, 1.7, 9),
        (1e3, 1e4),
    ]
)
TAUS = (0.02, 0.3, 1.0, 2.0, 4.0)


def grid():
    """x, gate, tau, A of every combination; gate includes -tau, where alpha = 0."""
    rows = [
        (x, gate, tau, amplitude)
        for x in (-1.0, 0.7)
        for tau in TAUS
        for gate in (-2.0, -1.0, 0.0, 0.5, 2.0, -tau, -tau + 1e-6)
        for amplitude in (-1.5, 1.0)
    ]
    return np.array(rows).T.reshape(4, -1, 1, 1, 1)  # (4, B, 1, 1, 1)


# One program a shape, not one an operation.
@jax.jit
def step(x, gate, tau, amplitude):
    return liquid.liquid_step(x, gate, tau=tau, amplitude=amplitude)


@jax.jit
def untied(x, gate, tau, amplitude, decay):
    return liquid.liquid_step(x, gate, tau=tau, amplitude=amplitude, decay=decay)


@pytest.mark.parametrize(
    ("dtype", "value_error", "slope_error"),
    # Rounding of the result and of a few operations; the quotient's derivative loses
    # a factor of 4 just above the switch.
    [("float64", 1e-15, 2e-15), ("float32", 2e-7, 1e-6)],
)
def test_phi_and_its_slope_in_all_digits(dtype, value_error, slope_error):
    z = Z.astype(dtype)
    expected = np.array([reference.phi_exact(value) for value in z])
    with jax.enable_x64(dtype == "float64"):
        values, slopes = jax.jit(jax.vmap(jax.value_and_grad(liquid.phi)))(z)
        curvature = jax.jit(jax.vmap(jax.grad(jax.grad(liquid.phi))))(z)
    assert values.dtype == dtype
    np.testing.assert_allclose(values, expected[:, 0], rtol=value_error)
    np.testing.assert_allclose(slopes, expected[:, 1], rtol=slope_error)
    assert np.all(np.isfinite(curvature))


def test_phi_of_bfloat16_is_computed_in_float32():
    z = jnp.array([1e-3, 3e-3, 0.1], jnp.bfloat16)
    values = liquid.phi(z)
    assert values.dtype == jnp.float32
    expected = [reference.phi_exact(value)[0] for value in np.asarray(z, np.float64)]
    np.testing.assert_allclose(values, expected, rtol=2e-7)


# Relative to the largest of |X|, |A|, |Y|: the solution crosses zero and decays to
# e^-24, where neither side has relative digits. 2,000 steps of RK4 leave 1e-14.
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)]
)
def test_step_is_the_solution_of_the_equation(dtype, tolerance):
    x, gate, tau, amplitude = grid()
    expected = reference.integrate(
        x, gate, alpha=tau + gate, amplitude=amplitude, duration=tau, num_steps=2000
    )
    with jax.enable_x64(dtype == "float64"):
        y = np.asarray(
            step(*(jnp.asarray(a, dtype) for a in (x, gate, tau, amplitude)))
        )
    scale = np.maximum(np.maximum(np.abs(x), np.abs(amplitude)), np.abs(expected))
    assert y.dtype == dtype
    assert np.max(np.abs(y - expected) / scale) < tolerance


@pytest.mark.parametrize("alpha", [10.0, -10.0])
def test_step_far_out(alpha):
    # |alpha tau| = 50. RK4 of step h is off by (alpha h)^4 / 120 * 50 = 4e-13.
    x, tau, amplitude = (np.full((1, 1, 1, 1), a) for a in (0.7, 5.0, 1.5))
    gate = alpha - tau
    expected = reference.integrate(
        x, gate, alpha=alpha, amplitude=amplitude, duration=tau, num_steps=50_000
    )
    with jax.enable_x64():
        y = step(*map(jnp.asarray, (x, gate, tau, amplitude)))
    np.testing.assert_allclose(y, expected, rtol=2e-12)


def test_untied_decay_is_equation_3():
    x, gate, tau, amplitude = grid()
    decay = 0.9 + 0.3 * np.sin(np.arange(x.size)).reshape(x.shape)
    # alpha tau reaches -14: RK4 needs 12,000 steps to be off by 2e-13 there.
    expected = reference.integrate(
        x, gate, alpha=decay + gate, amplitude=amplitude, duration=tau, num_steps=12000
    )
    with jax.enable_x64():
        y = untied(x, gate, tau, amplitude, decay)
    y = np.asarray(y)
    scale = np.maximum(np.maximum(np.abs(x), np.abs(amplitude)), np.abs(expected))
    assert np.max(np.abs(y - expected) / scale) < 1e-12


def test_two_half_steps_are_one_step():
    # tau is decay and duration at once: half the duration at the same alpha and f A is
    # tau' = tau / 2, f' = f + tau / 2, A' = A f / f'.
    x, gate, tau, amplitude = grid()
    half_gate = gate + tau / 2
    used = np.abs(half_gate) > 1e-3
    half_amplitude = amplitude * gate / np.where(used, half_gate, 1.0)
    with jax.enable_x64():
        whole = step(x, gate, tau, amplitude)
        half = step(x, half_gate, tau / 2, half_amplitude)
        twice = step(half, half_gate, tau / 2, half_amplitude)
    whole, twice = np.asarray(whole), np.asarray(twice)
    scale = np.maximum(np.abs(x), np.abs(whole))
    assert used.sum() > 100
    assert np.max(np.where(used, np.abs(twice - whole) / scale, 0)) < 1e-12


def test_limits():
    x, gate, _, amplitude = grid()
    with jax.enable_x64():
        still = step(x, gate, np.full_like(x, 1e-9), amplitude)
        settled = step(x, np.abs(gate), np.full_like(x, 40.0), amplitude)
    np.testing.assert_allclose(still, x, atol=1e-8)
    # alpha tau > 1600: nothing of x is left.
    expected = np.abs(gate) * amplitude / (40 + np.abs(gate))
    np.testing.assert_allclose(settled, expected, rtol=1e-12, atol=1e-15)


def test_step_is_bounded():
    x, gate, tau, amplitude = grid()
    with jax.enable_x64():
        y = np.asarray(step(x, gate, tau, amplitude))
        phi = np.asarray(liquid.phi(jnp.asarray(tau * (tau + gate))))
    growth = np.maximum(1, np.exp(gate**2 / 4))
    bound = growth * np.abs(x) + tau * phi * np.abs(gate * amplitude)
    assert np.all(np.abs(y) <= bound * (1 + 1e-12))
    assert np.min(tau * (tau + gate)) < -0.9  # The grid has growing states.


def test_retention_falls_with_tau():
    tau = jnp.linspace(0.02, 3.0, 50)
    for gate in (0.0, 0.5, 2.0):
        retention = step(jnp.ones(50), jnp.full(50, gate), tau, jnp.zeros(50))
        assert np.all(np.diff(retention) < 0)


def test_gradients_equal_finite_differences():
    x, gate, tau, amplitude = grid()
    decay = 0.5 + tau
    with jax.enable_x64():
        args = [jnp.asarray(a) for a in (x, gate, tau, amplitude)]
        check_grads(step, args, order=2, modes=("fwd", "rev"), eps=1e-5, rtol=1e-4)
        check_grads(untied, (*args, jnp.asarray(decay)), order=1, rtol=1e-5)


@pytest.mark.parametrize("gate", [5.0, -15.0])
def test_gradients_far_out(gate):
    # |alpha tau| = 50; of e^50, in units of itself.
    args = [np.full((1, 1, 1, 1), a) for a in (0.7, gate, 5.0, 1.5)]
    with jax.enable_x64():
        size = float(jnp.abs(step(*map(jnp.asarray, args))).max())
        check_grads(
            jax.jit(lambda *args: step(*args) / size),
            args,
            order=1,
            eps=1e-6,
            rtol=1e-5,
        )


def test_float32_slope_in_tau_and_awkward_points():
    x, gate, tau, amplitude = grid()
    # At zero state, zero gate, alpha = 0 and |X| = 1e4.
    corners = np.array(
        [(0.0, 0.0, 0.3, 1.0), (1e4, -0.3, 0.3, 1.0), (-1e4, 2.0, 2.5, -1.0)]
    ).T.reshape(4, -1, 1, 1, 1)
    args = [
        np.concatenate([a, b])
        for a, b in zip((x, gate, tau, amplitude), corners, strict=True)
    ]

    def total(*args):
        return jnp.sum(step(*args))

    argnums = (0, 1, 2, 3)
    singles = [jnp.asarray(a, jnp.float32) for a in args]
    found = jax.jit(jax.grad(total, argnums))(*singles)
    assert all(np.all(np.isfinite(gradient)) for gradient in found)
    with jax.enable_x64():
        doubles = [jnp.asarray(np.asarray(a, np.float64)) for a in singles]
        h = 1e-6
        forward = step(doubles[0], doubles[1], doubles[2] + h, doubles[3])
        backward = step(doubles[0], doubles[1], doubles[2] - h, doubles[3])
    expected = np.asarray(forward - backward) / (2 * h)
    scale = np.maximum(np.abs(expected), np.maximum(np.abs(args[0]), np.abs(args[3])))
    assert np.max(np.abs(found[2] - expected) / scale) < 1e-4


def test_bfloat16_states_are_stepped_in_float32():
    x, gate, tau, amplitude = grid()
    rounded = [jnp.asarray(a, jnp.bfloat16) for a in (x, gate, tau, amplitude)]
    y = step(*rounded)
    exact = step(*(a.astype(jnp.float32) for a in rounded))
    assert y.dtype == jnp.float32
    # alpha = tau + f of two bfloat16 numbers is rounded once to bfloat16: 2^-9.
    np.testing.assert_allclose(y, exact, atol=0.02)


@pytest.mark.parametrize(
    ("name", "act"),
    [
        ("tanh", np.tanh),
        ("sigmoid", lambda a: 1 / (1 + np.exp(-a))),
        ("relu", lambda a: np.clip(a, 0, 2)),
        ("linear", lambda a: np.clip(a, -2, 2)),
    ],
)
def test_gate_of_each_activation(name, act):
    rng = np.random.default_rng(0)
    neighbourhood = 2 * rng.normal(size=(2, 3, 4, 5))
    beta, gamma, delta = rng.normal(size=(3, 1, 1, 1, 5))
    with jax.enable_x64():

        @jax.jit
        def gate(neighbourhood, beta, gamma, delta):
            return liquid.temporal_gate(
                neighbourhood, beta=beta, gamma=gamma, delta=delta, activation=name
            )

        args = [jnp.asarray(a) for a in (neighbourhood, beta, gamma, delta)]
        np.testing.assert_allclose(
            gate(*args), beta * act(gamma * neighbourhood + delta), rtol=1e-13
        )
        check_grads(gate, args, order=1, rtol=1e-5)


def test_soft_limit():
    with jax.enable_x64():
        x = jnp.linspace(-30.0, 30.0, 61)
        y = liquid.soft_limit(x, 2.0)
        check_grads(jax.jit(lambda x: liquid.soft_limit(x, 2.0)), (x,), order=1)
        start = liquid.soft_limit(jnp.array(liquid.inverse_soft_limit(1.0, 2.0)), 2.0)
        expected = 2 * np.tanh(np.asarray(x) / 2)
    assert np.all(np.abs(y) <= 2.0)
    np.testing.assert_allclose(y, expected, rtol=1e-14)
    np.testing.assert_allclose(start, 1.0, rtol=1e-14)


def test_time_constants_stay_in_their_span():
    span = (0.25, 0.75)
    with jax.enable_x64():
        u = jnp.linspace(-20.0, 20.0, 101)
        tau = np.asarray(liquid.time_constant(u, span=span))
        check_grads(
            jax.jit(lambda u: liquid.time_constant(u, span=span)), (u,), order=1
        )
    assert np.all((tau > 0.25) & (tau < 0.75))
    assert np.all(np.diff(tau) > 0)


@pytest.mark.parametrize("tau_map", liquid.TAU_MAPS)
def test_time_constant_at_the_centre_logit(tau_map):
    for span in ((0.02, 0.25), (0.75, 1.5)):
        logit = jnp.array(liquid.centre_logit(span, tau_map=tau_map))
        tau = liquid.time_constant(logit, span=span, tau_map=tau_map)
        np.testing.assert_allclose(tau, sum(span) / 2, rtol=1e-6)


def test_softplus_time_constants():
    u = jnp.array([-100.0, 0.0, 1.0, 100.0])
    tau = liquid.time_constant(u, span=(0.1, 0.2), tau_map="softplus")
    expected = [0.01, np.log(2) + 0.01, np.log1p(np.e) + 0.01, 4.0]
    np.testing.assert_allclose(tau, expected, rtol=1e-6)


def test_unknown_names_are_refused():
    vector = jnp.ones((1, 1, 1, 2))
    with pytest.raises(ValueError, match=r"'swish' is unknown; use one of tanh, sigm"):
        liquid.temporal_gate(
            vector, beta=vector, gamma=vector, delta=vector, activation="swish"
        )
    with pytest.raises(ValueError, match=r"'exp' is unknown; use one of sigmoid, soft"):
        liquid.time_constant(vector, span=(0.1, 0.2), tau_map="exp")
