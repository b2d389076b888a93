"""Mixup and CutMix: exact areas, targets that sum to one, the stated distributions.

Keys are fixed, so nothing flickers; FALSE_ALARM is the chance that a correct
implementation would fail a distribution test under another key.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import mixup as reference
from scipy import stats

from lvb.ops import mixup

FALSE_ALARM = 1e-4
HEIGHT, WIDTH = 12, 10
RECIPE = dict(mixup_alpha=0.8, cutmix_alpha=1.0)
NUM_DRAWS = 2000


@functools.cache
def draws(**options):
    """Weights (N, H, W) and lambdas (N,) of many keys."""
    one = functools.partial(
        mixup.mixing_weights, height=HEIGHT, width=WIDTH, **{**RECIPE, **options}
    )
    keys = jax.random.split(jax.random.key(0), NUM_DRAWS)
    weights, lam = jax.jit(jax.vmap(one))(keys)
    return np.asarray(weights), np.asarray(lam)


def is_cutmix(weights):
    """True where the weights are 0 or 1 only and some are 0."""
    return (np.isin(weights, (0.0, 1.0)).all(axis=(1, 2))) & (weights.min((1, 2)) == 0)


def test_lambda_is_the_exact_area():
    weights, lam = draws()
    chosen = is_cutmix(weights)
    share = weights[chosen].sum(axis=(1, 2)) / (HEIGHT * WIDTH)
    # Both are a ratio of small integers, rounded to float32 once or twice.
    np.testing.assert_allclose(lam[chosen], share, rtol=0, atol=2e-7)
    flat = weights[~chosen]
    assert (flat == flat[:, :1, :1]).all()
    np.testing.assert_array_equal(flat[:, 0, 0], lam[~chosen])


def test_cutmix_boxes_are_rectangles_with_even_sides_unless_clipped():
    weights, _ = draws(mixup_alpha=0.0)
    num_inner = 0
    for inside in weights == 0.0:
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        assert inside.sum() == len(rows) * len(columns)
        if not len(rows):
            continue
        if rows[0] > 0 and rows[-1] < HEIGHT - 1:
            assert len(rows) % 2 == 0
            num_inner += 1
        if columns[0] > 0 and columns[-1] < WIDTH - 1:
            assert len(columns) % 2 == 0
    assert num_inner > 100


def test_mixup_lambda_is_beta():
    _, lam = draws(cutmix_alpha=0.0)
    assert stats.kstest(lam, stats.beta(0.8, 0.8).cdf).pvalue > FALSE_ALARM


def test_cutmix_boxes_are_distributed_as_the_reference():
    weights, lam = draws(mixup_alpha=0.0)
    rng = np.random.default_rng(1)
    options = dict(height=HEIGHT, width=WIDTH, alpha=1.0)
    expected = np.array(
        [reference.cutmix_mask(rng, **options) for _ in range(NUM_DRAWS)]
    )
    shares = 1.0 - expected.mean(axis=(1, 2))
    # Whole pixels: equal shares must compare equal in both samples.
    ours, theirs = (np.rint(x * HEIGHT * WIDTH) for x in (lam, shares))
    assert stats.ks_2samp(ours, theirs).pvalue > FALSE_ALARM
    for axis in (1, 2):  # first pasted row or column, and the last
        for flip in (1, -1):
            edges = [
                m.any(3 - axis)[:, ::flip].argmax(1) for m in (weights == 0.0, expected)
            ]
            assert stats.ks_2samp(*edges).pvalue > FALSE_ALARM


@pytest.mark.parametrize("switch_prob", [0.5, 0.2])
def test_switches_between_the_two(switch_prob):
    weights, lam = draws(switch_prob=switch_prob)
    # CutMix boxes of no pixel at all look like no mixing: lambda is exactly 1.
    cutmix = (is_cutmix(weights) | (lam == 1.0)).sum()
    assert stats.binomtest(int(cutmix), NUM_DRAWS, switch_prob).pvalue > FALSE_ALARM


def test_mixes_with_the_stated_probability():
    _, lam = draws(prob=0.3, cutmix_alpha=0.0)
    mixed = int((lam != 1.0).sum())
    assert stats.binomtest(mixed, NUM_DRAWS, 0.3).pvalue > FALSE_ALARM


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(8, HEIGHT, WIDTH, 3)).astype(np.float32)
    targets = rng.dirichlet(np.ones(5), size=8).astype(np.float32)
    return jnp.asarray(images), jnp.asarray(targets)


@functools.cache
def mixer(**options):
    options = {**RECIPE, **options}

    @jax.jit
    def mix(key, images, targets):
        return mixup.mixup_or_cutmix(key, images, targets=targets, **options)

    return mix


@pytest.mark.parametrize("seed", range(6))
def test_targets_sum_to_one(batch, seed):
    mixed, targets = mixer()(jax.random.key(seed), *batch)
    assert mixed.shape == batch[0].shape
    assert mixed.dtype == targets.dtype == jnp.float32
    np.testing.assert_allclose(targets.sum(-1), 1.0, rtol=0, atol=5e-7)


def test_mixup_equals_the_reference(batch):
    images, _ = batch
    # One class per image: a target shows the lambda it was mixed with.
    mixed, mixed_targets = mixer(cutmix_alpha=0.0)(jax.random.key(2), images, np.eye(8))
    lam = float(mixed_targets[0, 0])
    expected, expected_targets = reference.blend(
        np.asarray(images, np.float64), np.eye(8), lam=lam
    )
    assert 0.01 < lam < 0.99
    np.testing.assert_allclose(mixed, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(mixed_targets, expected_targets, rtol=0, atol=1e-6)


def test_cutmix_pastes_whole_pixels(batch):
    images, _ = batch
    mixed, targets = mixer(mixup_alpha=0.0)(jax.random.key(4), images, jnp.eye(8))
    own = np.asarray((mixed == images).all(-1))  # (B, H, W)
    partner = np.asarray((mixed == images[::-1]).all(-1))
    assert (own ^ partner).all()
    assert (own == own[:1]).all()  # one box for the whole batch
    np.testing.assert_allclose(
        own.mean((1, 2)), np.diagonal(targets), rtol=0, atol=1e-6
    )
    assert 0 < own.mean() < 1


def test_groups_mix_within_themselves_and_draw_their_own(batch):
    _, targets = mixer(num_groups=2)(jax.random.key(6), batch[0], jnp.eye(8))
    off_diagonal = np.argwhere(np.asarray(targets) * (1 - np.eye(8)) > 0)
    assert {tuple(pair) for pair in off_diagonal} <= {
        (i, 3 - i) if i < 4 else (i, 11 - i) for i in range(8)
    }
    assert targets[0, 0] != targets[4, 4]


def test_same_key_same_bits_and_other_key_other_bits(batch):
    first = mixer()(jax.random.key(1), *batch)
    again = mixer()(jax.random.key(1), *batch)
    other = mixer()(jax.random.key(2), *batch)
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])


def test_devices_agree(batch):
    mesh = jax.make_mesh((8,), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.P("data"))
    whole = mixer()(jax.random.key(3), *batch)
    split = mixer()(jax.random.key(3), *jax.device_put(batch, sharding))
    for ours, theirs in zip(split, whole, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_bfloat16_images_keep_their_type(batch):
    mixed, targets = jax.eval_shape(
        mixer(), jax.random.key(0), batch[0].astype(jnp.bfloat16), batch[1]
    )
    assert (mixed.dtype, targets.dtype) == (jnp.bfloat16, jnp.float32)


@pytest.mark.parametrize(
    "off", [dict(mixup_alpha=0.0, cutmix_alpha=0.0), dict(prob=0.0)], ids=str
)
def test_off_changes_nothing(batch, off):
    # Nor need the batch split into the groups of the recipe.
    options = {**RECIPE, "num_groups": 3, **off}
    mixed, targets = mixup.mixup_or_cutmix(
        jax.random.key(0), batch[0], targets=batch[1], **options
    )
    assert mixed is batch[0]
    np.testing.assert_array_equal(targets, batch[1])


def test_refuses_bytes_and_uneven_groups(batch):
    images, targets = batch
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="images are uint8; normalise them first"):
        mixup.mixup_or_cutmix(key, images.astype(jnp.uint8), targets=targets, **RECIPE)
    with pytest.raises(ValueError, match="batch of 8 does not split into num_groups=3"):
        mixup.mixup_or_cutmix(key, images, targets=targets, num_groups=3, **RECIPE)
