"""RandAugment draws what its policy string says.

The draws are seeded, so these tests do not flicker; the stated false-alarm rates are
the odds that a correct implementation would fail under another seed.
"""

import collections
import math
import pickle

import numpy as np
import pytest
from PIL import Image
from reference import augment as reference
from scipy import stats

from lvb.data import auto_ops, rand_augment

POLICY = "rand-m9-mstd0.5-inc1"
FALSE_ALARM = 1e-4


@pytest.fixture(scope="module")
def photograph(shared_data):
    folder = shared_data / "imagenet_samples" / "images"
    with Image.open(folder / "n01582220_magpie.JPEG") as image:
        return image.convert("RGB").resize((32, 24))


@pytest.fixture
def applied(monkeypatch):
    """Records every operation applied, instead of applying it."""
    records = []

    def record(image, operation, *, magnitude, sign, warp):
        records.append((operation, magnitude, sign, warp))
        return image

    monkeypatch.setattr(auto_ops, "apply_operation", record)
    return records


def draw(policy, *, count, **options):
    augment = rand_augment.RandAugment(rand_augment.parse_policy(policy), **options)
    image = Image.new("RGB", (2, 2))
    for seed in range(count):
        augment(image, np.random.default_rng((3, seed)))


def test_parses_the_papers_policy():
    policy = rand_augment.parse_policy(POLICY)
    assert policy == rand_augment.Policy(
        magnitude=9.0, num_ops=2, magnitude_std=0.5, max_magnitude=10.0, increasing=True
    )
    assert policy.prob == 0.5


def test_parses_every_section_in_any_order():
    policy = rand_augment.parse_policy("rand-inc0-p0.8-n3-mmax12-mstd101-m11")
    assert policy == rand_augment.Policy(
        magnitude=11.0,
        num_ops=3,
        magnitude_std=math.inf,
        max_magnitude=12.0,
        prob=0.8,
        increasing=False,
    )
    assert rand_augment.parse_policy("rand") == rand_augment.Policy()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("augmix-m5", "does not begin with 'rand'"),
        ("rand-w0", "section 'w0' of 'rand-w0' is unknown; known are m, n, mstd"),
        ("rand-m", "section 'm'"),
        ("rand-m9-m8", "gives 'm' twice"),
        ("rand-inc2", "inc in 'rand-inc2' must be 0 or 1"),
        ("rand-n0", "n in 'rand-n0' must be a positive whole number"),
        ("rand-n1.5", "positive whole number"),
        ("rand-n99999999", "n in 'rand-n99999999' is more than 100"),
        ("rand-m101", "m in 'rand-m101' is more than 100, where 10 is the full"),
        ("rand-mmax1000", "mmax in 'rand-mmax1000' is more than 100"),
        ("rand-p1.5", r"p in 'rand-p1.5' must lie in \[0, 1\]"),
    ],
)
def test_refuses(text, message):
    with pytest.raises(ValueError, match=message):
        rand_augment.parse_policy(text)


def test_refuses_an_unknown_filter():
    with pytest.raises(ValueError, match="interpolation='nearest' is unknown"):
        rand_augment.RandAugment(rand_augment.Policy(), interpolation="nearest")


def test_operations_are_drawn_evenly_and_half_are_applied(applied):
    count = 3000
    draw(POLICY, count=count)
    assert stats.binomtest(len(applied), 2 * count, 0.5).pvalue > FALSE_ALARM
    tally = collections.Counter(id(operation) for operation, *_ in applied)
    assert set(tally) == {id(op) for op in auto_ops.INCREASING.values()}
    assert stats.chisquare(list(tally.values())).pvalue > FALSE_ALARM
    signs = sum(sign > 0 for _, _, sign, _ in applied)
    assert stats.binomtest(signs, len(applied), 0.5).pvalue > FALSE_ALARM


def test_magnitudes_are_a_clipped_normal(applied):
    draw(POLICY, count=3000)
    magnitudes = np.array([magnitude for _, magnitude, *_ in applied])
    assert magnitudes.max() == 10.0
    clipped = int((magnitudes == 10.0).sum())
    upper = stats.norm(9, 0.5).sf(10.0)  # 2.3 % lie beyond
    assert stats.binomtest(clipped, len(magnitudes), upper).pvalue > FALSE_ALARM
    below = magnitudes[magnitudes < 10.0]
    law = stats.truncnorm(-np.inf, 2.0, loc=9, scale=0.5)
    assert stats.kstest(below, law.cdf).pvalue > FALSE_ALARM


def test_infinite_spread_is_uniform(applied):
    draw("rand-m8-mstdinf-p1", count=1000)
    magnitudes = [magnitude for _, magnitude, *_ in applied]
    assert len(magnitudes) == 2000
    assert stats.kstest(magnitudes, stats.uniform(0, 8).cdf).pvalue > FALSE_ALARM


def test_magnitudes_without_spread_are_constant(applied):
    draw("rand-m15-n1-p1", count=20)
    assert {magnitude for _, magnitude, *_ in applied} == {10.0}  # as timm clips
    applied.clear()
    draw("rand-m15-n1-p1-mmax20", count=20)
    assert {magnitude for _, magnitude, *_ in applied} == {15.0}


def test_filters(applied):
    draw(POLICY, count=200)
    assert {warp.resample for *_, warp in applied} == {Image.Resampling.BICUBIC}
    assert {warp.fill for *_, warp in applied} == {(124, 116, 104)}
    applied.clear()
    draw(POLICY, count=2000, interpolation="random")
    bilinear = sum(w.resample == Image.Resampling.BILINEAR for *_, w in applied)
    assert stats.binomtest(bilinear, len(applied), 0.5).pvalue > FALSE_ALARM


def test_equals_the_operations_it_drew(photograph):
    """Plays the recorded draws through the NumPy definitions."""
    augment = rand_augment.RandAugment(rand_augment.parse_policy(POLICY))
    names = {id(op): name for name, op in auto_ops.INCREASING.items()}
    original, num_applied = auto_ops.apply_operation, 0
    for seed in range(12):
        steps = []

        def record(image, operation, *, magnitude, sign, warp, steps=steps):
            out = original(image, operation, magnitude=magnitude, sign=sign, warp=warp)
            steps.append((image, operation, magnitude, sign, out))
            return out

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(auto_ops, "apply_operation", record)
            result = augment(photograph, np.random.default_rng(seed))
        assert result is (steps[-1][-1] if steps else photograph)
        for image, operation, magnitude, sign, out in steps:
            name = names[id(operation)]
            argument = reference.INCREASING_ARGUMENTS[name]
            expected = reference.operation(
                np.asarray(image),
                name,
                argument=None if argument is None else argument(magnitude / 10, sign),
                fill=augment.fill,
                interpolation="bicubic",
            )
            # One grey level for the fraction that Pillow cuts off.
            assert np.abs(np.asarray(out) - expected).max() <= 1.0
            num_applied += 1
    assert num_applied >= 6


def test_depends_on_image_and_generator_only(photograph):
    augment = rand_augment.RandAugment(rand_augment.parse_policy(POLICY))
    copy = pickle.loads(pickle.dumps(augment))
    before = np.asarray(photograph).copy()
    distinct = set()
    for seed in range(8):
        first = augment(photograph, np.random.default_rng(seed)).tobytes()
        assert copy(photograph, np.random.default_rng(seed)).tobytes() == first
        distinct.add(first)
    assert len(distinct) > 4
    np.testing.assert_array_equal(photograph, before)
