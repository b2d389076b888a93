"""Parameters and multiply-adds of FVNet: Tables 1, 3, 6, 7 and the open choices."""

import jax
import jax.numpy as jnp
import pytest
from fvnet_cases import classifier_of, num_params, shapes_of
from sizes import slow_but

from lvb.analysis import flops
from lvb.models import fvnet


def macs_of(model, variables, size):
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return flops.count_macs(
        lambda variables, images: model.apply(variables, images, train=False),
        variables,
        images,
    )


def counts(variant, **options):
    """Parameters and multiply-adds of a classifier at 224 px."""
    model = classifier_of(variant, op_form="reference", **options)
    variables = shapes_of(model)
    return num_params(variables), macs_of(model, variables, 224)


# Parameters, multiply-adds at 224 px, and those of the backbone at 512 px. Table 1
# prints 1.2 M, 3.1 M, 6.8 M; 0.2 G, 0.4 G, 1.1 G; Table 3 prints 1.0 G, 2.2 G, 5.6 G.
@pytest.mark.parametrize(
    ("preset", "variant", "params", "macs", "macs_512"),
    slow_but(
        1,
        [
            ("fit_all", "N", 1_244_352, 185_089_440, 1_006_545_024),
            ("fit_all", "T", 3_098_912, 423_998_080, 2_295_022_080),
            ("fit_all", "S", 6_822_888, 1_055_929_536, 5_636_319_744),
            ("fit_ts", "N", 1_454_352, 210_378_144, 1_138_665_600),
            ("balanced", "N", 1_377_300, 194_572_704, 1_056_090_240),
            ("balanced", "T", 2_896_464, 394_494_592, 2_140_881_408),
            ("balanced", "S", 6_368_304, 993_610_944, 5_310_736_896),
        ],
    ),
)
def test_size_of_every_preset(preset, variant, params, macs, macs_512):
    model = classifier_of(variant, preset=preset, op_form="reference")
    variables = shapes_of(model)
    assert num_params(variables) == params
    assert macs_of(model, variables, 224) == macs
    backbone = {name: tree["backbone"] for name, tree in variables.items()}
    assert macs_of(model.backbone, backbone, 512) == macs_512


def test_default_preset_is_fit_all_which_is_fit_ts_but_for_n():
    assert fvnet.FVNet().preset == "fit_all"
    assert fvnet.PRESETS["fit_all"].stem_width == fvnet.PRESETS["fit_ts"].stem_width
    fitted = {name: row.fitted_ffn_ratio for name, row in fvnet.VARIANTS.items()}
    assert fitted["T"] == fitted["S"] == fvnet.PRESETS["fit_ts"].ffn_ratio
    assert fitted["N"] != fitted["T"]


@pytest.mark.parametrize(
    ("variant", "params"),
    slow_but(1, [("N", 1_237_656), ("T", 3_086_304), ("S", 6_803_400)]),
)
def test_size_when_deployed(variant, params):
    assert num_params(shapes_of(classifier_of(variant, deploy=True))) == params


# Tables 6 and 7, all printed 0.4 G, then the open choices: T with "balanced", and the
# two wide presets add the same to every row.
ABLATIONS = [
    (dict(token_mixer="depthwise"), 2_826_744, 394_445_440),
    (dict(mpfb_stages=(), mhsa_stages=()), 2_012_408, 347_367_808),
    (dict(mpfb_stages=(1,), mhsa_stages=()), 2_017_608, 349_177_216),
    (dict(mpfb_stages=(1, 2), mhsa_stages=()), 2_033_184, 350_541_184),
    (dict(mhsa_stages=()), 2_095_440, 351_932_800),
    (dict(use_gap=False), 2_843_608, 394_444_928),
    (dict(fusion="average"), 2_860_536, 394_461_824),
    (dict(fusion="concat"), 2_864_632, 395_967_104),
    (dict(fusion="se"), 2_912_848, 394_510_976),
    (dict(gate_activation="sigmoid"), 2_896_464, 394_494_592),  # And linear, ReLU.
    (dict(mpfb_stages=(1, 2, 3, 4)), 2_995_584, 394_907_008),
    (dict(kernel_size=5), 2_913_360, 404_128_384),
    (dict(kernel_size=7), 2_938_704, 418_579_072),
    (dict(shared_local=False), 2_914_896, 403_526_272),
    (dict(mixer_pointwise=True), 3_011_152, 429_818_496),
    (dict(gate="channelwise"), 2_879_568, 394_477_696),
    (dict(gate="dense"), 2_993_232, 394_591_360),
    (dict(gate="dense_per_phase"), 3_215_408, 394_816_640),
]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "params", "macs"), ABLATIONS, ids=str)
def test_size_of_every_ablation(options, params, macs):
    assert counts("T", preset="balanced", **options) == (params, macs)


@pytest.mark.slow
@pytest.mark.parametrize("row", [0, 5, 8], ids=lambda row: str(ABLATIONS[row][0]))
def test_presets_differ_by_the_same_in_every_ablation(row):
    options, params, macs = ABLATIONS[row]
    more_params, more_macs = 3_098_912 - 2_896_464, 423_998_080 - 394_494_592
    assert counts("T", **options) == (params + more_params, macs + more_macs)
