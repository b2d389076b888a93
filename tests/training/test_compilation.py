"""Programs compiled ahead of time, and the cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lvb.training import compilation, sharding

SHAPE = jax.ShapeDtypeStruct((4,), jnp.float32)


@pytest.fixture
def whole():
    return sharding.replicated(sharding.make_mesh())


def compile_it(function, whole, donate=()):
    return compilation.compile_step(
        function, SHAPE, in_shardings=whole, out_shardings=whole, donate=donate
    )


def test_a_step_is_traced_once_however_often_it_is_called(whole):
    traces = []

    def double(x):
        traces.append(None)
        return 2 * x

    step = compile_it(double, whole)
    for _ in range(3):
        x = jax.device_put(jnp.ones(4), whole)
        np.testing.assert_array_equal(step.call(x), 2.0)
    assert len(traces) == 1
    assert step.seconds == step.trace_seconds + step.compile_seconds > 0


def test_other_shapes_are_refused(whole):
    step = compile_it(lambda x: 2 * x, whole)
    with pytest.raises(TypeError):
        step.call(jax.device_put(jnp.ones(5), whole))


def test_the_second_compilation_comes_from_the_cache(whole, tmp_path):
    keep = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    jax.experimental.compilation_cache.compilation_cache.reset_cache()
    try:
        first = compile_it(lambda x: jnp.sin(x) * 3.25, whole)
        second = compile_it(lambda x: jnp.sin(x) * 3.25, whole)
    finally:
        jax.config.update("jax_compilation_cache_dir", keep)
        jax.experimental.compilation_cache.compilation_cache.reset_cache()
    assert not first.cached
    assert second.cached


def test_what_runs_once_gives_the_same(whole):
    got = compilation.run_once(lambda x: x + 1, jnp.ones(4), out_shardings=whole)
    np.testing.assert_array_equal(got, 2.0)
    assert got.sharding == whole


@pytest.fixture
def settings():
    """Puts the cache's settings back."""
    names = ("jax_enable_compilation_cache", "jax_compilation_cache_dir")
    kept = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in kept.items():
        jax.config.update(name, value)


def test_a_folder_is_taken(settings, tmp_path):
    folder = tmp_path / "cache"
    assert compilation.enable_cache(str(folder)) == folder
    assert folder.is_dir()
    assert jax.config.jax_compilation_cache_dir == str(folder)


def test_the_default_is_the_users(settings, tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compilation.enable_cache("default") == tmp_path / "lvb" / "xla"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
    assert compilation.enable_cache("default") == tmp_path / "mine"


def test_it_can_be_switched_off(settings):
    assert compilation.enable_cache("") is None
    assert not jax.config.jax_enable_compilation_cache


def test_a_folder_that_cannot_be_made_costs_no_run(settings, tmp_path):
    (tmp_path / "file").write_text("")
    assert compilation.enable_cache(str(tmp_path / "file" / "below")) is None
