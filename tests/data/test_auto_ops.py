"""Every image operation equals its NumPy definition on real photographs."""

import numpy as np
import pytest
from PIL import Image
from reference import augment as reference

from lvb.data import auto_ops

FILL = (124, 116, 104)
FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
NAMES = sorted(reference.INCREASING_ARGUMENTS)


@pytest.fixture(scope="module")
def photographs(shared_data):
    """A colour photograph and a greyscale one, small and not square."""
    folder = shared_data / "imagenet_samples" / "images"
    with Image.open(folder / "n01514859_hen.JPEG") as image:
        colour = image.convert("RGB").resize((45, 38))
        return {"RGB": colour, "L": colour.convert("L")}


def apply(name, image, *, magnitude, sign=1.0, filter_name="bicubic", table=None):
    table = auto_ops.INCREASING if table is None else table
    return auto_ops.apply_operation(
        image,
        table[name],
        magnitude=magnitude,
        sign=sign,
        warp=auto_ops.Warp(FILL, FILTERS[filter_name]),
    )


def expected(name, image, *, magnitude, sign=1.0, filter_name="bicubic"):
    argument = reference.INCREASING_ARGUMENTS[name]
    red, green, blue = FILL
    return reference.operation(
        np.asarray(image),
        name,
        argument=None if argument is None else argument(magnitude / 10, sign),
        fill=FILL if image.mode == "RGB" else round(luma(red, green, blue)),
        interpolation=filter_name,
    )


def luma(red, green, blue):
    return 0.299 * red + 0.587 * green + 0.114 * blue


def test_the_fifteen_operations():
    assert sorted(auto_ops.INCREASING) == NAMES
    assert sorted(auto_ops.ORIGINAL) == NAMES
    assert len(NAMES) == 15


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", sorted(set(NAMES) - set(GEOMETRIC)))
def test_pointwise_equals_definition(photographs, name, mode):
    image = photographs[mode]
    for magnitude, sign in ((9.0, 1.0), (8.37, -1.0), (3.1, 1.0)):
        ours = apply(name, image, magnitude=magnitude, sign=sign)
        assert (ours.size, ours.mode) == (image.size, image.mode)
        difference = np.asarray(ours) - expected(
            name, image, magnitude=magnitude, sign=sign
        )
        # Pillow cuts fractions off where the definition has none to cut.
        assert np.abs(difference).max() <= 1.0
        if name in ("Invert", "Posterize", "Solarize", "SolarizeAdd", "Equalize"):
            assert np.abs(difference).max() == 0.0


@pytest.mark.parametrize("filter_name", FILTERS)
@pytest.mark.parametrize("name", GEOMETRIC)
def test_geometric_equals_definition(photographs, name, filter_name):
    for mode, sign in (("RGB", 1.0), ("L", -1.0)):
        options = dict(magnitude=8.9, sign=sign, filter_name=filter_name)
        ours = apply(name, photographs[mode], **options)
        assert (ours.size, ours.mode) == (photographs[mode].size, mode)
        difference = np.asarray(ours) - expected(name, photographs[mode], **options)
        # One grey level for the fraction that Pillow cuts off.
        assert np.abs(difference).max() <= 1.0


def test_geometric_fills_with_the_mean_colour(photographs):
    moved = np.asarray(apply("TranslateX", photographs["RGB"], magnitude=10.0))
    assert (moved[:, -15:] == FILL).all()  # 0.45 * 45 = 20.25 columns came in
    grey = np.asarray(apply("TranslateY", photographs["L"], magnitude=10.0))
    assert (grey[-12:] == 117).all()  # the luma of FILL


@pytest.mark.parametrize(
    ("name", "unchanged_at"),
    [
        ("Rotate", 0.0),
        ("Color", 0.0),
        ("Contrast", 0.0),
        ("Brightness", 0.0),
        ("Sharpness", 0.0),
        ("Solarize", 0.0),
        ("SolarizeAdd", 0.0),
        ("ShearX", 0.0),
        ("TranslateY", 0.0),
    ],
)
def test_increasing_operations_start_at_no_change(photographs, name, unchanged_at):
    image = photographs["RGB"]
    same = apply(name, image, magnitude=unchanged_at)
    np.testing.assert_array_equal(same, image)
    strengths = [
        np.abs(
            np.asarray(apply(name, image, magnitude=m)).astype(int) - np.asarray(image)
        ).mean()
        for m in (2.0, 5.0, 9.0)
    ]
    assert 0 < strengths[0] < strengths[1] < strengths[2]


def test_original_scales_differ_from_increasing():
    arguments = {
        name: (
            auto_ops.ORIGINAL[name].argument(0.5, 1.0),
            auto_ops.INCREASING[name].argument(0.9, -1.0),
        )
        for name in ("Posterize", "Solarize", "Color")
    }
    assert arguments["Posterize"] == (2, 1)
    assert arguments["Solarize"] == (128, 26)
    assert arguments["Color"] == pytest.approx((1.0, 0.19))


def test_posterize_to_no_bits_is_black(photographs):
    # Magnitude 10, which a tail of N(9, 0.5) reaches, leaves 0 of 8 bits.
    assert not np.asarray(apply("Posterize", photographs["RGB"], magnitude=10.0)).any()


def test_enhancement_never_turns_negative():
    # With mmax over 10, 1 - 0.9 s would fall below the floor of 0.1.
    assert auto_ops.INCREASING["Contrast"].argument(1.5, -1.0) == 0.1
    assert auto_ops.INCREASING["Posterize"].argument(1.5, 1.0) == 0
