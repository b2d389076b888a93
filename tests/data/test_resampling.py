"""Evaluation crops: equal to the trainer's, and what each library's resize does."""

import pickle

import numpy as np
import pytest
from PIL import Image

from lvb.data import resampling, transforms

RNG = np.random.default_rng(0)


def picture(width, height, seed=0):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 40
    waves = np.stack([np.sin(3 * x + y), np.cos(2 * y), np.sin(x * y)], -1)
    noisy = 127.5 * (waves + 1) + rng.normal(scale=8, size=waves.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", [(200, 150), (97, 211), (64, 64), (40, 50)])
@pytest.mark.parametrize("method", sorted(transforms.FILTERS))
def test_one_crop_is_the_evaluation_transform(size, method):
    image = picture(*size)
    ours = resampling.CropTransform(64, method=method, crop_ratio=0.9)(image, RNG)
    theirs = transforms.EvalTransform(64, interpolation=method, crop_ratio=0.9)
    np.testing.assert_array_equal(ours, theirs(image, RNG))


def test_all_crops_start_from_the_same_resize():
    """The centre of five crops is the evaluation transform's, long pictures too."""
    for size in ((200, 150), (97, 211), (700, 40), (64, 64)):
        one = transforms.EvalTransform(64, crop_ratio=0.9)(picture(*size), RNG)
        five = resampling.CropTransform(64, crop_ratio=0.9, crops=5)(
            picture(*size), RNG
        )
        np.testing.assert_array_equal(five[0], one)


def slow_sample(pixels, row, column, weight, reach):
    """Interpolates at one real position, written out."""
    total = 0.0
    for r in range(int(np.floor(row)) - reach + 1, int(np.floor(row)) + reach + 1):
        for c in range(
            int(np.floor(column)) - reach + 1, int(np.floor(column)) + reach + 1
        ):
            inside = pixels[
                min(max(r, 0), len(pixels) - 1), min(max(c, 0), len(pixels[0]) - 1)
            ]
            total = total + weight(abs(row - r)) * weight(abs(column - c)) * inside
    return np.floor(np.clip(total, 0, 255) + 0.5)


def keys_cubic(d, a=-0.75):
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


@pytest.mark.parametrize(
    ("method", "weight", "reach"),
    [
        ("opencv_bilinear", lambda d: max(1 - d, 0), 1),
        ("bicubic_no_antialias", keys_cubic, 2),
    ],
)
def test_few_taps_equal_the_definition(method, weight, reach):
    image = picture(37, 23)
    pixels = np.asarray(image).astype(float)
    ours = resampling.resize(image, (9, 7), method=method)
    for i in range(7):
        for j in range(9):
            row, column = (i + 0.5) * 23 / 7 - 0.5, (j + 0.5) * 37 / 9 - 0.5
            expected = slow_sample(pixels, row, column, weight, reach)
            assert np.abs(np.asarray(ours)[i, j] - expected).max() <= 1


def test_few_taps_alias_and_pillow_does_not():
    """Stripes one pixel wide: antialiasing leaves grey, two taps see stripes."""
    stripes = np.zeros((160, 160, 3), np.uint8)
    stripes[:, ::2] = 255
    image = Image.fromarray(stripes)
    spread = {
        method: resampling.CropTransform(50, method=method, crop_ratio=1.0)(image, RNG)
        .astype(float)
        .std()
        for method in ("bilinear", "opencv_bilinear", "bicubic_no_antialias")
    }
    assert spread["bilinear"] < 10
    assert spread["opencv_bilinear"] > 60
    assert spread["bicubic_no_antialias"] > 60


def test_enlarging_needs_no_antialiasing():
    """When it enlarges, Pillow's bilinear filter has two taps too."""
    image = picture(30, 30)
    pillow = np.asarray(resampling.resize(image, (64, 50), method="bilinear"))
    opencv = np.asarray(resampling.resize(image, (64, 50), method="opencv_bilinear"))
    assert np.abs(pillow.astype(int) - opencv).max() <= 1


def test_stored_images_pass_unchanged():
    image = picture(224, 224)
    for method in ("bicubic", "opencv_bilinear"):
        same = resampling.CropTransform(224, method=method, crop_ratio=1.0)(image, RNG)
        np.testing.assert_array_equal(same, np.asarray(image))


def test_ten_crops_are_corners_centre_and_mirrors():
    image = picture(80, 64)  # Crops of 32 from a short side of 64: no resize.
    crops = resampling.CropTransform(32, crop_ratio=0.5, crops=10)(image, RNG)
    assert crops.shape == (10, 32, 32, 3)
    pixels = np.asarray(image)
    np.testing.assert_array_equal(crops[0], pixels[16:48, 24:56])
    np.testing.assert_array_equal(crops[1], pixels[:32, :32])
    np.testing.assert_array_equal(crops[2], pixels[:32, -32:])
    np.testing.assert_array_equal(crops[3], pixels[-32:, :32])
    np.testing.assert_array_equal(crops[4], pixels[-32:, -32:])
    np.testing.assert_array_equal(crops[5:], crops[:5, :, ::-1])
    five = resampling.CropTransform(32, crop_ratio=0.5, crops=5)(image, RNG)
    np.testing.assert_array_equal(five, crops[:5])


def test_grayscale_and_pickling():
    transform = resampling.CropTransform(32, channels=1, method="opencv_bilinear")
    again = pickle.loads(pickle.dumps(transform))
    ours = again(picture(50, 60), RNG)
    assert ours.shape == (32, 32, 1)
    np.testing.assert_array_equal(ours, transform(picture(50, 60).convert("L"), RNG))


def test_words():
    assert (
        resampling.CropTransform(224, crop_ratio=0.875).describe()
        == "resize 256 (bicubic), centre crop 224"
    )
    assert (
        resampling.CropTransform(224, crop_ratio=1.0, crops=5).describe()
        == "short side to 224 (bicubic), 5 crops 224"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "area"}, "no resampling 'area'; use nearest, bilinear"),
        ({"crops": 3}, "3 crops are not offered; 1, 5 or 10"),
        ({"crop_ratio": 1.2}, r"crop_ratio=1\.2 do not fit"),
        ({"size": 0}, "size=0 and"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        resampling.CropTransform(**({"size": 32} | change))
