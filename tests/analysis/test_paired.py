"""Paired comparisons: against formulas, by coverage, and what is shown in bold."""

import math

import numpy as np
import pytest

from lvb.analysis import paired

# Quantiles of Student's t, from printed tables.
T_975_2 = 4.3027
T_975_4 = 2.7764


def by_seed(values):
    return dict(enumerate(values))


def test_interval_is_the_textbook_formula():
    ours, theirs = [3.0, 5.0, 4.0], [1.0, 2.0, 3.0]  # Differences 2, 3, 1: sd 1.
    result = paired.paired_difference(by_seed(ours), by_seed(theirs))
    half = T_975_2 / math.sqrt(3)
    assert result.count == 3
    assert result.mean == pytest.approx(2.0)
    assert result.low == pytest.approx(2.0 - half, abs=1e-4)
    assert result.high == pytest.approx(2.0 + half, abs=1e-4)
    # t = 2 sqrt(3) = 3.46 with 2 degrees of freedom: P = 1 - t / sqrt(t^2 + 2).
    assert result.p_value == pytest.approx(1 - math.sqrt(12 / 14), abs=1e-6)


def test_only_shared_seeds_count():
    ours = {0: 1.0, 1: 2.0, 7: 100.0}
    theirs = {0: 0.0, 1: 0.5, 3: -50.0}
    result = paired.paired_difference(ours, theirs)
    assert (result.count, result.mean) == (2, 1.25)
    nothing = paired.paired_difference({0: 1.0}, {1: 1.0})
    assert nothing.count == 0
    assert nothing.p_value == 1.0


def test_pairing_removes_what_the_seed_does_to_both():
    seeds = np.random.default_rng(0).normal(80.0, 5.0, size=5)
    noise = np.array([0.1, -0.1, 0.0, 0.05, -0.05])
    result = paired.paired_difference(by_seed(seeds + 1 + noise), by_seed(seeds))
    half = T_975_4 * np.std(noise, ddof=1) / math.sqrt(5)
    assert result.high - result.mean == pytest.approx(half, rel=1e-4)
    assert result.p_value < 1e-3


def test_one_seed_and_equal_differences_are_never_separated():
    one = paired.paired_difference({0: 99.0}, {0: 1.0})
    assert (one.low, one.high, one.p_value) == (-math.inf, math.inf, 1.0)
    ours, theirs = by_seed([0.9, 0.7, 0.4]), by_seed([0.8, 0.6, 0.3])
    equal = paired.paired_difference(ours, theirs)  # 0.1 up to rounding.
    assert equal.p_value == 1.0
    assert equal.low == equal.high == pytest.approx(0.1)


def test_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(2000):
        result = paired.paired_difference(
            by_seed(rng.normal(1.0, 1.0, 4)),
            by_seed(rng.normal(0.0, 1.0, 4)),
            level=0.9,
        )
        covered += result.low <= 1.0 <= result.high
    # Binomial: 1,800 +- 13.4; four standard errors are missed once in 16,000 seeds.
    assert abs(covered - 1800) < 54


def test_holm_on_a_worked_example():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, made monotone.
    assert paired.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx(
        [0.06, 0.04, 0.06, 0.06]
    )
    assert paired.holm([0.7, 0.8]) == [1.0, 1.0]
    assert paired.holm([]) == []


def test_table_bolds_only_what_is_separated():
    results = {
        "base": by_seed([70.0, 71.0, 72.0]),
        "better": by_seed([75.0, 76.1, 76.9]),
        "maybe": by_seed([70.5, 71.0, 74.0]),
        "once": {0: 90.0},
        "queued": {},
    }
    table = paired.comparison_table(results, baseline="base")
    rows = {line.split("|")[1].strip(): line for line in table.splitlines()[2:7]}
    assert "**+5.00 [+4.75, +5.25]**" in rows["better"]
    assert "71.00" in rows["base"]
    assert "baseline" in rows["base"]
    assert "+20.00 (one seed)" in rows["once"]
    assert [cell.strip() for cell in rows["queued"].split("|")[2:6]] == [*"0---"]
    for name in ("base", "maybe", "once", "queued"):
        assert "**" not in rows[name]


def test_many_settings_raise_the_bar():
    base, ours = by_seed([0.0, 0.0, 0.0]), by_seed([4.0, 5.0, 6.0])
    assert paired.paired_difference(ours, base).p_value == pytest.approx(
        0.0131, abs=1e-4
    )
    alone = paired.comparison_table({"base": base, "ours": ours}, baseline="base")
    assert "**" in alone
    noise = {f"n{i}": by_seed([0.1, -0.1, 0.05 * i]) for i in range(1, 5)}
    crowd = paired.comparison_table(
        {"base": base, "ours": ours, **noise}, baseline="base"
    )
    assert "**" not in crowd


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="no setting 'x'; there are a, b"):
        paired.comparison_table({"a": {}, "b": {}}, baseline="x")
    with pytest.raises(ValueError, match="level=95"):
        paired.paired_difference({}, {}, level=95)
