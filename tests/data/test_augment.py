"""Policy strings, colour jitter and 3-Augment."""

import pickle

import numpy as np
import pytest
from PIL import Image
from reference import augment as reference
from scipy import ndimage, stats

from lvb.data import augment, auto_ops, color_jitter, rand_augment, three_augment

# Odds that a correct implementation would fail under another seed.
FALSE_ALARM = 1e-4


@pytest.fixture(scope="module")
def photograph(shared_data):
    folder = shared_data / "imagenet_samples" / "images"
    with Image.open(folder / "n01818515_macaw.JPEG") as image:
        return image.convert("RGB").resize((48, 40))


def test_policies_by_name():
    made = augment.make_augment("rand-m9-mstd0.5-inc1", fill=(1, 2, 3))
    assert made.parts == (
        rand_augment.RandAugment(
            rand_augment.parse_policy("rand-m9-mstd0.5-inc1"), fill=(1, 2, 3)
        ),
    )
    assert augment.make_augment("three+jitter0.3").parts == (
        three_augment.ThreeAugment(),
        color_jitter.ColorJitter(0.3),
    )


@pytest.mark.parametrize("policy", ["", "none"])
def test_no_policy_changes_nothing(photograph, policy):
    made = augment.make_augment(policy)
    assert made(photograph, np.random.default_rng(0)) is photograph


@pytest.mark.parametrize("policy", ["randaugment", "three+blur", "jitter", "jitter-1"])
def test_refuses_unknown_parts(policy):
    with pytest.raises(ValueError, match="unknown; the parts are"):
        augment.make_augment(policy)


def test_parts_run_in_order(photograph):
    rng = np.random.default_rng(5)
    after = color_jitter.ColorJitter(0.3)(
        three_augment.ThreeAugment()(photograph, rng), rng
    )
    made = pickle.loads(pickle.dumps(augment.make_augment("three+jitter0.3")))
    np.testing.assert_array_equal(made(photograph, np.random.default_rng(5)), after)


def test_jitter_factors_are_uniform():
    # On a grey image contrast and saturation do nothing, so brightness shows alone.
    grey = Image.new("RGB", (1, 1), (150, 150, 150))
    jitter = color_jitter.ColorJitter(0.4)
    factors = [
        np.asarray(jitter(grey, np.random.default_rng((1, seed))))[0, 0, 0] / 150
        for seed in range(2000)
    ]
    # Values are whole grey levels, cut off: 1 / 150, beside which chance is 0.02.
    spread = np.array(factors) + np.random.default_rng(0).uniform(0, 1 / 150, 2000)
    assert stats.kstest(spread, stats.uniform(0.6, 0.8).cdf).pvalue > FALSE_ALARM


def test_jitter_equals_definition_in_the_drawn_order(photograph, monkeypatch):
    calls = []

    def recorded(name):
        def enhance(image, factor):
            calls.append((name, factor))
            return getattr(auto_ops, name)(image, factor)

        return enhance

    names = ("brightness", "contrast", "color")
    monkeypatch.setattr(
        color_jitter, "_ENHANCERS", tuple(recorded(name) for name in names)
    )
    orders = set()
    for seed in range(40):
        calls.clear()
        ours = color_jitter.ColorJitter(0.4)(photograph, np.random.default_rng(seed))
        expected = np.asarray(photograph)
        for name, factor in calls:
            blended = getattr(reference, name)(expected, factor)
            expected = np.floor(blended + 1e-9).astype(np.uint8)  # as Pillow stores it
        # A grey level lost before the contrast step may shift its mean by one more.
        assert np.abs(np.asarray(ours).astype(int) - expected).max() <= 2
        orders.add(tuple(name for name, _ in calls))
    assert len(orders) == 6


def test_jitter_strength_zero_and_negative(photograph):
    same = color_jitter.ColorJitter(0.0)(photograph, np.random.default_rng(0))
    np.testing.assert_array_equal(same, photograph)
    with pytest.raises(ValueError, match=r"strength=-0.1 is negative"):
        color_jitter.ColorJitter(-0.1)


def test_three_augment_equals_definitions(photograph):
    pixels = np.asarray(photograph)
    grey = three_augment.grayscale(photograph)
    assert grey.mode == "RGB"
    luma = np.broadcast_to(reference.luma(pixels)[..., None], pixels.shape)
    np.testing.assert_array_equal(grey, luma)
    assert three_augment.grayscale(photograph.convert("L")).mode == "L"
    solarized = auto_ops.solarize(photograph, three_augment.SOLARIZE_THRESHOLD)
    np.testing.assert_array_equal(solarized, reference.solarize(pixels, 128))


@pytest.mark.parametrize("radius", [0.5, 1.0, 2.0])
def test_blur_is_a_gaussian(photograph, radius):
    ours = np.asarray(three_augment.gaussian_blur(photograph, radius)).astype(float)
    pixels = np.asarray(photograph).astype(float)
    exact = ndimage.gaussian_filter(
        pixels, sigma=(radius, radius, 0), mode="nearest", truncate=6
    )
    # Pillow's three box filters approximate a Gaussian to about 3 % of the range of
    # the change that the blur makes.
    assert np.abs(ours - exact).mean() < 0.1 * np.abs(pixels - exact).mean() + 0.5


def test_three_augment_takes_each_a_third_of_the_time(photograph, monkeypatch):
    radii, tally = [], {"grayscale": 0, "solarize": 0}

    def count(name):
        def apply(image, *_):
            tally[name] += 1
            return image

        return apply

    monkeypatch.setattr(three_augment, "grayscale", count("grayscale"))
    monkeypatch.setattr(auto_ops, "solarize", count("solarize"))
    monkeypatch.setattr(
        three_augment, "gaussian_blur", lambda image, radius: radii.append(radius)
    )
    for seed in range(3000):
        three_augment.ThreeAugment()(photograph, np.random.default_rng((2, seed)))
    assert stats.chisquare([*tally.values(), len(radii)]).pvalue > FALSE_ALARM
    assert sum(tally.values()) + len(radii) == 3000
    assert stats.kstest(radii, stats.uniform(0.1, 1.9).cdf).pvalue > FALSE_ALARM
