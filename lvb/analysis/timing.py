"""Timing several contenders in one run, so that they see the same noise."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


class Timing(NamedTuple):
    """Seconds per call over the rounds of one contender."""

    median: float
    minimum: float
    p5: float
    p95: float
    rounds: int


def interleave(
    contenders: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    warmup: int = 2,
    calls: int | Mapping[str, int] = 1,
) -> dict[str, list[float]]:
    """Times functions in turns: A, B, C, A, B, C, ...

    Each round starts with the next contender, so that none always follows the same one.

    Args:
      contenders: functions without arguments by name. What they return is waited for.
      rounds: measured turns of each.
      warmup: turns of each before the first measured one.
      calls: calls per turn, of all or of each; their mean counts as one measurement.

    Returns:
      Seconds per call of every measured turn, by name.
    """
    names = list(contenders)
    for _ in range(warmup):
        for name in names:
            jax.block_until_ready(contenders[name]())
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            number = calls if isinstance(calls, int) else calls[name]
            times[name].append(_seconds(contenders[name], number))
    return times


def calls_per_turn(
    contenders: Mapping[str, Callable[[], Any]], *, seconds: float
) -> dict[str, int]:
    """How often each may be called in a turn of some length, once at least.

    Args:
      contenders: as for `interleave`; each is called twice.
      seconds: length of a turn.
    """
    return {
        name: max(1, int(seconds / min(_seconds(call, 1) for _ in range(2))))
        for name, call in contenders.items()
    }


def _seconds(call: Callable[[], Any], number: int) -> float:
    """Seconds per call of so many calls in a row."""
    start = time.perf_counter()
    for _ in range(number):
        result = call()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / number


def summarise(seconds: Sequence[float]) -> Timing:
    """Median, minimum and 5th and 95th percentile of measurements."""
    low, high = np.percentile(seconds, (5, 95))
    return Timing(
        median=float(np.median(seconds)),
        minimum=float(min(seconds)),
        p5=float(low),
        p95=float(high),
        rounds=len(seconds),
    )


def ratio(ours: Sequence[float], peers: Sequence[float]) -> Timing:
    """How many times faster `ours` is, round by round: peer seconds / our seconds.

    Args:
      ours: seconds of each round.
      peers: seconds of the same rounds.
    """
    return summarise([b / a for a, b in zip(ours, peers, strict=True)])
