"""Snow, frost and fog by their parts."""

import numpy as np
import pytest
from PIL import Image

from lvb.data import corruptions
from lvb.data import corruptions_weather as weather

RNG = np.random.default_rng


def corrupt(image, name, severity, **options):
    return corruptions.corrupt(
        image, name, severity=severity, seed=0, example=0, **options
    )


def test_frost_needs_all_five_photographs(tmp_path, shared_data):
    photographs = weather.load_frost(shared_data / "imagenet_c" / "frost")
    assert [p.shape for p in photographs[:2]] == [(600, 900, 3), (315, 560, 3)]
    assert len(photographs) == 5
    with pytest.raises(ValueError, match=r"frost: .* lacks frost1\.png, frost2\.png"):
        weather.load_frost(tmp_path)


def test_frost_drops_transparency(tmp_path):
    for name in weather.FROST_FILES:
        mode = "RGBA" if name.endswith("png") else "RGB"
        Image.new(mode, (8, 6), (9, 8, 7)).save(tmp_path / name)
    photographs = weather.load_frost(tmp_path)
    assert {photograph.shape for photograph in photographs} == {(6, 8, 3)}
    assert photographs[0][0, 0].tolist() == [9, 8, 7]


def test_frost_adds_a_crop_of_a_photograph():
    """A photograph of one colour leaves no doubt about the sum."""
    image = RNG(0).integers(0, 256, (64, 64, 3), np.uint8)
    photograph = np.full((40, 200, 3), (10, 60, 200), np.uint8)  # Lower than the image.
    ours = corrupt(image, "frost", 2, frost_photographs=(photograph,))
    expected = np.clip(0.8 * image + 0.6 * np.array([10.0, 60, 200]), 0, 255)
    np.testing.assert_array_equal(ours, np.floor(expected + 1e-4))


def test_frost_crops_anywhere():
    """Photographs of a ramp: the brightness of the crop tells where it began."""
    ramp = np.repeat(np.arange(200, dtype=np.uint8)[:, None], 200, axis=1)
    photograph = np.stack([ramp, ramp.T, ramp], axis=-1)
    black = np.zeros((32, 32, 3))
    tops, lefts = [], []
    for seed in range(300):
        ice = weather.frost(
            black,
            RNG(seed),
            image_weight=1,
            frost_weight=1,
            photographs=(photograph,),
        )
        tops.append(round(ice[0, 0, 0] * 255))
        lefts.append(round(ice[0, 0, 1] * 255))
    for starts in (tops, lefts):
        # Uniform on 0..168; the mean of 300 is within 5 standard errors of 84.
        assert abs(np.mean(starts) - 84) < 5 * 49 / np.sqrt(300)
        assert max(starts) <= 168


def test_procedural_frost():
    ice = weather.procedural_frost((50, 70), RNG(1))
    assert ice.shape == (50, 70, 3)
    assert 0 <= ice.min() < ice.max() <= 1
    assert (ice[..., 2] >= ice[..., 0]).all()  # Bluish.
    means = [weather.procedural_frost((224, 224), RNG(i)).mean() for i in range(20)]
    assert 0.35 < np.mean(means) < 0.65


def test_snow_falls_and_whitens():
    black = np.zeros((224, 224, 3), np.uint8)
    snowy = corrupt(black, "snow", 1)
    # Grey everywhere, at least (1 - 0.8) * 0.5, brighter where a flake is.
    assert (snowy == snowy[..., :1]).all()
    assert snowy.min() == 25
    assert 0.01 < (snowy[..., 0] > 60).mean() < 0.5
    # Flakes and their half-turn: the layer equals itself turned by 180 degrees.
    np.testing.assert_allclose(snowy, np.rot90(snowy, 2), atol=1)


def test_snow_whitens_by_the_luma():
    """Without a flake only the whitening is left."""
    image = RNG(2).random((32, 32, 3))
    ours = weather.snow(
        image,
        RNG(0),
        loc=0.0,
        scale=0.1,
        zoom=2,
        threshold=0.9,
        radius=3,
        sigma=2,
        mix=0.7,
    )
    luma = 0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]
    whitened = np.maximum(image, 1.5 * luma[..., None] + 0.5)
    np.testing.assert_allclose(ours, 0.7 * image + 0.3 * whitened, atol=1e-12)


@pytest.mark.parametrize("shape", [(64, 64), (65, 40), (224, 224)])
def test_fractal_fills_the_range(shape):
    # A cut of the square need not hold its darkest and brightest point.
    fractal = weather.plasma_fractal(shape, RNG(3), decay=2.0)
    assert fractal.shape == shape
    assert fractal.min() >= 0
    assert fractal.max() <= 1
    assert np.ptp(fractal) > 0.3


def test_fractal_is_smoother_the_larger_the_decay():
    def roughness(decay):
        maps = [weather.plasma_fractal((64, 64), RNG(i), decay=decay) for i in range(9)]
        return np.mean([np.abs(np.diff(m, axis=0)).mean() for m in maps])

    assert roughness(3.0) < roughness(2.0) < roughness(1.4)


def test_fog_dims_and_keeps_the_brightest_below_white():
    image = RNG(4).random((64, 64, 3)) * 0.8
    foggy = weather.fog(image, RNG(0), strength=2.0, decay=2.0)
    brightest = image.max()
    assert foggy.max() <= brightest + 1e-12
    # Where there is no mist the image is dimmed by brightest / (brightest + 2).
    assert foggy.min() >= image.min() * brightest / (brightest + 2.0) - 1e-12
    black = np.zeros((32, 32, 3))
    assert not weather.fog(black, RNG(0), strength=2.0, decay=2.0).any()


def test_brightness_keeps_the_hue():
    image = np.array([[[0.4, 0.2, 0.1], [0.0, 0.0, 0.0], [1.0, 0.5, 0.0]]])
    ours = weather.brightness(image, RNG(0), offset=0.4)
    np.testing.assert_allclose(
        ours, [[[0.8, 0.4, 0.2], [0.4, 0.4, 0.4], [1.0, 0.5, 0.0]]]
    )
