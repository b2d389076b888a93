"""What numbers the leaves of a config may hold, and what a tuple may hold at all.

A slip such as a decay of 2 or a million blocks is told before anything is opened, built
or traced. The ranges are wide: they keep out what cannot be meant, not what is unwise.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from lvb.config import names

_MANY = 2**31 - 1  # Steps and examples are counted in int32.
_SHARE = (0.0, 1.0)
_BELOW_ONE = (0.0, 1.0 - 2**-24)  # The float32 before 1.

# Leaf -> smallest and largest value, of each element where there are several.
LIMITS: dict[str, tuple[float, float]] = {
    "batch_size": (1, 2**24),
    "grad_accum": (1, 2**16),
    "log_every": (1, _MANY),
    "seed": (0, 2**32 - 1),
    "model.num_classes": (0, 2**20),
    "model.drop_path_rate": _BELOW_ONE,
    "data.synthetic_length": (1, 2**24),
    "data.image_size": (32, 4096),
    "data.mean": _SHARE,
    "data.std": (1e-6, 1.0),
    "data.area": (1e-6, 1.0),
    "data.ratio": (1e-2, 1e2),
    "data.shift": (0, 4096),
    "data.flip_prob": _SHARE,
    "data.crop_ratio": (0.05, 1.0),
    "data.repeats": (1, 2**16),
    "data.num_workers": (0, 1024),
    "data.max_broken": _SHARE,
    "mixup.prob": _SHARE,
    "mixup.switch_prob": _SHARE,
    "mixup.num_groups": (1, 2**16),
    "erasing.prob": _SHARE,
    "loss.label_smoothing": _BELOW_ONE,
    "distillation.alpha": _SHARE,
    "distillation.tau": (1e-3, 1e6),
    "optimizer.b1": _BELOW_ONE,
    "optimizer.b2": _BELOW_ONE,
    "optimizer.momentum": _BELOW_ONE,
    "schedule.steps": (0, _MANY),
    "schedule.epochs": (0, 1e6),
    "schedule.warmup_steps": (0, _MANY),
    "schedule.warmup_epochs": (0, 1e6),
    "ema.decay": _BELOW_ONE,
    "eval.every_epochs": (1e-9, 1e6),
    "checkpoint.keep_last": (1, 2**16),
    "sharding.model_axis": (1, 2**16),
}
# Fields of a network that its family knows better, by the end of their name.
_BY_END: dict[str | tuple[str, ...], tuple[float, float]] = {
    "depths": (0, 512),
    ("dims", "_dim", "_width"): (1, 2**14),
    ("_kernel", "kernel_size"): (1, 255),
    "_bias": (-1e3, 1e3),  # Initial logits.
    "": (0, 2**20),
}
_OTHERS = (0, 1e38)
# Leaves of several names; every other leaf of several values holds numbers, since a
# command line may put anything into a tuple.
_NAMES = ("optimizer.no_decay", "sharding.whole", "model.dw_branches")
# Fields of a network that count something, by the end of their name.
_COUNT_ENDS = ("depths", "dims", "_stages", "groups")


def check(config: Mapping[str, Any]) -> None:
    """Refuses numbers that cannot be meant, and tuples of anything else.

    Args:
      config: nested mappings.

    Raises:
      ValueError: naming the first leaf that does not fit, and what would.
    """
    for name, leaf in names.flatten(config).items():
        if isinstance(leaf, list):
            _check_items(name, leaf)
        low, high = _range_of(name)
        for value in _numbers(leaf):
            if not low <= value <= high:  # Neither is true of NaN.
                raise ValueError(
                    f"--config.{name}={leaf} is out of range; use {low:g} to {high:g}."
                )


def _range_of(name: str) -> tuple[float, float]:
    if name in LIMITS:
        return LIMITS[name]
    if name.startswith("model."):
        return next(span for end, span in _BY_END.items() if name.endswith(end))
    return _OTHERS


def _check_items(name: str, leaf: list[Any]) -> None:
    """Refuses what is no name in a leaf of names, and no number in any other."""
    if name in _NAMES:
        kind, words, example = str, "names", "\"('stem', 'head')\""
    elif name.startswith("model.") and name.endswith(_COUNT_ENDS):
        kind, words, example = int, "whole numbers", "'(1, 2, 3, 4)'"
    else:
        kind, words, example = int | float, "numbers", "'(0.5, 1)'"
    in_pairs = name.endswith("_spans") and all(
        isinstance(v, list | tuple) for v in leaf
    )
    items = itertools.chain(*leaf) if in_pairs else leaf
    if not all(isinstance(v, kind) and not isinstance(v, bool) for v in items):
        raise ValueError(
            f"--config.{name}={tuple(leaf)!r} holds something else than {words}; "
            f"write for example --config.{name}={example}."
        )


def _numbers(leaf: Any) -> Iterator[float]:
    """The numbers of a leaf; there are none in a switch or a name."""
    if isinstance(leaf, list | tuple):
        for item in leaf:
            yield from _numbers(item)
    elif isinstance(leaf, int | float) and not isinstance(leaf, bool):
        yield leaf
