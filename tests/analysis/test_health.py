"""Numbers of the inner dynamics: from known tensors, and from the real networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lvb
from lvb.analysis import health

SMALL = {
    "fvnet_n": dict(dims=(8, 16, 16, 32), depths=(0, 1, 1, 1)),
    # Chunks of 4: the 2 x 2 maps of small pictures would else be one chunk, unwritten.
    "convneur_m1": dict(
        dims=(8, 16, 16, 16), depths=(0, 0, 2, 0), memory_width=8, chunk_size=4
    ),
}


def sow(**values):
    return {name: (jnp.asarray(value),) for name, value in values.items()}


def memory(*, before=2.0, after=1.0, **changes):
    shape = (3, 4)  # (B, U)
    numbers = dict(
        loss_before=before,
        loss_after=after,
        step=0.5,
        momentum=0.5,
        decay=0.05,
        weight_norm=3.0,
        gradient_norm=1.0,
        update_norm=0.2,
    )
    return sow(**{k: jnp.full(shape, v) for k, v in {**numbers, **changes}.items()})


def fluid(*, gate=None, low=0.1, high=2.0):
    gate = jnp.linspace(-1, 1, 200).reshape(2, 10, 10, 1) if gate is None else gate
    return sow(gate=gate, alpha_tau_range=jnp.array([low, high]))


def measured(intermediates):
    return jax.device_get(jax.jit(health.measure)(intermediates))


def test_time_constants_are_those_of_all_phases():
    tau = jnp.array([[[0.1, 0.2]], [[0.5, 1.2]]])  # (N, B, C)
    layers = measured({"stage1": {"gate": sow(tau=tau)}})
    (numbers,) = layers.values()
    assert list(layers) == ["stage1/gate"]
    np.testing.assert_allclose(
        [numbers[f"tau_{name}"] for name in ("min", "mean", "max")], [0.1, 0.5, 1.2]
    )
    assert health.warnings(layers) == []


def test_a_gate_at_its_limit_is_saturated_whatever_the_limit():
    gate = jnp.concatenate(
        [jnp.full((2, 5, 5, 1), 1.7), jnp.linspace(-1, 1, 50).reshape(2, 5, 5, 1)], -1
    )
    numbers = measured({"unit": fluid(gate=gate)})["unit"]
    # One channel is constant; of the other, 2 of 50 lie within 5 % of 1.
    np.testing.assert_allclose(numbers["gate_saturation"], (50 + 4) / 100)


def test_a_sigmoid_gate_is_saturated_near_zero_and_one():
    gate = jnp.array([0.01, 0.5, 0.6, 0.99]).reshape(1, 2, 2, 1)
    numbers = measured({"block": sow(gate=gate)})["block"]
    np.testing.assert_allclose(numbers["gate_saturation"], 0.5)


def test_the_summary_takes_the_worst_layer_or_the_mean():
    layers = measured(
        {
            "a": memory(),
            "b": memory(before=1.0, after=0.9, weight_norm=5.0, decay=0.15),
        }
    )
    summary = health.summary(layers)
    np.testing.assert_allclose(summary["inner_loss_ratio"], 0.9, rtol=1e-6)
    np.testing.assert_allclose(summary["memory_norm"], 5.0)
    np.testing.assert_allclose(summary["decay"], 0.1, rtol=1e-6)
    np.testing.assert_allclose(summary["inner_loss_before"], 1.5)
    assert health.warnings(layers) == []


@pytest.mark.parametrize(
    ("sown", "sentence"),
    [
        (
            memory(after=3.0),
            "health: inner_loss_ratio = 1.5 (> 1.05) in x: writing makes the memory "
            "worse.",
        ),
        (memory(weight_norm=2e3), "memory_norm = 2e+03 (> 1000) in x: the memory's"),
        (memory(update_norm=200.0), "update_norm = 200 (> 100) in x"),
        (memory(momentum=0.999), "momentum = 0.999 (> 0.995) in x"),
        (memory(decay=0.95), "decay = 0.95 (> 0.9) in x: the memory forgets"),
        (memory(step=1e-6), "inner_step = 1e-06 (< 0.0001) in x"),
        (fluid(low=-0.99), "alpha_tau_min = -0.99 (< -0.9) in x: states grow"),
        (fluid(high=50.0), "alpha_tau_max = 50 (> 20) in x: one step forgets"),
        (fluid(gate=jnp.ones((1, 2, 2, 3))), "gate_saturation = 1 (> 0.9) in x"),
        (sow(tau=jnp.full((1, 1, 2), 1e-5)), "tau_min = 1e-05 (< 0.001) in x: time"),
        (sow(tau=jnp.full((1, 1, 2), jnp.nan)), "tau_min = nan (not a number) in x"),
    ],
)
def test_each_number_has_its_warning(sown, sentence):
    (first, *_) = health.warnings(measured({"x": sown}))
    assert sentence in first


def test_a_warning_names_the_worst_layer():
    layers = measured({"a": memory(after=3.0), "b": memory(after=5.0)})
    (warning,) = health.warnings(layers)
    assert "= 2.5 " in warning
    assert " in b:" in warning


def test_nothing_written_is_nothing_wrong():
    layers = measured({"x": memory(before=0.0, after=0.0)})
    assert health.summary(layers)["inner_loss_ratio"] == 1.0


@pytest.fixture(scope="module", params=sorted(SMALL))
def layers(request):
    """Numbers of an untrained network, and its name."""
    model = lvb.create_model(request.param, num_classes=3, **SMALL[request.param])
    images = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))

    @jax.jit
    def run(images):
        variables = model.init(jax.random.key(1), images, train=False)
        variables.pop("intermediates", None)
        _, updates = model.apply(
            variables, images, train=False, mutable=["intermediates"]
        )
        return health.measure(updates["intermediates"])

    return request.param, jax.device_get(run(images))


def test_real_networks_are_measured_and_healthy_at_birth(layers):
    name, found = layers
    summary = health.summary(found)
    expected = {
        "fvnet_n": {"tau_min", "alpha_tau_min", "alpha_tau_max", "gate_saturation"},
        "convneur_m1": {
            *("inner_loss_before", "inner_loss_after", "inner_loss_ratio"),
            *("inner_step", "momentum", "decay", "memory_norm", "update_norm"),
        },
    }
    assert expected[name] <= summary.keys()
    assert all(np.isfinite(value) for value in summary.values())
    assert health.warnings(found) == []
    assert all(
        path.startswith("backbone/stage") for path in found if "stem" not in path
    )


def test_families_that_are_measured_are_families():
    families = {name.split("_")[0] for name in lvb.list_models()}
    assert set(health.FAMILIES) <= families


def test_networks_without_dynamics_have_no_numbers():
    gates = {"ls_conv": sow(aggregation_weights=jnp.ones((1, 2)))}
    assert health.measure(gates) == {}
