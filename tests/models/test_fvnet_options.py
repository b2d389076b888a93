"""Every option of FVNet: what it builds, what it accepts, what its parts are called."""

import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util
from fvnet_cases import num_params, shapes_of, tiny, variables_of
from sizes import slow_but

from lvb.layers import fusion
from lvb.models import fvnet


@pytest.mark.parametrize(
    "options",
    slow_but(
        6,
        [
            dict(num_phases=2),
            dict(num_phases=1),
            dict(num_phases=2, tau_spans=((0.1, 0.2), (0.2, 0.4))),
            dict(stem_tau_span=(0.1, 0.2), stage_span_factor=(1, 1, 1, 1)),
            dict(tie_tau=False),
            dict(shared_local=False, mixer_pointwise=True),
            dict(tau_map="softplus"),
            dict(propagate="none"),
            dict(propagate="learned"),
            dict(propagate="log_tau"),
            dict(stem_width=0.5, ffn_ratio=(0, 0, 0, 2)),
            dict(residual=False),
            dict(norm="layer"),
            dict(activation="silu"),
            dict(mpfb_stages=(2, 4), mhsa_stages=(3, 4)),
            dict(mpfb_stages=(1, 3)),
            dict(token_mixer="depthwise", mpfb_stages=(1, 2, 3, 4)),
            dict(head_dim=16, drop_path_rate=0.1, remat=True),
        ],
    ),
    ids=str,
)
def test_every_switch_builds_and_trains(options):
    model = tiny(**options)
    variables = shapes_of(model)
    images = jax.ShapeDtypeStruct((2, 33, 40, 3), jnp.float32)

    def loss(params, rest, images):
        features, _ = model.apply(
            {"params": params, **rest},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"drop_path": jax.random.key(0)},
        )
        return sum(jnp.sum(feature) for feature in features.values())

    rest = {"batch_stats": variables["batch_stats"]}
    gradient = jax.eval_shape(jax.grad(loss), variables["params"], rest, images)
    assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(
        jnp.shape, variables["params"]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        dict(norm="layer", shared_local=False, mixer_pointwise=True),
        dict(token_mixer="depthwise", mhsa_stages=(3, 4)),
    ],
    ids=str,
)
def test_switches_fuse(options):
    model = tiny(**options)
    variables = variables_of(model)
    fused = fusion.fuse_variables(model, model.clone(deploy=True), variables)
    assert num_params(fused) < num_params(variables)


@pytest.mark.parametrize(
    ("size", "channels"),
    [((32, 32), 1), ((33, 47), 3), ((224, 224), 3), ((512, 512), 3), ((800, 1333), 3)],
)
def test_any_size_with_rounding_up(size, channels):
    model = fvnet.FVNet(**fvnet.VARIANTS["N"]._asdict())
    images = jax.ShapeDtypeStruct((2, *size, channels), jnp.float32)
    features, _ = jax.eval_shape(
        lambda images: model.init_with_output(jax.random.key(0), images, train=False),
        images,
    )
    assert list(features) == ["stage1", "stage2", "stage3", "stage4"]
    for feature, stride, width in zip(
        features.values(), model.strides, model.dims, strict=True
    ):
        expected = (2, *(-(-side // stride) for side in size), width)
        assert feature.shape == expected


def test_parameters_do_not_depend_on_the_size():
    assert jax.tree.map(jnp.shape, shapes_of(tiny(), size=32)) == jax.tree.map(
        jnp.shape, shapes_of(tiny(), size=97)
    )


def test_without_propagation_there_is_no_kappa():
    names = {
        path[-1]
        for path in traverse_util.flatten_dict(
            shapes_of(tiny(propagate="none"))["params"]
        )
    }
    assert "kappa" not in names
    assert {"A", "beta", "gamma", "delta", "s", "t"} <= names


def test_undecayed_names_exist():
    everything = [
        shapes_of(tiny(**options))["params"]
        for options in ({}, dict(tie_tau=False), dict(use_gap=False))
    ]
    names = {path[-1] for p in everything for path in traverse_util.flatten_dict(p)}
    assert set(fvnet.NO_DECAY) <= names
    # The rest are matrices, kernels, and norms and biases, which are 1-D.
    assert names - set(fvnet.NO_DECAY) == {"kernel", "scale", "bias"}


def test_public_paths():
    paths = traverse_util.flatten_dict(shapes_of(tiny())["params"], sep="/")
    assert {
        "stem/embed0/conv/kernel",
        "stem/flow/phase0/A",
        "stage1/block0/token_mixer/local/conv/kernel",
        "stage2/downsample/depthwise/conv/kernel",
        "stage3/block0/channel_mixer/expand/norm/scale",
        "stage4/block0/attention/qkv/conv/kernel",
    } <= set(paths)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(preset="fit"), "preset='fit' is unknown; use one of fit_all, fit_ts"),
        (
            dict(token_mixer="lsconv"),
            "token_mixer='lsconv' is unknown; use one of mpfb",
        ),
        (dict(fusion="sum"), "fusion='sum' is unknown"),
        (dict(gate="full"), "gate='full' is unknown"),
        (dict(propagate="yes"), "propagate='yes' is unknown"),
        (dict(tau_map="exp"), "tau_map='exp' is unknown; use one of sigmoid, softplus"),
        (dict(gate_activation="elu"), "gate_activation='elu' is unknown"),
        (dict(norm="group"), "norm='group' is unknown; use one of batch, layer"),
        (dict(activation="elu"), "activation='elu' is unknown"),
        (dict(mpfb_stages=(0, 1)), "mpfb_stages=0 is unknown; use one of 1, 2, 3, 4"),
        (dict(mhsa_stages=(5,)), "mhsa_stages=5 is unknown"),
        (dict(depths=(1, 1)), r"depths=\(1, 1\) has 2 entries; give one for each"),
        (dict(dims=(8, 12, 24, 64)), "12 is not a multiple of 8"),
        (dict(num_phases=2, tau_spans=((0.1, 0.2),)), "num_phases=2 does not fit"),
        (dict(num_phases=0), "num_phases=0 does not fit"),
        (dict(stem_tau_span=(0.5, 0.1)), r"span \(0.5, 0.1\) of tau is not positive"),
        (dict(ffn_ratio=(4, 0.01, 4, 4)), "ffn_ratio at 16 channels of 0.01 leaves no"),
        (dict(stem_width=0), "stem_width of 0 leaves no channel; use at least 0.125"),
        (dict(kernel_size=4), "even side"),
        (dict(head_dim=24), "64 channels are not divisible by head_dim=24"),
    ],
    ids=str,
)
def test_unfit_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        shapes_of(tiny(**options))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 31, 64, 3), "31x64 pixels are too small; both sides must be at least 32"),
        ((1, 64, 64, 4), r"\(1, 64, 64, 4\) do not fit; pass \(B, H, W, 1 or 3\)"),
        ((64, 64, 3), r"\(64, 64, 3\) do not fit"),
    ],
)
def test_unfit_images_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda: tiny().init(jax.random.key(0), jnp.zeros(shape), train=False)
        )
