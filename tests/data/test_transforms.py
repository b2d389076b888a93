import math
import pickle

import numpy as np
import pytest
from PIL import Image

from lvb.data import transforms


@pytest.fixture(scope="module")
def picture():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (6, 9, 3), np.uint8)
    return Image.fromarray(noise).resize((90, 61), Image.Resampling.BICUBIC)


def rng(*seed):
    return np.random.default_rng(seed or 0)


@pytest.mark.parametrize("size", [(90, 61), (61, 90), (64, 64), (33, 240), (20, 20)])
@pytest.mark.parametrize("crop_ratio", [0.875, 0.9, 1.0])
def test_eval_equals_resize_then_crop(picture, size, crop_ratio):
    """The published order, in two steps: short side, then centre."""
    image = picture.resize(size)
    width, height = size
    short = math.floor(32 / crop_ratio)
    if width < height:
        resized = image.resize((short, short * height // width), Image.BICUBIC)
    else:
        resized = image.resize((short * width // height, short), Image.BICUBIC)
    left = round((resized.width - 32) / 2)
    top = round((resized.height - 32) / 2)
    expected = np.asarray(resized.crop((left, top, left + 32, top + 32)))
    found = transforms.EvalTransform(32, crop_ratio=crop_ratio)(image, rng())
    assert found.shape == (32, 32, 3)
    np.testing.assert_array_equal(found, expected)


def test_eval_holds_no_long_thin_picture():
    image = Image.new("RGB", (1, 60_000), (9, 8, 7))
    found = transforms.EvalTransform(32)(image, rng())
    np.testing.assert_array_equal(found, np.full((32, 32, 3), (9, 8, 7)))


def test_eval_applies_ops_before_the_resize(picture):
    sizes = []

    def op(image, generator):
        sizes.append(image.size)
        return Image.new("RGB", image.size, int(generator.integers(256)))

    found = transforms.EvalTransform(32, ops=(op,))(picture, rng(5))
    assert sizes == [picture.size]
    assert (found == found[0, 0]).all()


def test_random_crop_boxes_have_the_stated_distribution():
    """Area uniform, log ratio uniform, place uniform: means within 5 deviations."""
    boxes = np.array(
        [
            transforms.random_crop_box(
                (400, 400), rng(i), area=(0.08, 0.5), ratio=(3 / 4, 4 / 3)
            )
            for i in range(2000)
        ]
    )
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0
    assert boxes.max() <= 400
    area = width * height / 400**2
    ratio = np.log(width / height)
    bound = 5 / math.sqrt(2000)  # In standard deviations of one draw.
    assert abs(area.mean() - 0.29) < bound * 0.42 / math.sqrt(12)
    assert abs(ratio.mean()) < bound * 2 * math.log(4 / 3) / math.sqrt(12)
    assert abs(area.std() - 0.42 / math.sqrt(12)) < 0.01
    place = boxes[:, 0] / (400 - width)
    assert abs(place.mean() - 0.5) < bound / math.sqrt(12)
    assert ratio.min() > math.log(3 / 4) - 0.02
    assert ratio.max() < math.log(4 / 3) + 0.02


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1, 1), (0, 0, 1, 1)),
        ((1000, 3), (498, 0, 502, 3)),  # Ratio 4/3 of 3 pixels.
        ((3, 1000), (0, 498, 3, 502)),
    ],
)
def test_random_crop_falls_back_to_the_centre(size, expected):
    area, ratio = (0.9, 1.0), (3 / 4, 4 / 3)
    assert transforms.random_crop_box(size, rng(), area=area, ratio=ratio) == expected


def test_random_crop_draws_the_same_number_for_every_picture():
    after = []
    for size in ((400, 400), (1, 1), (1000, 3)):
        generator = rng(3)
        transforms.random_crop_box(
            size, generator, area=(0.08, 1.0), ratio=(3 / 4, 4 / 3)
        )
        after.append(generator.random())
    assert after[0] == after[1] == after[2]


