"""mCE: AlexNet is 100, a perfect classifier 0, a published row comes out as printed."""

import numpy as np
import pytest

from lvb.data import corruptions
from lvb.metrics import corruption_error

FACTS = corruptions.imagenet_c_facts()
ALEXNET, CLEAN = FACTS["alexnet_error"], FACTS["alexnet_clean_error"]


def table(error):
    """The same error at all severities of each corruption."""
    return {name: [error(name)] * 5 for name in ALEXNET}


def relative(errors, clean_error):
    return corruption_error.relative_mean_corruption_error(
        errors, clean_error=clean_error, baseline=ALEXNET, baseline_clean_error=CLEAN
    )


def test_alexnet_scores_exactly_100():
    errors = table(ALEXNET.get)
    assert corruption_error.mean_corruption_error(errors, baseline=ALEXNET) == 100
    each = corruption_error.corruption_errors(errors, baseline=ALEXNET)
    assert set(each.values()) == {100.0}
    assert relative(errors, CLEAN) == 100


def test_a_perfect_classifier_scores_0():
    errors = table(lambda name: 0.0)
    assert corruption_error.mean_corruption_error(errors, baseline=ALEXNET) == 0
    assert relative(errors, 0.0) == 0


def test_relative_is_zero_when_corruption_costs_nothing():
    errors = table(lambda name: 0.3)
    assert relative(errors, 0.3) == pytest.approx(0, abs=1e-12)
    assert corruption_error.mean_corruption_error(errors, baseline=ALEXNET) > 30


def test_published_resnet50_row():
    """ICLR 2019, Table 1: the CEs of ResNet-50 and its mCE of 76.7."""
    printed = {
        **{"gaussian_noise": 80, "shot_noise": 82, "impulse_noise": 83},
        **{"defocus_blur": 75, "glass_blur": 89, "motion_blur": 78, "zoom_blur": 80},
        **{"snow": 78, "frost": 75, "fog": 66, "brightness": 57, "contrast": 71},
        **{"elastic_transform": 85, "pixelate": 77, "jpeg_compression": 77},
    }
    errors = table(lambda name: printed[name] / 100 * ALEXNET[name])
    ours = corruption_error.mean_corruption_error(errors, baseline=ALEXNET)
    # Fifteen figures rounded to integers: their mean is within half a point.
    assert ours == pytest.approx(76.7, abs=0.5)


def test_severities_are_averaged():
    errors = table(ALEXNET.get)
    errors["fog"] = [0.1, 0.2, 0.3, 0.4, 0.5]
    each = corruption_error.corruption_errors(errors, baseline=ALEXNET)
    assert each["fog"] == pytest.approx(100 * 0.3 / 0.819324)
    ours = corruption_error.mean_corruption_error(errors, baseline=ALEXNET)
    assert ours == pytest.approx((1400 + each["fog"]) / 15)


def test_shares_of_images_average_to_the_mce():
    rng = np.random.default_rng(0)
    wrong = {name: rng.random((5, 40)) < 0.6 for name in ALEXNET}
    shares = corruption_error.image_corruption_errors(wrong, baseline=ALEXNET)
    errors = {name: rows.mean(axis=1) for name, rows in wrong.items()}
    assert shares.shape == (40,)
    assert shares.mean() == pytest.approx(
        corruption_error.mean_corruption_error(errors, baseline=ALEXNET)
    )


def test_refuses_an_incomplete_table():
    errors = table(ALEXNET.get)
    del errors["fog"]
    with pytest.raises(ValueError, match="over 15 corruptions: fog is missing"):
        corruption_error.mean_corruption_error(errors, baseline=ALEXNET)
    errors["fog"], errors["spatter"] = [0.5] * 5, [0.5] * 5
    with pytest.raises(ValueError, match="spatter does not belong"):
        relative(errors, 0.4)
    del errors["spatter"]
    errors["fog"] = [0.5] * 4
    with pytest.raises(ValueError, match="fog has 4 severities"):
        corruption_error.mean_corruption_error(errors, baseline=ALEXNET)
    with pytest.raises(ValueError, match="no baseline error for 'rain'"):
        corruption_error.corruption_errors({"rain": [0.5] * 5}, baseline=ALEXNET)
