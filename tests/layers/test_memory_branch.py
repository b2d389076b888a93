"""The neural memory as a layer: equation, chunks, dead and living gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import randomised
from reference import neural_memory as reference

from lvb.layers import memory_branch

D = 6
STORE = {"norm", "key", "value", "pool", "step", "momentum", "decay"}


def features(height, width, *, batch=2, channels=D, dtype=jnp.float32, seed=1):
    return jax.random.normal(
        jax.random.key(seed), (batch, height, width, channels), dtype
    )


def memory(**fields):
    return memory_branch.NeuralMemory(**{"chunk_size": 4, **fields})


def init(layer, x):
    return jax.jit(functools.partial(layer.init, train=False))(jax.random.key(0), x)


def variables_of(layer, x, *, seed=7):
    return randomised(init(layer, x), seed=seed)


def apply(layer, variables, x, **options):
    run = functools.partial(layer.apply, train=False, **options)
    return jax.jit(run)(variables, x)


def rms_norm(x, gain):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1.2e-7) * gain


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def initial_weights(params):
    """M_0 as the reference holds it, W_2 turned around."""
    hidden, output, gain = (
        params[f"initial_{name}"] for name in ("hidden", "output", "gain")
    )
    return [hidden, output.T, gain]


def by_loops(params, x, *, chunk_size, token_reduce, inner_lr, clip):
    """The whole layer for a raster of full chunks, NumPy float64."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    store = params["store"]
    batch, height, width, channels = x.shape
    chunks = np.asarray(x).reshape(batch, -1, chunk_size, channels)
    s = rms_norm(chunks[:, :-1], store["norm"]["scale"])
    z = rms_norm(chunks, params["retrieve_norm"]["scale"])

    def unit(name, inputs):
        rate = store[name]
        return sigmoid(inputs @ rate["kernel"][:, 0] + rate["bias"][0])

    logits = s @ store["pool"]["kernel"] + store["pool"]["bias"]
    weights = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    summary = (weights * s).sum(axis=2)
    count = chunk_size if token_reduce == "mean" else 1
    writes = (
        s @ store["key"]["kernel"],
        s @ store["value"]["kernel"],
        inner_lr * unit("step", s) / count,
        unit("momentum", summary),
        unit("decay", summary),
    )
    y, _ = reference.memory(
        z @ params["query"]["kernel"],
        writes,
        initial=initial_weights(params),
        clip=clip,
    )
    return y.reshape(batch, height, width, channels)


@pytest.mark.parametrize(
    ("token_reduce", "inner_lr", "clip"), [("mean", 1.0, 1.0), ("sum", 0.3, 0.0)]
)
def test_equals_loops(token_reduce, inner_lr, clip):
    with jax.enable_x64():
        x = features(3, 4, dtype=jnp.float64)
        layer = memory(
            token_reduce=token_reduce,
            inner_lr=inner_lr,
            inner_clip=clip,
            dtype=jnp.float64,
            param_dtype=jnp.float64,
            inner_dtype=jnp.float64,
        )
        variables = variables_of(layer, x)
        y = apply(layer, variables, x)
        assert y.dtype == jnp.float64
    expected = by_loops(
        variables["params"],
        x,
        chunk_size=4,
        token_reduce=token_reduce,
        inner_lr=inner_lr,
        clip=clip,
    )
    # Two updates with slopes up to 100 on float64 rounding.
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)


def test_starts_with_mean_pooling_five_percent_decay_and_half_momentum():
    x = features(4, 4)
    layer = memory(chunk_size=4)
    variables = init(layer, x)
    _, state = apply(layer, variables, x, mutable=["intermediates"])
    course = {name: value[0] for name, value in state["intermediates"].items()}
    assert set(course) == {
        "loss_before", "loss_after", "gradient_norm", "weight_norm", "momentum",
        "decay", "step", "update_norm",
    }  # fmt: skip
    for value in course.values():
        assert value.shape == (2, 3)  # T - 1 of four chunks are written.
    # The kernels of the rates are normal(0.02): their logits move by less than 0.2.
    np.testing.assert_allclose(course["decay"], 0.0474, atol=0.01)
    np.testing.assert_allclose(course["momentum"], 0.5, atol=0.05)
    np.testing.assert_allclose(course["step"], 0.5, atol=0.05)
    assert (course["loss_before"] > course["loss_after"]).all()
    assert not variables["params"]["store"]["pool"]["kernel"].any()


def test_nothing_is_sown_unless_asked_for():
    x = features(2, 4)
    layer = memory()
    variables = init(layer, x)
    assert set(variables) == {"params"}
    y, state = apply(layer, variables, x, mutable=["batch_stats"])
    assert not state
    np.testing.assert_array_equal(y, apply(layer, variables, x))


