"""The timing loop: order, warm-up, statistics. Nothing here depends on a clock."""

import pytest

from lvb.analysis import timing


def test_contenders_take_turns_and_the_first_changes():
    calls = []
    times = timing.interleave(
        {name: lambda name=name: calls.append(name) for name in "ab"},
        rounds=3,
        warmup=1,
        calls=2,
    )
    assert "".join(calls) == "ab" + "aabb" + "bbaa" + "aabb"
    assert [len(times[name]) for name in "ab"] == [3, 3]
    assert min(min(values) for values in times.values()) >= 0


def test_each_contender_may_have_a_number_of_calls():
    calls = []
    timing.interleave(
        {name: lambda name=name: calls.append(name) for name in "ab"},
        rounds=1,
        warmup=0,
        calls={"a": 3, "b": 1},
    )
    assert "".join(calls) == "aaab"


def test_short_calls_are_repeated(monkeypatch):
    clock = iter([0.0, 0.5, 0.5, 0.75])  # Two calls: 0.5 and 0.25 seconds.
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    assert timing.calls_per_turn({"a": lambda: None}, seconds=1.1) == {"a": 4}


def test_long_calls_happen_once(monkeypatch):
    clock = iter([0.0, 5.0, 5.0, 10.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    assert timing.calls_per_turn({"a": lambda: None}, seconds=1.0) == {"a": 1}


def test_summary_of_known_values():
    summary = timing.summarise([3.0, 1.0, 2.0, 4.0, 100.0])
    assert summary.median == 3.0
    assert summary.minimum == 1.0
    assert summary.p5 == pytest.approx(1.2)
    assert summary.p95 == pytest.approx(80.8)
    assert summary.rounds == 5


def test_ratio_pairs_the_rounds():
    # Twice as fast in every round, whatever the noise they share.
    assert timing.ratio([1.0, 10.0, 2.0], [2.0, 20.0, 4.0]).median == 2.0


def test_ratio_needs_equal_rounds():
    with pytest.raises(ValueError, match="longer"):
        timing.ratio([1.0], [1.0, 2.0])
