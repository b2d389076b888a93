"""Blurs by what they do to a point, an edge and a picture of numbered pixels."""

import numpy as np
import pytest
from reference import corruptions as reference
from scipy import ndimage

from lvb.data import corruptions_blur as blur

RNG = np.random.default_rng


def a_point(size=41):
    image = np.zeros((size, size, 3))
    image[size // 2, size // 2] = 1
    return image


@pytest.mark.parametrize(("radius", "alias_blur"), [(3, 0.1), (4, 0.5), (10, 0.5)])
def test_defocus_of_a_point_is_the_disk(radius, alias_blur):
    kernel = blur.disk(radius, alias_blur)
    reach = 8 if radius <= 8 else radius
    assert kernel.shape == (2 * reach + 1,) * 2
    np.testing.assert_allclose(kernel, reference.disk(radius, alias_blur), atol=1e-15)
    np.testing.assert_allclose(kernel, kernel.T, atol=1e-15)
    # Radius 10 fills its kernel; what mirrors at the border adds one per cent.
    assert kernel.sum() == pytest.approx(1, abs=0.011 if radius == 10 else 1e-12)
    # Softening widens the disk by its reach at most, 2 pixels.
    assert np.pi * (radius - 1) ** 2 < (kernel > 0.1 * kernel.max()).sum()
    assert (kernel > 1e-9).sum() < np.pi * (radius + 3) ** 2
    image = blur.defocus_blur(a_point(), RNG(0), radius=radius, alias_blur=alias_blur)
    middle = slice(20 - reach, 20 + reach + 1)
    np.testing.assert_allclose(image[middle, middle, 1], kernel, atol=1e-12)


@pytest.mark.parametrize("angle", [0, 30, -45, 90, -135])
def test_smear_walks_along_the_angle(angle):
    smeared = blur.smear(a_point(61), 8, sigma=5, angle=angle)[..., 0]
    assert smeared.sum() == pytest.approx(1)
    rows, columns = np.nonzero(smeared)
    # A pixel reads what lies ahead of it, so a point shows behind itself.
    behind = np.radians(angle)
    along = -(columns - 30) * np.cos(behind) - (rows - 30) * np.sin(behind)
    across = (columns - 30) * np.sin(behind) - (rows - 30) * np.cos(behind)
    assert along.min() == pytest.approx(0, abs=1)
    assert along.max() == pytest.approx(16, abs=1)
    assert np.abs(across).max() <= 1
    # Of a half Gaussian of sigma 5 cut at 16, the mean is 3.98.
    assert smeared[rows, columns] @ along == pytest.approx(3.7, abs=0.6)


def test_smear_of_one_channel():
    image = RNG(0).random((20, 30))
    flat = blur.smear(image, 4, sigma=2, angle=20)
    deep = blur.smear(np.stack([image] * 3, -1), 4, sigma=2, angle=20)
    np.testing.assert_array_equal(deep[..., 2], flat)


@pytest.mark.parametrize("factor", [1.0, 1.01, 1.12, 1.3, 2.5, 4.5])
@pytest.mark.parametrize("size", [64, 65])
def test_zoom_equals_crop_zoom_and_trim(size, factor):
    image = RNG(1).random((size, size, 3))
    expected = reference.clipped_zoom(image, factor)
    np.testing.assert_allclose(blur.clipped_zoom(image, factor), expected, atol=1e-12)
    np.testing.assert_array_equal(
        blur.clipped_zoom(image[..., 0], factor),
        blur.clipped_zoom(image, factor)[..., 0],
    )


def test_zoom_by_one_is_the_image():
    image = RNG(2).random((30, 50, 3))
    np.testing.assert_allclose(blur.clipped_zoom(image, 1.0), image, atol=1e-15)


def test_glass_takes_colours_from_nearby():
    """Pixels numbered by their place: nothing moves further than its chain allows."""
    size, delta = 40, 3
    numbers = np.arange(size * size)
    source = blur._glass_source(size, size, max_delta=delta, rng=RNG(3))
    row, column = np.divmod(numbers, size)
    moved = source != numbers
    border = (row <= delta) | (column <= delta)
    border |= (row > size - delta) | (column > size - delta)
    assert not moved[border].any()
    assert moved[~border].mean() > 0.9
    # A pixel visited first takes its neighbour's old colour: at most delta away.
    last = (size - delta) * size + (size - delta)
    assert np.abs(row[source[last]] - row[last]) <= delta
    assert np.abs(column[source[last]] - column[last]) <= delta


def test_glass_equals_a_loop_over_pixels():
    """Copies in the order of the visit, for shapes that are no squares too."""
    for shape, delta in (((30, 44), 1), ((25, 25), 4)):
        source = blur._glass_source(*shape, max_delta=delta, rng=RNG(4))
        expected = np.arange(shape[0] * shape[1]).reshape(shape)
        rows = range(shape[0] - delta, delta, -1)
        columns = range(shape[1] - delta, delta, -1)
        offsets = RNG(4).integers(-delta, delta, size=(len(rows), len(columns), 2))
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                dx, dy = offsets[i, j]
                expected[row, column] = expected[row + dy, column + dx]
        np.testing.assert_array_equal(source, expected.ravel())


def test_gaussian_is_scipys():
    image = RNG(5).random((20, 24, 3))
    ours = blur.gaussian_blur(image, RNG(0), sigma=2)
    for channel in range(3):
        expected = ndimage.gaussian_filter(image[..., channel], 2, mode="nearest")
        np.testing.assert_allclose(ours[..., channel], expected, atol=1e-14)
