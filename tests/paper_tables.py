"""Every published figure of size, and the exact counts of our models.

The published rows live in the package, where `python -m lvb.benchmark --table` needs
them; here they meet what is pinned.
"""

from typing import NamedTuple

from lvb.analysis.paper_tables import (  # noqa: F401 - the tests' name for them
    ABLATIONS,
    LARGE_IMAGES,
    VARIANTS,
    within_rounding,
)


class Exact(NamedTuple):
    """Parameters trained and deployed, and all multiply-adds of 224 x 224 x 3."""

    params: int
    deploy_params: int
    macs: int


EXACT = {
    "convneur_m1": Exact(4_114_772, 4_114_772, 1_344_475_200),
    "convneur_m2": Exact(5_817_652, 5_817_652, 1_927_446_912),
    "convneur_m3": Exact(10_103_540, 10_103_540, 3_407_467_008),
    "convneur_m4": Exact(17_242_932, 17_242_932, 5_633_528_960),
    "fmvit_t": Exact(4_019_496, 2_040_504, 408_272_832),
    "fmvit_s": Exact(13_534_504, 6_508_248, 966_835_328),
    "fmvit_m": Exact(27_468_776, 12_945_512, 2_126_434_176),
    "fmvit_b": Exact(52_210_664, 24_257_480, 4_615_358_336),
    "fmvit_l": Exact(76_202_216, 35_153_672, 7_663_437_440),
    "fvnet_n": Exact(1_244_352, 1_237_656, 185_089_440),
    "fvnet_t": Exact(3_098_912, 3_086_304, 423_998_080),
    "fvnet_s": Exact(6_822_888, 6_803_400, 1_055_929_536),
    "lsnet_t": Exact(11_409_832, 11_370_488, 315_718_784),
    "lsnet_s": Exact(16_146_304, 16_098_232, 537_761_344),
    "lsnet_b": Exact(23_313_608, 23_249_320, 1_244_277_760),
}
