"""3-Augment of DeiT III (arXiv:2204.07118, Section 3), on Pillow images."""

import dataclasses

import numpy as np
from PIL import Image, ImageFilter

from lvb.data import auto_ops

# DeiT III's released code: radius in pixels, threshold in grey levels.
BLUR_RADIUS = (0.1, 2.0)
SOLARIZE_THRESHOLD = 128


def grayscale(image: Image.Image) -> Image.Image:
    """Replaces colour by luma, keeping the mode."""
    return image.convert("L").convert(image.mode)


def gaussian_blur(image: Image.Image, radius: float) -> Image.Image:
    """Blurs with a Gaussian of standard deviation `radius`, pixels."""
    return image.filter(ImageFilter.GaussianBlur(radius))


@dataclasses.dataclass(frozen=True)
class ThreeAugment:
    """Applies one of grayscale, solarize and Gaussian blur, each a third of the time.

    DeiT III follows it with a colour jitter of 0.3: "three+jitter0.3".
    """

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Augments one image.

        Args:
          image: of mode "RGB" or "L".
          rng: the example's generator; the result depends on nothing else.

        Returns:
          The image, same size and mode.
        """
        choice = rng.integers(3)
        radius = rng.uniform(*BLUR_RADIUS)
        if choice == 0:
            return grayscale(image)
        if choice == 1:
            return auto_ops.solarize(image, SOLARIZE_THRESHOLD)
        return gaussian_blur(image, float(radius))