@pytest.mark.parametrize("shape", [(1, 3), (2, 2)])
def test_fewer_tokens_than_a_chunk_are_answered_by_the_initial_memory(shape):
    with jax.enable_x64():
        x = features(*shape, dtype=jnp.float64)
        layer = memory(
            chunk_size=16, dtype=jnp.float64, param_dtype=jnp.float64,
            inner_dtype=jnp.float64,
        )  # fmt: skip
        variables = variables_of(layer, x)
        y = apply(layer, variables, x)
    params = jax.tree.map(np.asarray, variables["params"])
    initial = initial_weights(params)
    queries = rms_norm(np.asarray(x), params["retrieve_norm"]["scale"])
    queries = (queries @ params["query"]["kernel"]).reshape(-1, D)
    expected = [reference.read(initial, q, epsilon=1e-3) for q in queries]
    np.testing.assert_allclose(y.reshape(-1, D), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("read", ["before", "after"])
def test_ragged_sequence_is_the_prefix_of_a_longer_one(read):
    """10 of 12 tokens in chunks of 4: chunks 1 and 2 agree bit for bit, so does 3."""
    x = features(1, 12)
    layer = memory(read=read)
    variables = variables_of(layer, x)
    long = apply(layer, variables, x)
    short = apply(layer, variables, x[:, :, :10])
    np.testing.assert_array_equal(short[:, :, :8], long[:, :, :8])
    # Read after the write, the last chunk is another: it holds two tokens fewer.
    same = np.array_equal(short[:, :, 8:], long[:, :, 8:10])
    assert same == (read == "before")


@pytest.mark.parametrize("layout", ["raster", "window"])
def test_padding_is_never_written(layout):
    """A ragged chunk is written as if its valid tokens were all there is."""
    layer = memory(chunk_layout=layout, read="after", chunk_size=16)
    x = features(3, 5)
    variables = variables_of(layer, x)
    y = apply(layer, variables, x)
    if layout == "window":  # Windows 3 x 4 and 3 x 1, the latter padded.
        alone = apply(layer, variables, x[:, :, :4])
        # The same sums over other tile shapes: float32 rounding of size-one values.
        np.testing.assert_allclose(y[:, :, :4], alone, rtol=0, atol=1e-5)
    else:  # One chunk of 15 tokens, no padding, against the same in 4 x 4 windows.
        exact = apply(memory(read="after", chunk_size=15), variables, x)
        np.testing.assert_array_equal(y, exact)


def test_windows_and_rasters_differ_beyond_the_first_chunk():
    x = features(4, 4)
    layer = memory()
    variables = variables_of(layer, x)
    raster = apply(layer, variables, x)
    window = apply(memory(chunk_layout="window"), variables, x)
    assert np.abs(raster - window).max() > 1e-3
    np.testing.assert_allclose(raster[:, 0, :2], window[:, 0, :2], rtol=0, atol=1e-6)


def gradients(layer, x, *, seed=7):
    variables = variables_of(layer, x, seed=seed)

    @jax.jit
    @jax.grad
    def slope(params):
        y = layer.apply({"params": params}, x, train=True)
        return jnp.mean(jnp.square(y - x))

    return slope(variables["params"])


@pytest.mark.slow
@pytest.mark.parametrize("recurrence", ["scan", "associative"])
def test_which_parameters_learn_from_one_two_and_three_chunks(recurrence):
    """One chunk: the store is idle. Two: momentum is, V_0 = 0. Three: all learn."""
    layer = memory(recurrence=recurrence, grad_at="initial")
    for chunks, idle in ((1, STORE), (2, {"momentum"}), (3, set())):
        slopes = gradients(layer, features(chunks, 4))
        for name, subtree in slopes["store"].items():
            for leaf in jax.tree.leaves(subtree):
                assert np.isfinite(leaf).all()
                # b_p moves all logits of a channel alike: its slope is always zero.
                if name == "pool" and leaf.ndim == 1:
                    assert np.abs(leaf).max() < 1e-7
                else:
                    assert bool(leaf.any()) == (name not in idle), (chunks, name)
        for name in set(slopes) - {"store"}:
            for leaf in jax.tree.leaves(slopes[name]):
                assert np.isfinite(leaf).all()
                assert leaf.any(), (chunks, name)
        assert set(slopes["store"]) == STORE


def test_outer_gradient_equals_central_differences_for_every_parameter():
    with jax.enable_x64():
        x = features(3, 4, dtype=jnp.float64)
        layer = memory(
            dtype=jnp.float64, param_dtype=jnp.float64, inner_dtype=jnp.float64
        )
        variables = variables_of(layer, x)
        leaves, tree = jax.tree_util.tree_flatten_with_path(variables["params"])

        @jax.jit
        def loss(params):
            y = layer.apply({"params": params}, x, train=True)
            return jnp.mean(jnp.sin(y))

        slopes = jax.tree.leaves(jax.jit(jax.grad(loss))(variables["params"]))
        rng = np.random.default_rng(0)
        for index, ((path, leaf), slope) in enumerate(zip(leaves, slopes, strict=True)):
            direction = rng.standard_normal(leaf.shape)
            values = []
            for step in (1e-5, -1e-5):
                moved = [other for _, other in leaves]
                moved[index] = leaf + step * direction
                values.append(loss(jax.tree.unflatten(tree, moved)))
            # Rounding 1e-16 / 1e-5 plus curvature 1e-10.
            np.testing.assert_allclose(
                (values[0] - values[1]) / 2e-5,
                np.sum(slope * direction),
                rtol=1e-5,
                atol=1e-9,
                err_msg=jax.tree_util.keystr(path),
            )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_hundred_chunks_of_4096_tokens_keep_gradients_small(dtype):
    """Projections of deviation 0.02, 0.2 and 0.3 on a 64 x 64 map, one image.

    Scaling the features instead would change nothing, both RMSNorms remove it.
    """
    layer = memory(chunk_size=41, dtype=dtype, inner_dtype=dtype)
    x = features(64, 64, batch=1, channels=64)
    params = init(layer, x[:, :1, :1])["params"]

    @jax.jit
    @jax.value_and_grad
    def loss_and_slopes(params):
        y = layer.apply({"params": params}, x, train=True)
        return jnp.mean(jnp.square(y.astype(jnp.float32)))

    for factor in (1, 10, 15):
        scaled = jax.tree_util.tree_map_with_path(
            lambda path, leaf, factor=factor: (
                factor * leaf if path[-2].key in ("query", "key", "value") else leaf
            ),
            {name: params[name] for name in ("query", "store")},
        )
        loss, slopes = loss_and_slopes({**params, **scaled})
        assert np.isfinite(loss)
        norm = np.sqrt(
            sum(
                np.sum(np.square(leaf, dtype=float)) for leaf in jax.tree.leaves(slopes)
            )
        )
        assert 0 < norm < 10


@pytest.mark.parametrize("preset", ["paper", "package"])
def test_large_chunks_stay_finite(preset):
    """Two chunks of 4,096 tokens with projections ten times their size."""
    fields = {}
    if preset == "package":
        fields = dict(
            grad_at="initial", token_reduce="sum", inner_clip=0.0, inner_lr=1e-3,
            decay_bias=0.0, norm_epsilon=1e-5,
        )  # fmt: skip
    layer = memory(chunk_size=4096, **fields)
    x = features(64, 128, batch=1, channels=16)
    params = init(layer, x[:, :1, :1])["params"]
    large = jax.tree.map(lambda leaf: 10 * leaf, params["store"])
    slopes = jax.jit(
        jax.grad(
            lambda params: jnp.mean(
                jnp.square(layer.apply({"params": params}, x, train=True))
            )
        )
    )({**params, "store": large})
    for leaf in jax.tree.leaves(slopes):
        assert np.isfinite(leaf).all()


def test_mean_pooling_has_no_parameters_and_equals_the_initial_attention():
    x = features(3, 4)
    attention = memory()
    variables = init(attention, x)
    mean = jax.tree.map(lambda leaf: leaf, variables)
    del mean["params"]["store"]["pool"]
    np.testing.assert_allclose(
        apply(memory(pool="mean"), mean, x),
        apply(attention, variables, x),
        rtol=0,
        atol=1e-6,
    )


def test_bf16_keeps_parameters_and_state_float32():
    x = features(3, 4, dtype=jnp.bfloat16)
    layer = memory(dtype=jnp.bfloat16)
    variables = init(layer, x)
    for leaf in jax.tree.leaves(variables):
        assert leaf.dtype == jnp.float32
    y, state = apply(layer, variables, x, mutable=["intermediates"])
    assert y.dtype == jnp.bfloat16
    for leaf in jax.tree.leaves(state):
        assert leaf.dtype == jnp.float32
    exact = apply(memory(), variables, x.astype(jnp.float32))
    assert np.abs(exact - y.astype(jnp.float32)).max() < 0.05  # bf16: 1 in 256.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(pool="max"), "pool='max' is unknown"),
        (dict(token_reduce="max"), "token_reduce='max' is unknown"),
        (dict(recurrence="loop"), "recurrence='loop' is unknown"),
        (dict(recurrence="associative"), "needs grad_at"),
        (dict(bptt_chunks=1), "bptt_chunks=1 cuts every write off"),
        (dict(inner_lr=-1.0), "inner_lr=-1.0 is negative"),
        (
            dict(recurrence="associative", grad_at="initial", bptt_chunks=4),
            "bptt_chunks=4 needs a state",
        ),
    ],
)
def test_refuses_what_does_not_fit(fields, message):
    layer = memory(**fields)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            functools.partial(layer.init, train=False),
            jax.random.key(0),
            features(3, 4),
        )
