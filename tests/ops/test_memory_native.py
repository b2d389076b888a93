"""The native memory: equal to the scan in value and gradient, and to itself."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lvb.layers import memory_branch
from lvb.ops import forms, memory_native, memory_scan, native
from lvb.ops.neural_memory import ChunkWrites, MemoryWeights, UpdateRule


@pytest.fixture(scope="module", autouse=True)
def _compiler():
    if not memory_native.is_available():
        pytest.skip("this machine has no C++ compiler, or LVB_NATIVE=0 is set")


def problem(*, batch=1, chunks=4, length=9, width=16, seed=0):
    """Queries, writes and M_0, float32; steps of two thirds a token."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.standard_normal(shape, np.float32)

    written = (batch, chunks - 1)
    writes = ChunkWrites(
        keys=draw(*written, length, width),
        values=draw(*written, length, width),
        token_weights=rng.uniform(0, 4 / 3 / length, (*written, length)),
        momentum=rng.uniform(0.2, 0.8, written),
        decay=rng.uniform(0.02, 0.3, written),
    )
    initial = MemoryWeights(
        draw(width, 4 * width) * width**-0.5,
        draw(width, 4 * width) * (4 * width) ** -0.5,
        0.3 * draw(width),
    )
    arrays = (draw(batch, chunks, length, width), writes, initial)
    return jax.tree.map(np.float32, arrays)


def by_scan(queries, writes, initial, rule, bptt_chunks):
    return memory_scan.scan_memory(
        queries, writes, initial=initial, rule=rule, bptt_chunks=bptt_chunks
    )[0]


def value_and_slopes(walk, arrays, rule, bptt_chunks):
    def total(arrays):
        y = walk(*arrays, rule, bptt_chunks)
        return jnp.sum(jnp.sin(y)), y

    (_, y), slopes = jax.jit(jax.value_and_grad(total, has_aux=True))(arrays)
    return jax.tree.map(np.asarray, (y, slopes))


@pytest.mark.parametrize(
    ("shape", "clip", "bptt_chunks"),
    [
        # Less than a tile of rows, and of a vector's; rest of both; several images.
        (dict(chunks=2, length=1), 1.0, None),
        (dict(chunks=4, length=5, batch=2), 0.0, 2),
        (dict(chunks=5, length=49, width=32, batch=3), 0.1, 3),
        # Depth of a product beyond a block; ConvNeur-M1's width.
        (dict(chunks=3, length=26, width=272), 1.0, None),
        (dict(chunks=4, length=196, width=80), 1.0, 2),
    ],
)
def test_equals_autodiff_through_the_scan(shape, clip, bptt_chunks):
    arrays = problem(**shape)
    rule = UpdateRule(clip=clip)
    y, slopes = value_and_slopes(memory_native.walk, arrays, rule, bptt_chunks)
    with jax.enable_x64():
        exact = jax.tree.map(np.float64, arrays)
        expected, exact_slopes = value_and_slopes(by_scan, exact, rule, bptt_chunks)
    # float32 through a few updates: XLA's own program differs by as much, 1e-6 of the
    # largest answer and 4e-6 of the largest slope.
    scale = np.abs(expected).max()
    np.testing.assert_allclose(y, expected, rtol=0, atol=5e-6 * scale)
    pairs = zip(jax.tree.leaves(slopes), jax.tree.leaves(exact_slopes), strict=True)
    for got, wanted in pairs:
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * scale + 1e-9)


def test_every_array_gets_a_slope():
    slopes = value_and_slopes(memory_native.walk, problem(), UpdateRule(), None)[1]
    for leaf in jax.tree.leaves(slopes):
        assert np.abs(leaf).max() > 1e-6


@pytest.mark.parametrize("length", [9, 100])
def test_bits_depend_on_neither_threads_nor_other_images(length):
    """Eight images have a thread each; one is shared out among all threads."""
    rule = UpdateRule()
    queries, writes, initial = problem(batch=8, length=length)
    many = value_and_slopes(memory_native.walk, (queries, writes, initial), rule, None)
    y, (queries_bar, writes_bar, _) = many
    for b in (0, 5):
        image = jax.tree.map(lambda x, b=b: x[b : b + 1], (queries, writes))
        one = value_and_slopes(memory_native.walk, (*image, initial), rule, None)
        again = value_and_slopes(memory_native.walk, (*image, initial), rule, None)
        jax.tree.map(np.testing.assert_array_equal, one, again)
        np.testing.assert_array_equal(one[0][0], y[b])
        for alone, among in zip(
            jax.tree.leaves(one[1][:2]),
            jax.tree.leaves((queries_bar, writes_bar)),
            strict=True,
        ):
            np.testing.assert_array_equal(alone[0], among[b])


