"""FTFU and MPFB against loops, their initial state, limits and reach."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import apply, init, init_with_output, randomised
from reference import liquid as reference
from sizes import slow_but

from lvb.models import fvnet_fluid

C = 10
SPANS = fvnet_fluid.TAU_SPANS


def block(**fields):
    return fvnet_fluid.MultiPhaseFluidBlock(**fields)


def state(*, dtype=jnp.float32, batch=2):
    """A normalised map and a carry."""
    x = jax.random.normal(jax.random.key(1), (batch, 5, 4, C), dtype)
    return x, jnp.tanh(jax.random.normal(jax.random.key(2), (batch, C), dtype))


def variables_of(model, x, carry, *, seed=7):
    return randomised(
        init(model, x, carry, train=False),
        seed=seed,
    )


def numpy_tree(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


@pytest.mark.parametrize(
    ("fusion", "spans"),
    [(name, SPANS) for name in fvnet_fluid.FUSIONS] + [("attention", ((0.02, 0.5),))],
)
def test_block_equals_loops(fusion, spans):
    with jax.enable_x64():
        model = block(
            fusion=fusion, tau_spans=spans, dtype=jnp.float64, param_dtype=jnp.float64
        )
        x, carry = state(dtype=jnp.float64)
        carry = carry[:1]
        variables = variables_of(model, x, carry)
        y, _ = apply(model, variables, x, carry, train=False)
        trees = numpy_tree(variables)
    expected = reference.fluid_block(
        trees["params"],
        trees["batch_stats"],
        np.asarray(x),
        spans=spans,
        carry=np.asarray(carry[0]),
        fusion=fusion,
    )
    assert y.dtype == jnp.float64
    # float64, sums of 20 pixels; the reference divides by an alpha of up to 1e-3.
    np.testing.assert_allclose(y, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("gate", fvnet_fluid.GATES)
def test_gate_maps(gate):
    """tau and carry of each form of G, written out with matrices."""
    model = fvnet_fluid.TimeConstantGate(C, SPANS, gate=gate)
    pooled, carry = state()[0].mean(axis=(1, 2)), state()[1]
    variables = randomised(init(model, pooled, carry))
    tau, leaving = apply(model, variables, pooled, carry)
    params = numpy_tree(variables["params"])
    g, u = np.asarray(pooled, np.float64), np.zeros((3, 2, C))
    for n in range(3):
        if gate == "low_rank":
            drive = g @ params["reduce"]["kernel"] @ params["expand"]["kernel"]
        elif gate == "channelwise":
            drive = g
        elif gate == "dense":
            drive = g @ params["linear"]["kernel"]
        else:
            drive = g @ params["linear"]["kernel"][:, n * C : (n + 1) * C]
        s = 1.0 if gate == "dense_per_phase" else params["s"][n]
        u[n] = s * drive + params["t"][n] + params["kappa"] * np.asarray(carry)
        low, high = SPANS[n]
        np.testing.assert_allclose(
            tau[n], low + (high - low) / (1 + np.exp(-u[n])), rtol=1e-5
        )
    np.testing.assert_allclose(leaving, np.tanh(u.mean(axis=0)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gate", fvnet_fluid.GATES)
@pytest.mark.parametrize("tau_map", ["sigmoid", "softplus"])
def test_tau_starts_at_the_centre_of_its_span(gate, tau_map):
    model = fvnet_fluid.TimeConstantGate(C, SPANS, gate=gate, tau_map=tau_map)
    pooled = state()[0].mean(axis=(1, 2))
    (tau, carry), variables = init_with_output(model, pooled, jnp.zeros((2, C)))
    assert tau.shape == (3, 2, C)
    assert carry.shape == (2, C)
    for tau_n, span in zip(tau, SPANS, strict=True):
        np.testing.assert_allclose(tau_n, sum(span) / 2, rtol=1e-5)
    np.testing.assert_allclose(variables["params"]["kappa"], 0.1)


def test_tau_stays_in_ordered_spans():
    model = fvnet_fluid.TimeConstantGate(C, SPANS)
    pooled, carry = 10 * state()[0].mean(axis=(1, 2)), state()[1]
    variables = init(model, pooled, carry)
    variables = jax.tree.map(lambda leaf: leaf + 0.3, variables)
    tau, _ = apply(model, variables, pooled, carry)
    for tau_n, (low, high) in zip(tau, SPANS, strict=True):
        assert np.all((tau_n > low) & (tau_n < high))
    assert np.all(tau[0] < tau[1])
    assert np.all(tau[1] < tau[2])
    assert np.ptp(tau) > 0.5


def test_log_tau_carry_is_zero_at_the_centre_and_grows_with_tau():
    model = fvnet_fluid.TimeConstantGate(C, SPANS, propagate="log_tau")
    pooled = jnp.zeros((2, C))
    variables = init(model, pooled, None)
    tau, carry = apply(model, variables, pooled, None)
    np.testing.assert_allclose(carry, 0.0, atol=1e-6)
    variables["params"]["t"] = variables["params"]["t"] + 1
    longer, carry = apply(model, variables, pooled, None)
    np.testing.assert_allclose(
        carry, np.log(longer / tau).mean(axis=0), rtol=1e-4, atol=1e-6
    )
    assert np.all(carry > 0.1)


def test_weights_start_uniform_and_sum_to_one():
    model = block()
    x, carry = state()
    started = init(model, x, carry, train=False)
    for variables, uniform in ((started, True), (randomised(started), False)):
        _, sown = apply(
            model, variables, x, carry, train=False, mutable=["intermediates"]
        )
        (weights,) = sown["intermediates"]["fusion"]["weights"]
        assert weights.shape == (2, 3, C)
        np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-6)
        assert np.allclose(weights, 1 / 3) == uniform


def test_equal_phases_need_no_fusion():
    phase = jax.random.normal(jax.random.key(3), (2, 5, 4, C))
    model = fvnet_fluid.PhaseFusion()
    pooled = jax.random.normal(jax.random.key(4), (2, C))
    variables = randomised(init(model, [phase] * 3, pooled))
    fused = apply(model, variables, [phase] * 3, pooled)
    np.testing.assert_allclose(fused, phase, rtol=1e-5, atol=1e-6)


def test_concat_starts_as_average():
    phases = list(jax.random.normal(jax.random.key(3), (3, 2, 5, 4, C)))
    fused, _ = init_with_output(fvnet_fluid.PhaseFusion("concat"), phases, None)
    average = fvnet_fluid.PhaseFusion("average").apply({}, phases, None)
    np.testing.assert_allclose(fused, average, rtol=1e-5, atol=1e-6)


def test_constants_without_pooling():
    """Table 6, w/o GAP: no map on the image, and still every phase of its own tau."""
    model = block(use_gap=False)
    x, carry = state()
    params = variables_of(model, x, carry)["params"]
    assert set(params["gate"]) == {"t", "kappa"}
    assert {name: leaf.shape for name, leaf in params["fusion"].items()} == {
        "logits": (3, C)
    }


def reach(model, *, train=False):
    """The pixels of the first image that a change of its pixel (2, 1) alters."""
    x, carry = state()
    variables = variables_of(model, x, carry)

    @jax.jit
    def mixed(x):
        (y, _), _ = apply(
            model, variables, x, carry, train=train, mutable=["batch_stats"]
        )
        return y

    moved = mixed(x.at[0, 2, 1].add(0.5)) - mixed(x)
    return np.abs(moved).max(axis=-1) > 0


def test_block_is_local_without_pooling():
    expected = np.zeros((2, 5, 4), bool)
    expected[0, 1:4, 0:3] = True
    np.testing.assert_array_equal(reach(block(use_gap=False)), expected)


def test_pooling_reaches_the_image_and_batch_statistics_the_batch():
    everywhere = np.ones((5, 4), bool)
    pooled = reach(block())
    np.testing.assert_array_equal(pooled[0], everywhere)
    np.testing.assert_array_equal(pooled[1], ~everywhere)
    in_training = reach(block(use_gap=False), train=True)
    np.testing.assert_array_equal(in_training[1], everywhere)


def test_carry_shifts_tau_through_kappa():
    model = block()
    x, carry = state()
    variables = variables_of(model, x, carry)

    def tau(variables, carry):
        _, sown = apply(
            model, variables, x, carry, train=False, mutable=["intermediates"]
        )
        return sown["intermediates"]["gate"]["tau"][0]

    assert np.all(tau(variables, carry) != tau(variables, -carry))
    params = flax.traverse_util.flatten_dict(variables["params"])
    params["gate", "kappa"] = jnp.zeros(C)
    deaf = {**variables, "params": flax.traverse_util.unflatten_dict(params)}
    np.testing.assert_array_equal(tau(deaf, carry), tau(deaf, -carry))


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_health_is_sown(activation):
    model = block(activation=activation)
    x, carry = state()
    variables = variables_of(model, x, carry)
    # Not two programs, which the compiler may round differently.
    (y, _), sown = model.apply(
        variables, x, carry, train=False, mutable=["intermediates"]
    )
    silent, _ = model.apply(variables, x, carry, train=False)
    np.testing.assert_array_equal(y, silent)
    (taus,) = sown["intermediates"]["gate"]["tau"]
    for n in range(3):
        phase = sown["intermediates"][f"phase{n}"]
        (gate,), (extremes,) = phase["gate"], phase["alpha_tau_range"]
        tau = np.asarray(taus[n])[:, None, None]
        alpha_tau = (tau + gate) * tau
        np.testing.assert_allclose(
            extremes, [alpha_tau.min(), alpha_tau.max()], rtol=1e-5
        )
        # beta is near 1 here; e^(beta^2 / 4) is the most a state can grow.
        assert extremes[0] > -1.01
        assert extremes[1] < 30
        assert np.ptp(gate) > 0.1


def test_bfloat16_block_keeps_its_dynamics_in_float32():
    model, half = block(), block(dtype=jnp.bfloat16)
    x, carry = state()
    variables = variables_of(model, x, carry)
    y, carry_out = apply(model, variables, x, carry, train=False)
    rough, rough_carry = apply(
        half, variables, x.astype(jnp.bfloat16), carry, train=False
    )
    assert rough.dtype == jnp.bfloat16
    assert rough_carry.dtype == jnp.float32
    # Rounding of input, neighbourhood and output: 2^-9 of values up to 3, each.
    np.testing.assert_allclose(rough.astype(jnp.float32), y, atol=0.04)
    np.testing.assert_allclose(rough_carry, carry_out, atol=2e-3)


@pytest.mark.parametrize(
    "fields",
    slow_but(
        2,
        [
            dict(shared_local=False),
            dict(pointwise=True),
            dict(tie_tau=False),
            dict(kernel_size=5),
            dict(tau_map="softplus"),
            dict(gate="dense_per_phase"),
            dict(use_gap=False, fusion="se"),
        ],
    ),
    ids=str,
)
def test_every_parameter_of_a_variation_learns(fields):
    model = block(**fields)
    x, carry = state()
    variables = variables_of(model, x, carry)
    target = jax.random.normal(jax.random.key(5), x.shape)

    def loss(params):
        (y, _), _ = model.apply(
            {**variables, "params": params},
            x,
            carry,
            train=True,
            mutable=["batch_stats"],
        )
        return jnp.sum(y * target)

    for path, leaf in jax.tree_util.tree_leaves_with_path(
        jax.jit(jax.grad(loss))(variables["params"])
    ):
        assert np.all(np.isfinite(leaf)), path
        assert np.any(leaf != 0), path


def test_untied_decay_starts_at_the_tied_step():
    x, carry = state()
    tied, _ = init_with_output(block(), x, carry, train=False)
    untied, _ = init_with_output(block(tie_tau=False), x, carry, train=False)
    # With carry, tau has left the span's centre a little; the decay rate has not.
    np.testing.assert_allclose(untied[0], tied[0], atol=0.05)
    assert np.any(untied[0] != tied[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(gate="wide"), "gate='wide' is unknown; use one of low_rank, channelwise"),
        (dict(fusion="sum"), "fusion='sum' is unknown; use one of attention, average"),
        (dict(propagate="all"), "propagate='all' is unknown; use one of logit"),
    ],
)
def test_unknown_choices_are_refused(fields, message):
    x, carry = state()
    with pytest.raises(ValueError, match=message):
        block(**fields).init(jax.random.key(0), x, carry, train=False)
