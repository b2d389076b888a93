"""Augmentation policies by name: one string of a config says it all."""

import dataclasses
import re
from collections.abc import Callable

import numpy as np
from PIL import Image

from lvb.data import color_jitter, rand_augment, three_augment

Augment = Callable[[Image.Image, np.random.Generator], Image.Image]


@dataclasses.dataclass(frozen=True)
class Chain:
    """Applies augmentations one after another; none at all leaves images alone."""

    parts: tuple[Augment, ...] = ()

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Augments one image, (image, generator) -> image of the same size and mode."""
        for part in self.parts:
            image = part(image, rng)
        return image


def make_augment(
    policy: str,
    *,
    fill: tuple[int, int, int] = rand_augment.IMAGENET_FILL,
    interpolation: str = "bicubic",
) -> Chain:
    """Builds the host-side augmentation that a policy string names.

    Parts are joined by "+" and applied in order:

        rand-m9-mstd0.5-inc1   RandAugment, see `rand_augment.parse_policy`
        three                  3-Augment of DeiT III
        jitter0.4              colour jitter of strength 0.4

    An empty string, or "none", changes nothing. No rule links the parts: timm drops the
    colour jitter where RandAugment is on, so a config that follows timm names one only.

    Args:
      policy: for example "rand-m9-mstd0.5-inc1" (LSNet) or "three+jitter0.3".
      fill: RGB colour of pixels that geometric operations pull in from outside.
      interpolation: filter of geometric operations: "bilinear", "bicubic" or "random".

    Returns:
      A picklable callable (PIL image, NumPy generator) -> PIL image, whose result
      depends on its two arguments only.

    Raises:
      ValueError: for a part that is not known, naming it.
    """
    if policy in ("", "none"):
        return Chain()
    return Chain(
        tuple(
            _make_part(part, policy=policy, fill=fill, interpolation=interpolation)
            for part in policy.split("+")
        )
    )


def _make_part(
    part: str, *, policy: str, fill: tuple[int, int, int], interpolation: str
) -> Augment:
    if part.split("-")[0] == "rand":
        return rand_augment.RandAugment(
            rand_augment.parse_policy(part), fill=fill, interpolation=interpolation
        )
    if part == "three":
        return three_augment.ThreeAugment()
    if match := re.fullmatch(r"jitter(\d+(?:\.\d+)?)", part):
        return color_jitter.ColorJitter(float(match[1]))
    raise ValueError(
        f"augment: part {part!r} of policy {policy!r} is unknown; the parts are "
        "'rand-m9-mstd0.5-inc1', 'three' and 'jitter0.4', joined by '+', or 'none'."
    )
