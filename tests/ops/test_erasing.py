"""Random erasing: one rectangle, the stated distributions, nothing else touched.

Keys are fixed, so nothing flickers; FALSE_ALARM is the chance that a correct
implementation would fail a distribution test under another key.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import erasing as reference
from scipy import stats

from lvb.ops import erasing

FALSE_ALARM = 1e-4
HEIGHT, WIDTH = 40, 32
AREA, ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)
NUM_DRAWS = 2000


@functools.cache
def rectangles(*, prob):
    """Drawn rectangles, (N, 4): top, left, height, width."""
    one = functools.partial(
        erasing.erased_rectangle,
        height=HEIGHT,
        width=WIDTH,
        prob=prob,
        area=AREA,
        aspect=ASPECT,
    )
    keys = jax.random.split(jax.random.key(0), NUM_DRAWS)
    return np.stack(jax.jit(jax.vmap(one))(keys), axis=-1)


@functools.cache
def eraser(*, prob=1.0, mode="pixel"):
    return jax.jit(functools.partial(erasing.random_erasing, prob=prob, mode=mode))


@pytest.fixture(scope="module")
def images():
    # Values that standard normal noise does not hit.
    return jnp.full((16, HEIGHT, WIDTH, 3), 100.0)


def test_rectangles_are_distributed_as_the_reference():
    ours = rectangles(prob=1.0)
    rng = np.random.default_rng(1)
    options = dict(height=HEIGHT, width=WIDTH, area=AREA, aspect=ASPECT)
    expected = np.array([reference.rectangle(rng, **options) for _ in range(NUM_DRAWS)])
    names = ("top", "left", "height", "width")
    for name, a, b in zip(names, ours.T, expected.T, strict=True):
        assert stats.ks_2samp(a, b).pvalue > FALSE_ALARM, name
    for name, a, b in (
        ("area", ours[:, 2] * ours[:, 3], expected[:, 2] * expected[:, 3]),
        ("bottom", ours[:, 0] + ours[:, 2], expected[:, 0] + expected[:, 2]),
        ("right", ours[:, 1] + ours[:, 3], expected[:, 1] + expected[:, 3]),
    ):
        assert stats.ks_2samp(a, b).pvalue > FALSE_ALARM, name


def test_rectangles_keep_their_bounds():
    top, left, height, width = rectangles(prob=1.0).T
    assert (height >= 1).all()
    assert (width >= 1).all()
    assert (height < HEIGHT).all()
    assert (width < WIDTH).all()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= HEIGHT).all()
    assert (left + width <= WIDTH).all()
    # Before rounding each side is off by at most half a pixel.
    largest = (height + 0.5) * (width + 0.5)
    smallest = (height - 0.5) * (width - 0.5)
    assert (largest >= AREA[0] * HEIGHT * WIDTH).all()
    assert (smallest <= AREA[1] * HEIGHT * WIDTH).all()
    assert ((height + 0.5) / (width - 0.5) >= ASPECT[0]).all()
    assert ((height - 0.5) / (width + 0.5) <= ASPECT[1]).all()
    # Placed up to the very border, on all four sides.
    assert top.min() == left.min() == 0
    assert (top + height).max() == HEIGHT
    assert (left + width).max() == WIDTH


def test_erases_with_the_stated_probability():
    erased = int((rectangles(prob=0.25)[:, 2] > 0).sum())
    assert stats.binomtest(erased, NUM_DRAWS, 0.25).pvalue > FALSE_ALARM


def test_erases_one_rectangle_per_image_each_its_own(images):
    changed = np.asarray((eraser()(jax.random.key(1), images) != images).any(-1))
    shapes = set()
    for mask in changed:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask.sum() == len(rows) * len(columns) > 0
        assert (np.diff(rows) == 1).all()
        assert (np.diff(columns) == 1).all()
        shapes.add((rows[0], columns[0], len(rows), len(columns)))
    assert len(shapes) == len(images)


def test_pixel_noise_is_standard_normal(images):
    erased = np.asarray(eraser()(jax.random.key(2), images))
    noise = erased[erased != 100.0]
    assert len(noise) > 1000
    assert stats.kstest(noise, stats.norm.cdf).pvalue > FALSE_ALARM
    neighbours = np.corrcoef(noise[:-1], noise[1:])[0, 1]
    # Independent: correlation has standard deviation 1 / sqrt(n); 4 of them are 6e-5.
    assert abs(neighbours) < 4 / np.sqrt(len(noise))


def test_modes(images):
    color = np.asarray(eraser(mode="color")(jax.random.key(3), images))
    zero = np.asarray(eraser(mode="zero")(jax.random.key(3), images))
    inside = zero == 0.0
    assert np.array_equal(inside, color != 100.0)
    colors = set()
    for image, mask in zip(color, inside, strict=True):
        values = image[mask].reshape(-1, 3)
        assert (values == values[0]).all()
        colors.add(tuple(values[0]))
    assert len(colors) == len(images)
    assert len(set(colors.pop())) == 3  # a colour, not a grey


def test_untouched_images_keep_their_bits(images):
    rng = np.random.default_rng(0)
    noisy = jnp.asarray(rng.normal(size=images.shape).astype(np.float32))
    erased = np.asarray(eraser(prob=0.5)(jax.random.key(4), noisy))
    same = (erased == np.asarray(noisy)).all((1, 2, 3))
    assert 0 < same.sum() < len(same)
    assert erasing.random_erasing(jax.random.key(0), noisy, prob=0.0) is noisy


def test_same_key_same_bits_and_other_key_other_bits(images):
    first = eraser()(jax.random.key(5), images)
    np.testing.assert_array_equal(first, eraser()(jax.random.key(5), images))
    assert not np.array_equal(first, eraser()(jax.random.key(6), images))


def test_keeps_bfloat16(images):
    out = jax.eval_shape(eraser(), jax.random.key(0), images.astype(jnp.bfloat16))
    assert (out.shape, out.dtype) == (images.shape, jnp.bfloat16)


def test_never_fits_a_strip():
    """No rectangle of at least one pixel lies strictly inside a single row."""
    strip = jnp.ones((4, 1, 64, 3))
    same = jax.jit(erasing.random_erasing, static_argnames="prob")(
        jax.random.key(0), strip, prob=1.0
    )
    np.testing.assert_array_equal(same, strip)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(mode="const"), "mode='const' is unknown; use pixel, color or zero"),
        (dict(prob=1.5), r"prob=1.5 is outside \[0, 1\]"),
        (dict(area=(0.5, 0.1)), "must rise within"),
        (dict(aspect=(0.0, 1.0)), "must be positive and rise"),
    ],
)
def test_refuses(images, options, message):
    with pytest.raises(ValueError, match=message):
        erasing.random_erasing(jax.random.key(0), images, **{"prob": 1.0, **options})


def test_refuses_bytes(images):
    with pytest.raises(ValueError, match="images are uint8; normalise them first"):
        erasing.random_erasing(jax.random.key(0), images.astype(jnp.uint8), prob=1.0)
