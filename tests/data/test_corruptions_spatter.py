"""Spatter: its edge detector against loops, and what water and mud do."""

import numpy as np
import pytest
from scipy import ndimage

from lvb.data import corruptions_spatter as spatter

RNG = np.random.default_rng


def slow_canny(image, low, high):
    """Sobel, thinning along the gradient and hysteresis, pixel by pixel."""
    padded = np.pad(image, 1, mode="edge")
    height, width = image.shape
    dx, dy = np.zeros(image.shape), np.zeros(image.shape)
    for i in range(height):
        for j in range(width):
            around = padded[i : i + 3, j : j + 3]
            dx[i, j] = (around[:, 2] - around[:, 0]) @ [1, 2, 1]
            dy[i, j] = (around[2] - around[0]) @ [1, 2, 1]
    size = np.pad(np.abs(dx) + np.abs(dy), 1)
    thin = np.zeros(image.shape, bool)
    for i in range(height):
        for j in range(width):
            x, y, own = dx[i, j], dy[i, j], size[i + 1, j + 1]
            if abs(y) <= np.tan(np.pi / 8) * abs(x):
                step = (0, 1)
            elif abs(y) >= np.tan(3 * np.pi / 8) * abs(x):
                step = (1, 0)
            else:
                step = (1, 1) if x * y >= 0 else (1, -1)
            before = size[i + 1 - step[0], j + 1 - step[1]]
            after = size[i + 1 + step[0], j + 1 + step[1]]
            thin[i, j] = own > low and own > before and own >= after
    strong = thin & (size[1:-1, 1:-1] > high)
    while True:  # Grow along connected thin pixels.
        grown = ndimage.binary_dilation(strong, np.ones((3, 3))) & thin
        if (grown == strong).all():
            return strong
        strong = grown


@pytest.mark.parametrize("seed", range(3))
def test_canny_equals_loops(seed):
    noise = RNG(seed).normal(size=(40, 33))
    image = np.floor(np.clip(ndimage.gaussian_filter(noise, 2) * 600, 0, 255))
    ours = spatter.canny_edges(image, low=50, high=150)
    np.testing.assert_array_equal(ours, slow_canny(image, 50, 150))
    assert 0 < ours.sum() < 0.5 * ours.size


def test_edges_of_a_square_are_thin():
    image = np.zeros((30, 30))
    image[10:20, 10:20] = 200
    edges = spatter.canny_edges(image, low=50, high=150)
    assert edges[9:11, 15].sum() == 1
    assert edges[15, 19:21].sum() == 1
    assert not edges[12:18, 12:18].any()
    assert not spatter.canny_edges(image / 10, low=50, high=150).any()


def test_water_adds_pale_light():
    grey = np.full((96, 96, 3), 0.25)
    options = dict(loc=0.65, scale=0.3, sigma=4, threshold=0.69, strength=0.6)
    wet = spatter.spatter(grey, RNG(0), mud=False, **options)
    added = wet - grey
    assert added.min() >= 0
    # The brightest drop gets strength times the colour of water.
    np.testing.assert_allclose(added.max(axis=(0, 1)), 0.6 * spatter.WATER)
    # All light has that colour.
    np.testing.assert_allclose(
        added, added[..., 1:2] * spatter.WATER / spatter.WATER[1], atol=1e-12
    )
    assert 0.02 < (added[..., 0] > 0.05).mean() < 0.9


def test_dry_noise_leaves_the_image():
    image = RNG(1).random((32, 32, 3))
    options = dict(loc=0.0, scale=0.1, sigma=4, threshold=0.7, strength=0.6)
    for mud in (False, True):
        ours = spatter.spatter(image, RNG(0), mud=mud, **options)
        np.testing.assert_array_equal(ours, image)


def test_mud_covers():
    white = np.ones((96, 96, 3))
    options = dict(loc=0.65, scale=0.3, sigma=1, threshold=0.65, strength=1.5)
    dirty = spatter.spatter(white, RNG(2), mud=True, **options)
    covered = np.abs(dirty - 1).max(axis=-1) > 0
    assert 0.05 < covered.mean() < 0.9
    # Where it covers, it covers to at least 80 %.
    limit = 0.2 + 0.8 * spatter.MUD
    assert (dirty[covered] <= limit + 1e-12).all()


def test_equalising_spreads_the_levels():
    levels = RNG(3).integers(100, 120, (50, 50)).astype(np.uint8)
    ours = spatter._equalize(levels)
    assert ours.min() == 0
    assert ours.max() == 255
    # The share of pixels at or below a level becomes the level.
    order = np.argsort(levels.ravel(), kind="stable")
    assert (np.diff(ours.ravel()[order].astype(int)) >= 0).all()
    assert abs(ours.mean() - 127.5) < 15
    flat = np.full((4, 4), 9, np.uint8)
    np.testing.assert_array_equal(spatter._equalize(flat), flat)
