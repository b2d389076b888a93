"""Colour jitter on Pillow images."""

import dataclasses

import numpy as np
from PIL import Image

from lvb.data import auto_ops

_ENHANCERS = (auto_ops.brightness, auto_ops.contrast, auto_ops.color)


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Changes brightness, contrast and saturation in random order.

    Each factor is uniform in [max(0, 1 - strength), 1 + strength], independently. Hue
    stays. timm drops the jitter where RandAugment is on, so LSNet's "colour jitter
    0.4" (Table 10) was never active; its config names RandAugment alone.

    Attributes:
      strength: half-width of the factors; 0.3 in DeiT III, 0.4 as timm's default.
    """

    strength: float

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError(
                f"ColorJitter: strength={self.strength} is negative; use for example "
                "0.4, or 0 for none."
            )

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Jitters one image.

        Args:
          image: of mode "RGB" or "L".
          rng: the example's generator; the result depends on nothing else.

        Returns:
          The image, same size and mode.
        """
        low, high = max(0.0, 1.0 - self.strength), 1.0 + self.strength
        factors = rng.uniform(low, high, size=len(_ENHANCERS))
        for index in rng.permutation(len(_ENHANCERS)):
            image = _ENHANCERS[index](image, float(factors[index]))
        return image
