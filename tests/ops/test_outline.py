"""Outlined functions are called, not inlined, in programs for one CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lvb.ops import outline


def power(x, exponent):
    return x**exponent


outlined_power = outline.outlined(power, static_argnums=(1,))


def test_outlined_function_has_the_same_value():
    x = np.arange(6.0, dtype=np.float32)
    np.testing.assert_array_equal(outlined_power(x, 3), power(x, 3))
    np.testing.assert_array_equal(jax.jit(outlined_power, static_argnums=1)(x, 2), x**2)
    assert outlined_power.__name__ == "power"


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_only_programs_for_cpus_keep_the_call(monkeypatch, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    text = jax.jit(lambda x: outlined_power(x, 3)).lower(jnp.ones(3)).as_text()
    assert ('inlineable = "false"' in text) == (backend == "cpu")


def test_what_a_call_returns_is_computed_once():
    """The sine is in one place, although two reductions that need it follow."""

    def deviation(x, function):
        y = function(x)
        return jnp.mean(jnp.square(y - jnp.mean(y, axis=-1, keepdims=True)))

    def called(x):
        return deviation(x, outline.outlined(jnp.sin))

    text = jax.jit(called).lower(jnp.ones((64, 64))).compile().as_text()
    assert text.count(" call(") == 1
    assert text.count(" sine(") == 1