def test_train_is_crop_resize_flip(picture):
    seen = set()
    for seed in range(12):
        generator = rng(seed)
        box = transforms.random_crop_box(
            picture.size, generator, area=(0.08, 1.0), ratio=(3 / 4, 4 / 3)
        )
        flipped = bool(generator.random() < 0.5)
        expected = picture.crop(box).resize((32, 32), Image.BICUBIC)
        if flipped:
            expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        found = transforms.TrainTransform(32)(picture, rng(seed))
        np.testing.assert_array_equal(found, np.asarray(expected))
        seen.add(flipped)
    assert seen == {True, False}


def test_train_applies_ops_in_order_after_the_flip(picture):
    def paint(value):
        return lambda image, generator: Image.new("RGB", image.size, (value, 0, 0))

    found = transforms.TrainTransform(16, ops=(paint(3), paint(4)))(picture, rng())
    np.testing.assert_array_equal(found, np.full((16, 16, 3), (4, 0, 0)))


def test_shift_moves_by_at_most_shift_and_fills_with_zeros():
    image = Image.fromarray(np.full((8, 8), 255, np.uint8))
    transform = transforms.ShiftTransform(8, channels=1, shift=2, flip=0.0)
    offsets = set()
    for seed in range(200):
        lit = transform(image, rng(seed))[..., 0] == 255
        rows, columns = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
        assert lit.sum() == rows.size * columns.size
        # Zeros come in above where the picture moves down, and so on.
        down = rows[0] if rows[0] else rows[-1] - 7
        right = columns[0] if columns[0] else columns[-1] - 7
        offsets.add((int(down), int(right)))
    assert offsets == {(d, r) for d in range(-2, 3) for r in range(-2, 3)}


def test_shift_zero_without_flip_only_resizes(picture):
    found = transforms.ShiftTransform(32, shift=0, flip=0.0)(picture, rng())
    np.testing.assert_array_equal(found, np.asarray(picture.resize((32, 32), 3)))


@pytest.mark.parametrize(
    "transform",
    [
        transforms.TrainTransform(24),
        transforms.ShiftTransform(24),
        transforms.EvalTransform(24),
    ],
)
def test_every_transform_is_a_picklable_function_of_the_seed(picture, transform):
    again = pickle.loads(pickle.dumps(transform))
    first, second = transform(picture, rng(1)), again(picture, rng(1))
    assert first.dtype == np.uint8
    assert first.shape == transform.shape == (24, 24, 3)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_are_as_asked(picture, mode, channels):
    for kind in (
        transforms.TrainTransform,
        transforms.ShiftTransform,
        transforms.EvalTransform,
    ):
        found = kind(16, channels=channels)(picture.convert(mode), rng())
        assert found.shape == (16, 16, channels)
        if channels == 3 and mode == "L":
            assert (found == found[..., :1]).all()


def test_interpolation_is_used(picture):
    soft = transforms.EvalTransform(64, crop_ratio=1.0, interpolation="bilinear")
    assert (soft(picture, rng()) != transforms.EvalTransform(64)(picture, rng())).any()


@pytest.mark.parametrize("span", [(), (0.5,), (0.9, 0.1), (0.0, 1.0), (1.0, math.inf)])
@pytest.mark.parametrize("name", ["area", "ratio"])
def test_what_is_no_range_is_refused(name, span):
    with pytest.raises(ValueError, match=rf"{name}=.* is no range; give the least"):
        transforms.TrainTransform(8, **{name: span})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size=0"),
        ({"size": 8, "channels": 2}, "channels=2"),
        ({"size": 8, "interpolation": "cubic"}, "'cubic' is unknown"),
        ({"size": 8, "crop_ratio": 1.5}, "crop_ratio=1.5"),
    ],
)
def test_bad_fields_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        transforms.EvalTransform(**options)
