"""FVNet as a whole: fusion, gradients, precision, spans and propagation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from fvnet_cases import classifier_of, shapes_of, tiny, variables_of

from lvb.heads import classifier
from lvb.layers import fusion, norm
from lvb.tasks import classification


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (4, 65, 47, 3))


@pytest.fixture(scope="module")
def started(images):
    """The variables at initialisation."""
    # Its random bits are one operation each, and compile in half the time.
    key = jax.random.key(0, impl="rbg")
    return jax.jit(lambda x: tiny().init(key, x, train=False))(images)


def calibrated(model, images):
    """Random parameters, and the batch statistics that these images have there."""
    variables = variables_of(model)
    params = variables["params"]

    @jax.jit
    def measure(stats):
        given = {"params": params, "batch_stats": stats}
        moved = model.apply(given, images, train=True, mutable=["batch_stats"])[1]
        # What a batch moved the averages by is a tenth of what they lack.
        return jax.tree.map(
            lambda old, new: old + (new - old) / (1 - norm.MOMENTUM),
            stats,
            moved["batch_stats"],
        )

    return {"params": params, "batch_stats": measure(variables["batch_stats"])}


@pytest.fixture(scope="module")
def variables(images):
    return calibrated(tiny(), images)


@functools.partial(jax.jit, static_argnums=0)
def features_of(model, variables, images):
    return model.apply(variables, images, train=False)


@pytest.fixture(scope="module")
def features(variables, images):
    return features_of(tiny(), variables, images)


def deviation(found, expected):
    """The largest error of any map, relative to its largest value."""
    return max(
        np.max(np.abs(np.asarray(found[name]) - np.asarray(value)))
        / np.max(np.abs(value))
        for name, value in expected.items()
    )


def test_fused_is_unfused(variables, images, features):
    fused = fusion.fuse_variables(tiny(), tiny(deploy=True), variables)
    # Only the norms in front of MPFB are left.
    assert {path[-1] for path in traverse_util.flatten_dict(fused["batch_stats"])} == {
        "mean",
        "var",
    }
    assert len(traverse_util.flatten_dict(fused["batch_stats"])) == 2 * 3
    assert deviation(features_of(tiny(deploy=True), fused, images), features) < 1e-5


@pytest.mark.slow
def test_fused_is_unfused_in_float64(variables, images):
    with jax.enable_x64():
        wide = dict(dtype=jnp.float64, param_dtype=jnp.float64)
        doubles, images = jax.tree.map(
            lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), (variables, images)
        )
        model, deployed = tiny(**wide), tiny(**wide, deploy=True)
        fused = fusion.fuse_variables(model, deployed, doubles)
        found = features_of(deployed, fused, images)
        assert deviation(found, features_of(model, doubles, images)) < 1e-9


def test_images_do_not_see_each_other(variables, images, features):
    permuted = features_of(tiny(), variables, images[jnp.array([0, 3, 1, 2])])
    for name, value in features.items():
        np.testing.assert_array_equal(permuted[name][0], value[0])


def test_forms_of_the_operators_agree(variables, images, features):
    found = features_of(tiny(op_form="shift"), variables, images)
    assert deviation(found, features) < 1e-5


def test_bfloat16_follows_float32(variables, images, features):
    rough = features_of(tiny(dtype=jnp.bfloat16), variables, images)
    for name, value in features.items():
        assert rough[name].dtype == jnp.bfloat16
        found = np.asarray(rough[name], np.float32).ravel()
        assert np.all(np.isfinite(found))
        assert np.corrcoef(found, np.ravel(value))[0, 1] > 0.99


def test_frozen_batch_norm_uses_and_keeps_the_statistics(variables, images, features):
    model = tiny(frozen_batch_norm=True)
    found = jax.jit(lambda v, x: model.apply(v, x, train=True))(variables, images)
    assert deviation(found, features) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        dict(gate_activation="sigmoid"),
        dict(gate_activation="relu"),
        dict(gate_activation="linear"),
        dict(stage_span_factor=(1, 1, 1, 1)),
        dict(stem_tau_span=(0.4, 0.8)),
        dict(tau_spans=((0.1, 0.2), (0.2, 0.4), (0.4, 0.8))),
        dict(tau_map="softplus"),
        dict(propagate="log_tau"),
        dict(residual=False),
        dict(activation="relu"),
        dict(head_dim=16),
    ],
    ids=str,
)
def test_switches_without_parameters_reach_the_output(
    variables, images, features, options
):
    # Not jitted: the single operations of all these networks are compiled once.
    found = tiny(**options).apply(variables, images, train=False)
    # A switch read and dropped would be 1e-6 away.
    assert deviation(found, features) > 1e-4


def loss_of(model, params, variables, images):
    """Mean square distance of stage 4 from noise, in training."""
    features, _ = model.apply(
        {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
    )
    target = jax.random.normal(jax.random.key(5), features["stage4"].shape)
    return jnp.mean((features["stage4"] - target) ** 2)


@functools.partial(jax.jit, static_argnums=0)
def loss_gradient(model, variables, images):
    return jax.grad(loss_of, argnums=1)(model, variables["params"], variables, images)


def silent(gradient):
    """The paths of zero gradients, up to rounding; all must be finite.

    The largest gradient is about 1, the smallest that is not zero 1e-5 to 1e-4, and the
    rounding of a zero one 1e-8 to 1e-7.
    """
    flat = traverse_util.flatten_dict(gradient, sep="/")
    assert all(np.all(np.isfinite(leaf)) for leaf in flat.values())
    return {path for path, leaf in flat.items() if np.abs(leaf).max() < 1e-6}


# A constant that only a 1x1 convolution stands before the next batch norm of: in
# training the batch mean takes it out again.
ALWAYS_SILENT = {
    "stage2/downsample/depthwise/norm/bias",
    "stage3/downsample/depthwise/norm/bias",
    "stage4/downsample/depthwise/norm/bias",
    "stage4/block0/attention/norm/bias",
}


@pytest.mark.slow
def test_every_parameter_learns(variables, images):
    assert silent(loss_gradient(tiny(), variables, images)) == ALWAYS_SILENT


@pytest.mark.slow
def test_every_parameter_learns_with_stored_statistics(variables, images):
    model = tiny(frozen_batch_norm=True)
    assert silent(loss_gradient(model, variables, images)) == set()


@pytest.mark.slow
def test_gradients_that_are_zero_at_initialisation(started, images):
    """Behind a factor that starts at zero, and nowhere else."""
    gradient = loss_gradient(tiny(), started, images)
    expected = set(ALWAYS_SILENT)
    for path in traverse_util.flatten_dict(gradient, sep="/"):
        behind_zero_scale = (
            "/attention/" in path or "/channel_mixer/" in path
        ) and "/project/norm/" not in path
        behind_zero_matrix = path.endswith(
            ("/gate/kappa", "/gate/s", "/gate/reduce/kernel")
        ) or path.endswith(("/fusion/reduce/kernel", "/fusion/reduce/bias"))
        if behind_zero_scale or behind_zero_matrix:
            expected.add(path)
    assert silent(gradient) == expected


def test_rematerialisation_recomputes_the_stages_and_nothing_else(variables, images):
    jaxpr = jax.make_jaxpr(
        lambda params: loss_of(tiny(remat=True), params, variables, images)
    )(variables["params"])
    names = [equation.primitive.name for equation in jaxpr.eqns]
    assert sum(name.startswith(("remat", "checkpoint")) for name in names) == 4
    assert jax.tree.map(jnp.shape, shapes_of(tiny(remat=True))) == jax.tree.map(
        jnp.shape, variables
    )


@functools.partial(jax.jit, static_argnums=0)
def sown(model, variables, images):
    _, sown = model.apply(variables, images, train=False, mutable=["intermediates"])
    return sown["intermediates"]


def taus_of(sown, stage):
    return np.asarray(sown[stage]["block0"]["token_mixer"]["gate"]["tau"][0])


def test_spans_grow_with_the_stage(started, variables, images):
    factors = tiny().stage_span_factor
    assert factors == (1.0, 1.33, 1.67, 2.0)
    spans = ((0.02, 0.25), (0.25, 0.75), (0.75, 1.5))
    at_start, later = (sown(tiny(), v, images) for v in (started, variables))
    (stem_tau,) = at_start["stem"]["flow"]["gate"]["tau"]
    np.testing.assert_allclose(stem_tau, 0.26, rtol=1e-5)
    for stage, factor in zip(("stage1", "stage2", "stage3"), factors, strict=False):
        for n, (low, high) in enumerate(spans):
            centre = factor * (low + high) / 2
            np.testing.assert_allclose(taus_of(at_start, stage)[n], centre, rtol=1e-5)
            tau = taus_of(later, stage)[n]
            assert np.all((tau > factor * low) & (tau < factor * high))


def moved(variables, path, shift):
    """The same variables with `shift` added to one parameter."""
    params = traverse_util.flatten_dict(variables["params"], sep="/")
    params[path] = params[path] + shift
    return {**variables, "params": traverse_util.unflatten_dict(params, sep="/")}


@pytest.mark.parametrize("mpfb_stages", [(1, 2, 3), (1, 3)])
def test_time_constants_propagate_between_stages(images, mpfb_stages):
    """Also across a stage without MPFB; kappa = 0 cuts them off."""
    model = tiny(mpfb_stages=mpfb_stages, use_gap=False)
    variables = variables_of(model)

    def tau(variables):
        return taus_of(sown(model, variables, images), "stage3")

    last = f"stage{mpfb_stages[-2]}/block0/token_mixer/gate/t"
    # Without pooling nothing but the carry can reach the gate of stage 3.
    assert np.all(tau(moved(variables, last, 1.0)) != tau(variables))
    kappa = "stage3/block0/token_mixer/gate/kappa"
    value = traverse_util.flatten_dict(variables["params"], sep="/")[kappa]
    deaf = moved(variables, kappa, -value)
    np.testing.assert_array_equal(tau(moved(deaf, last, 1.0)), tau(deaf))


@pytest.mark.slow
def test_it_overfits_a_batch():
    model = classification.ImageClassifier(tiny(), classifier.ClassifierHead(4))
    images = jax.random.normal(jax.random.key(1), (8, 64, 64, 3))
    labels = jnp.arange(8) % 4
    variables = jax.jit(lambda: model.init(jax.random.key(0), images, train=False))()
    tx = optax.adam(3e-3)

    @jax.jit
    def step(params, stats, opt_state):
        def loss(params):
            logits, updated = model.apply(
                {"params": params, "batch_stats": stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), updated["batch_stats"]

        (value, stats_out), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(gradient, opt_state)
        return optax.apply_updates(params, updates), stats_out, opt_state, value

    params, stats = variables["params"], variables["batch_stats"]
    opt_state, losses = tx.init(params), []
    for _ in range(40):
        params, stats, opt_state, loss = step(params, stats, opt_state)
        losses.append(float(loss))
    assert losses[0] > 1.2  # log 4 = 1.39 at chance.
    assert losses[-1] < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["N", "T", "S"])
def test_variant_fuses_in_float32_and_64_and_runs_in_bfloat16(variant):
    build = functools.partial(classifier_of, variant, op_form="reference")
    images = jax.random.normal(jax.random.key(1), (64, 64, 64, 3))
    variables = calibrated(build(), images)
    fused = fusion.fuse_variables(build(), build(deploy=True), variables)
    logits = features_of(build(), variables, images)
    found = features_of(build(deploy=True), fused, images)
    np.testing.assert_array_equal(found.argmax(axis=-1), logits.argmax(axis=-1))
    assert np.abs(found - logits).max() < 1e-5 * np.abs(logits).max()
    rough = build(dtype=jnp.bfloat16)
    halves = np.asarray(features_of(rough, variables, images), np.float32)
    assert np.all(np.isfinite(halves))
    assert np.corrcoef(halves.ravel(), np.ravel(logits))[0, 1] > 0.99
    with jax.enable_x64():
        wide = dict(dtype=jnp.float64, param_dtype=jnp.float64, op_form="shift")
        variables, images = jax.tree.map(
            lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)),
            (variables, images[:4]),
        )
        model, deployed = build(**wide), build(deploy=True, **wide)
        fused = fusion.fuse_variables(model, deployed, variables)
        logits = features_of(model, variables, images)
        found = features_of(deployed, fused, images)
        assert found.dtype == jnp.float64
        assert np.abs(found - logits).max() <= 1e-9 * np.abs(logits).max()
