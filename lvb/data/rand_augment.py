"""RandAugment (arXiv:1909.13719) by timm's policy strings, on Pillow images."""

import dataclasses
import math
import re
from typing import NamedTuple

import numpy as np
from PIL import Image

from lvb.data import auto_ops

# round(255 * mean) of ImageNet's RGB mean (0.485, 0.456, 0.406), as timm fills.
IMAGENET_FILL = (124, 116, 104)

FILTERS: dict[str, tuple[Image.Resampling, ...]] = {
    "bilinear": (Image.Resampling.BILINEAR,),
    "bicubic": (Image.Resampling.BICUBIC,),
    "random": (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC),
}


class Policy(NamedTuple):
    """What a policy string says; the defaults are what it leaves out.

    Attributes:
      magnitude: m, mean magnitude on the scale of 10.
      num_ops: n, operations drawn per image, with replacement.
      magnitude_std: mstd, spread of the normal magnitude; infinite means uniform from
        0 to `magnitude`.
      max_magnitude: mmax, to which larger magnitudes are clipped; as in timm, "m15"
        alone therefore acts as "m10".
      prob: p, probability that a drawn operation is applied.
      increasing: inc, whether all magnitudes grow in severity.
    """

    magnitude: float = 10.0
    num_ops: int = 2
    magnitude_std: float = 0.0
    max_magnitude: float = auto_ops.FULL_MAGNITUDE
    prob: float = 0.5
    increasing: bool = False


_FIELDS = {
    "m": "magnitude",
    "n": "num_ops",
    "mstd": "magnitude_std",
    "mmax": "max_magnitude",
    "p": "prob",
    "inc": "increasing",
}
# Ours; what is meant lies far below.
_MOST_OPS, _MOST_MAGNITUDE = 100, 100.0
_SECTION = re.compile(r"([a-z]+)(\d+(?:\.\d+)?|inf)")
_EXAMPLE = "'rand-m9-mstd0.5-inc1'"


def parse_policy(text: str) -> Policy:
    """Reads a policy string such as "rand-m9-mstd0.5-inc1".

    The sections after "rand", in any order: m (magnitude), n (operations per image),
    mstd (spread; over 100 or "inf" means uniform), mmax (largest magnitude), p
    (probability of an operation), inc (0 or 1). timm's w and t, which weigh or list
    the operations, are not supported.

    Args:
      text: the policy string.

    Returns:
      The policy.

    Raises:
      ValueError: naming the section that is unknown, repeated or out of range.
    """
    head, *sections = text.split("-")
    if head != "rand":
        raise ValueError(
            f"RandAugment: policy {text!r} does not begin with 'rand'; write for "
            f"example {_EXAMPLE}."
        )
    values: dict[str, float] = {}
    for section in sections:
        match = _SECTION.fullmatch(section)
        if match is None or match[1] not in _FIELDS:
            raise ValueError(
                f"RandAugment: section {section!r} of {text!r} is unknown; known are "
                f"{', '.join(_FIELDS)}, each followed by a number, as in {_EXAMPLE}."
            )
        if _FIELDS[match[1]] in values:
            raise ValueError(f"RandAugment: {text!r} gives {match[1]!r} twice.")
        values[_FIELDS[match[1]]] = float(match[2])
    policy = Policy(**values)
    std = policy.magnitude_std
    policy = policy._replace(
        num_ops=int(policy.num_ops),
        magnitude_std=math.inf if std > 100 else std,
        increasing=bool(policy.increasing),
    )
    _check(policy, text=text, values=values)
    return policy


def _check(policy: Policy, *, text: str, values: dict[str, float]) -> None:
    if values.get("increasing", 0.0) not in (0.0, 1.0):
        raise ValueError(f"RandAugment: inc in {text!r} must be 0 or 1.")
    if policy.num_ops < 1 or policy.num_ops != values.get("num_ops", policy.num_ops):
        raise ValueError(f"RandAugment: n in {text!r} must be a positive whole number.")
    if policy.num_ops > _MOST_OPS:
        raise ValueError(f"RandAugment: n in {text!r} is more than {_MOST_OPS}.")
    for name, key in (("m", "magnitude"), ("mmax", "max_magnitude")):
        if values.get(key, 0.0) > _MOST_MAGNITUDE:
            raise ValueError(
                f"RandAugment: {name} in {text!r} is more than {_MOST_MAGNITUDE:g}, "
                "where 10 is the full magnitude."
            )
    if policy.prob > 1.0:
        raise ValueError(f"RandAugment: p in {text!r} must lie in [0, 1].")


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Applies `num_ops` random operations of equal odds to an image.

    Attributes:
      policy: see `parse_policy`.
      fill: RGB colour of pixels that geometric operations pull in from outside.
      interpolation: "bilinear", "bicubic" (LSNet's training filter) or "random", one
        of the two for each operation.
    """

    policy: Policy
    fill: tuple[int, int, int] = IMAGENET_FILL
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if self.interpolation not in FILTERS:
            raise ValueError(
                f"RandAugment: interpolation={self.interpolation!r} is unknown; use "
                f"{', '.join(FILTERS)}."
            )

    @property
    def operations(self) -> dict[str, auto_ops.Operation]:
        """The fifteen operations drawn from, by name."""
        return auto_ops.INCREASING if self.policy.increasing else auto_ops.ORIGINAL

    def draw_magnitude(self, rng: np.random.Generator) -> float:
        """Draws N(m, mstd), or U(0, m) for an infinite mstd, clipped to [0, mmax]."""
        policy = self.policy
        if math.isinf(policy.magnitude_std):
            magnitude = rng.uniform(0.0, policy.magnitude)
        else:
            magnitude = rng.normal(policy.magnitude, policy.magnitude_std)
        return float(min(max(magnitude, 0.0), policy.max_magnitude))

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Augments one image.

        Args:
          image: of mode "RGB" or "L".
          rng: the example's generator; the result depends on nothing else.

        Returns:
          The image, same size and mode.
        """
        operations = tuple(self.operations.values())
        filters = FILTERS[self.interpolation]
        for index in rng.integers(len(operations), size=self.policy.num_ops):
            # Drawn also when unused, so that later draws do not depend on `prob`.
            skip = rng.random() >= self.policy.prob
            magnitude = self.draw_magnitude(rng)
            sign = 1.0 if rng.random() < 0.5 else -1.0
            resample = filters[rng.integers(len(filters))]
            if skip:
                continue
            image = auto_ops.apply_operation(
                image,
                operations[index],
                magnitude=magnitude,
                sign=sign,
                warp=auto_ops.Warp(self.fill, resample),
            )
        return image