def test_can_be_vectorised():
    queries, writes, initial = problem(batch=4)
    rule = UpdateRule()
    y = memory_native.walk(queries, writes, initial, rule, None)
    pairs = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), (queries, writes))
    by_pairs = jax.vmap(lambda q, w: memory_native.walk(q, w, initial, rule, None))
    np.testing.assert_array_equal(by_pairs(*pairs).reshape(y.shape), y)


def test_a_number_that_is_none_shows():
    queries, writes, initial = problem()
    writes.keys[0, 0, 3, 2] = np.nan
    y = np.asarray(memory_native.walk(queries, writes, initial, UpdateRule(), None))
    assert np.isfinite(y[:, 0]).all()
    assert np.isnan(y[:, 1:]).all()


def test_scan_and_layer_take_it_where_it_fits(monkeypatch):
    calls = []
    walk = memory_native.walk

    def counted(*arguments):
        calls.append(arguments)
        return walk(*arguments)

    monkeypatch.setattr(memory_native, "walk", counted)
    x = np.random.default_rng(0).standard_normal((2, 6, 6, 16), np.float32)
    layer = memory_branch.NeuralMemory(chunk_size=9)
    variables = jax.jit(lambda: layer.init(jax.random.key(0), x, train=False))()
    expected = jax.jit(lambda: layer.apply(variables, x, train=False))()
    assert not calls  # The tests have eight devices.
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    y = jax.jit(lambda: layer.apply(variables, x, train=False))()
    assert len(calls) == 1
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
    for other in (
        dict(op_form="shift"),
        dict(read="after"),
        dict(grad_at="initial"),
        dict(inner_second_order=False),
        dict(inner_dtype=jnp.bfloat16),
        dict(chunk_size=36),
    ):
        jax.eval_shape(
            lambda other=other: layer.clone(**other).apply(variables, x, train=False)
        )
    jax.eval_shape(
        lambda: layer.apply(variables, x, train=False, mutable=["intermediates"])
    )
    assert len(calls) == 1


def test_other_widths_and_types_do_not_fit():
    queries, _, initial = problem(width=24)
    assert not memory_native.fits(queries, initial, UpdateRule())
    queries, _, initial = problem()
    assert memory_native.fits(queries, initial, UpdateRule(dtype="float32"))
    wide = jax.tree.map(np.float64, initial)
    assert not memory_native.fits(queries, wide, UpdateRule())


def test_forms_take_native_programs_on_one_cpu(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert forms.takes_native("auto")
    assert not forms.takes_native("shift")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not forms.takes_native("auto")


class TestNative:
    """`native.load`, past its cache."""

    load = staticmethod(native.load.__wrapped__)

    @pytest.fixture(autouse=True)
    def _own_cache(self, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def source(self, tmp_path, text="int one() { return 1; }\n"):
        path = tmp_path / "one.cc"
        path.write_text(text)
        return path

    def test_compiles_once(self, tmp_path):
        source = self.source(tmp_path)
        assert self.load(source, ())
        (library,) = (tmp_path / "cache" / "lvb" / "native").iterdir()
        before = library.stat()
        assert self.load(source, ())
        assert library.stat() == before
        source.write_text("int two() { return 2; }\n")
        assert self.load(source, ())
        assert len(list(library.parent.iterdir())) == 2

    def test_says_why_not(self, monkeypatch, tmp_path, caplog):
        source = self.source(tmp_path, "int one() { return two; }\n")
        with caplog.at_level(logging.WARNING):
            assert not self.load(source, ())
        assert "one.cc is not compiled" in caplog.text
        assert "error" in caplog.text
        assert "two" in caplog.text
        caplog.clear()
        monkeypatch.setenv("CXX", "no-such-compiler")
        assert not self.load(source, ())
        assert "no C++ compiler: none of no-such-compiler" in caplog.text
        caplog.clear()
        monkeypatch.setenv("LVB_NATIVE", "0")
        assert not self.load(source, ())
        assert not caplog.text
