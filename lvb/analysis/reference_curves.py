"""The official training logs of LSNet, to see early whether a run is on track.

Top-1 on the 50,000 validation images, in percent, after so many of 300 epochs; raw
weights at 224 px, from the logs beside the released checkpoints (LSNet, CVPR 2025).
Epochs 1 and 2 both train at the warm-up's first rate, see `schedule.make_schedule`.
"""

import bisect
from collections.abc import Mapping
from typing import NamedTuple

NUM_EPOCHS = 300

_EPOCHS = (1, 2, 3, 5, 6, 10, 20, 50, 100, 150, 200, 250, 300)


class Point(NamedTuple):
    """One line of an official log: epochs done and top-1 in percent."""

    epoch: int
    top1: float


def _log(top1: tuple[float, ...]) -> tuple[Point, ...]:
    """The lines of a log, the last of which is the last epoch's."""
    epochs = _EPOCHS[-len(top1) :]
    return tuple(Point(*line) for line in zip(epochs, top1, strict=True))


_T = (0.08, 0.08, 2.36, 16.25, 23.20, 37.42, 52.43, 59.55)
_T += (63.65, 66.12, 70.17, 73.36, 74.84)
_T_STAR = (0.11, 0.12, 3.85, 20.74, 27.58, 44.05, 55.29, 61.81)
_T_STAR += (65.46, 68.87, 71.95, 74.74, 76.04)
_S = (0.09, 0.09, 2.76, 20.68, 25.12, 44.07, 57.11, 64.79)
_S += (68.10, 71.05, 74.05, 76.54, 77.70)
_S_STAR = (0.09, 0.11, 4.19, 24.88, 32.21, 48.20, 59.19, 66.63)
_S_STAR += (69.65, 72.55, 75.21, 77.88, 78.99)
_B = (69.37, 72.65, 75.85, 78.74, 80.32)  # Known from epoch 100 on only.
_B_STAR = (0.11, 0.10, 1.20, 14.23, 24.22, 48.12, 62.97, 69.65)
_B_STAR += (73.25, 75.72, 78.31, 80.48, 81.57)

# By model, and whether it is the distilled form, LSNet*.
CURVES: Mapping[tuple[str, bool], tuple[Point, ...]] = {
    ("lsnet_t", False): _log(_T),
    ("lsnet_t", True): _log(_T_STAR),
    ("lsnet_s", False): _log(_S),
    ("lsnet_s", True): _log(_S_STAR),
    ("lsnet_b", False): _log(_B),
    ("lsnet_b", True): _log(_B_STAR),
}


def neighbours(
    model: str, epoch: float, *, distilled: bool = False
) -> tuple[Point, ...]:
    """The known lines of the official log around an epoch.

    Args:
      model: such as "lsnet_t".
      epoch: epochs done.
      distilled: whether it is LSNet*.

    Returns:
      The line of that epoch alone if it is known, else the last one before and the
      first one after it, as far as there are any; nothing for another model.
    """
    curve = CURVES.get((model, distilled), ())
    after = bisect.bisect_left([point.epoch for point in curve], epoch)
    if after < len(curve) and curve[after].epoch == epoch:
        return (curve[after],)
    return curve[max(after - 1, 0) : after + 1]


def on_track(model: str, epoch: float, *, distilled: bool = False) -> str:
    """Words to print beside our top-1: "official log 52.43" at epoch 20 of LSNet-T.

    Args:
      model: such as "lsnet_t".
      epoch: epochs done, of 300.
      distilled: whether it is LSNet*.

    Returns:
      At an epoch between two known ones "official log 52.43 at epoch 20, 59.55 at
      epoch 50"; "" for a model without a log.
    """
    points = neighbours(model, epoch, distilled=distilled)
    if not points:
        return ""
    if len(points) == 1 and points[0].epoch == epoch:
        return f"official log {points[0].top1:.2f}"
    near = ", ".join(f"{point.top1:.2f} at epoch {point.epoch}" for point in points)
    return f"official log {near}"
