"""The roof over a program, and the needs that a compiler reports; no clock."""

import jax
import jax.numpy as jnp
import pytest

from lvb.analysis import cost, machine, roofline

LIMITS = roofline.Limits(flops=100e9, bandwidth=10e9)


def test_a_product_is_bound_by_its_operations():
    roof = roofline.roof(2.0, flops=100e9, bytes_accessed=1e9, limits=LIMITS)
    assert roof == (1.0, 0.5, "compute")


def test_a_sum_is_bound_by_its_bytes():
    roof = roofline.roof(0.5, flops=1e9, bytes_accessed=4e9, limits=LIMITS)
    assert roof.attainable_seconds == pytest.approx(0.4)
    assert roof.fraction == pytest.approx(0.8)
    assert roof.bound == "memory"


def test_limits_are_those_of_the_fastest_round():
    found = roofline.limits({"limit/matmul": [2.0, 1.0], "limit/stream": [0.5, 1.0]})
    assert found.flops == 2 * 2048**3
    assert found.bandwidth == 2 * 128 * 2**20 / 0.5


def test_cost_counts_a_product():
    x = jnp.ones((64, 32))
    found = cost.cost(jax.jit(lambda a, b: a @ b).lower(x, x.T).compile())
    assert found.flops == pytest.approx(2 * 64 * 32 * 64, rel=0.1)
    assert found.argument_bytes == 2 * 64 * 32 * 4
    assert found.output_bytes == 64 * 64 * 4
    assert found.peak_bytes >= found.argument_bytes + found.output_bytes


def test_donated_memory_counts_once():
    x = jnp.ones((64, 64))
    kept = cost.cost(jax.jit(lambda a: a + 1).lower(x).compile())
    given = cost.cost(jax.jit(lambda a: a + 1, donate_argnums=0).lower(x).compile())
    assert kept.peak_bytes - given.peak_bytes == x.nbytes


def test_the_machine_is_described():
    found = machine.describe()
    assert found["platform"] == "cpu"
    assert found["threads"] >= 1
    assert found["versions"]["jax"] == jax.__version__
    assert "xla_force_host_platform_device_count" in found["xla_flags"]
    assert "no-such-package" not in machine.versions(("no-such-package",))


def test_a_process_cannot_have_cores_that_are_not_there():
    with pytest.raises(ValueError, match="--threads=4096: this process has"):
        machine.pin(4096)
