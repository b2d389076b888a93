"""Sweeps: a config's `get_hyper(hyper)` combines these into a list of overrides.

    def get_hyper(hyper):
        return hyper.product([
            hyper.sweep("config.seed", (0, 1, 2)),
            hyper.zipit([
                hyper.sweep("config.model.name", ("lsnet_t", "lsnet_s")),
                hyper.sweep("config.batch_size", (512, 256)),
            ]),
        ])

Each override is a flat dict such as {"config.seed": 0, "config.batch_size": 512}. A
name without "config." is a switch of the config's argument: {"row": "no_lkp"} stands
for `--config FILE:row=no_lkp`.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

Overrides = list[dict[str, Any]]


def sweep(name: str, values: Iterable[Any]) -> Overrides:
    """One run per value of a leaf, such as "config.seed"."""
    return [{name: value} for value in values]


def fixed(name: str, value: Any) -> Overrides:
    """A single run with a leaf set; for use inside `product`."""
    return sweep(name, [value])


def product(sweeps: Sequence[Overrides]) -> Overrides:
    """Every combination; the last sweep varies fastest."""
    return [_merge(combination) for combination in itertools.product(*sweeps)]


def zipit(sweeps: Sequence[Overrides]) -> Overrides:
    """The i-th runs of all sweeps together.

    Raises:
      ValueError: if the sweeps differ in length; one of length 1 is repeated.
    """
    length = max((len(runs) for runs in sweeps), default=0)
    if any(len(runs) not in (1, length) for runs in sweeps):
        raise ValueError(
            f"hyper.zipit: sweeps of lengths {[len(runs) for runs in sweeps]} do not "
            "pair up; give each the same number of values, or one."
        )
    repeated = [runs * length if len(runs) == 1 else runs for runs in sweeps]
    return [_merge(runs) for runs in zip(*repeated, strict=True)]


def chain(sweeps: Sequence[Overrides]) -> Overrides:
    """The runs of all sweeps, one after another."""
    return list(itertools.chain(*sweeps))


def _merge(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for part in parts:
        both = merged.keys() & part.keys()
        if both:
            raise ValueError(
                f"hyper: {sorted(both)[0]!r} is swept twice in one run; keep one sweep."
            )
        merged.update(part)
    return merged
