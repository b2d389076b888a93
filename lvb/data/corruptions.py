"""The 15 corruptions of ImageNet-C and its 4 extra ones, at 5 severities.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions
and Perturbations", ICLR 2019, https://arxiv.org/abs/1903.12261. Written from the paper
and the parameters of the published sets, which `imagenet_c.json` holds as data.

    corrupted = corrupt(image, "fog", severity=3, seed=0, example=17)

The published sets are fixed JPEG files; these functions follow the same definitions
with other random numbers and other libraries. Say which of the two a figure is from.
"""

import functools
import json
import pathlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lvb.data import corruptions_blur as blur
from lvb.data import corruptions_digital as digital
from lvb.data import corruptions_noise as noise
from lvb.data import corruptions_spatter as spatter
from lvb.data import corruptions_weather as weather

SEVERITIES = (1, 2, 3, 4, 5)


class Corruption(NamedTuple):
    """One corruption.

    Attributes:
      function: (image, rng, **parameters) -> image, float64 (H, W, 3) in [0, 1].
      group: "noise", "blur", "weather", "digital", or "extra" (not part of mCE).
      severities: the function's parameters at severities 1 to 5.
    """

    function: Callable[..., np.ndarray]
    group: str
    severities: tuple[Mapping[str, Any], ...]


@functools.cache
def imagenet_c_facts() -> Mapping[str, Any]:
    """The contents of `imagenet_c.json`: severities and AlexNet's published errors."""
    return json.loads(pathlib.Path(__file__).with_name("imagenet_c.json").read_text())


_FUNCTIONS = (
    *(noise.gaussian_noise, noise.shot_noise, noise.impulse_noise),
    *(blur.defocus_blur, blur.glass_blur, blur.motion_blur, blur.zoom_blur),
    *(weather.snow, weather.frost, weather.fog, weather.brightness),
    *(digital.contrast, digital.elastic_transform, digital.pixelate),
    *(digital.jpeg_compression, noise.speckle_noise, blur.gaussian_blur),
    *(spatter.spatter, digital.saturate),
)

CORRUPTIONS: Mapping[str, Corruption] = {
    function.__name__: Corruption(function, facts["group"], tuple(facts["severities"]))
    for function in _FUNCTIONS
    for facts in [imagenet_c_facts()["corruptions"][function.__name__]]
}

BENCHMARK = tuple(name for name, c in CORRUPTIONS.items() if c.group != "extra")
EXTRA = tuple(name for name, c in CORRUPTIONS.items() if c.group == "extra")


def corrupt(
    image: np.ndarray,
    name: str,
    *,
    severity: int,
    seed: int,
    example: int,
    frost_photographs: Sequence[np.ndarray] = (),
) -> np.ndarray:
    """Corrupts one image; a pure function of its arguments.

    Args:
      image: uint8 (H, W, 3); the benchmark's images are 224 x 224.
      name: a key of `CORRUPTIONS`.
      severity: 1 to 5.
      seed: of the whole benchmark.
      example: which image of the set; (seed, name, severity, example) fix the noise.
      frost_photographs: from `corruptions_weather.load_frost`; without them frost is
        painted by `corruptions_weather.procedural_frost`.

    Returns:
      uint8 (H, W, 3). Levels are truncated, not rounded, as in the published sets.

    Raises:
      ValueError: for an unknown name or severity, or an image of another kind.
    """
    corruption = CORRUPTIONS.get(name)
    if corruption is None:
        raise ValueError(
            f"corrupt: no corruption {name!r}; use {', '.join(CORRUPTIONS)}."
        )
    if severity not in SEVERITIES:
        raise ValueError(f"corrupt: severity={severity} is not one of 1 to 5.")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(
            f"corrupt: the image is {image.dtype} {image.shape}; give uint8 (H, W, 3)."
        )
    rng = np.random.default_rng((seed, zlib.crc32(name.encode()), severity, example))
    parameters = dict(corruption.severities[severity - 1])
    if name == "frost":
        parameters["photographs"] = frost_photographs
    corrupted = corruption.function(image / 255, rng, **parameters)
    # The small term keeps an exact level from falling by one through rounding.
    return np.floor(np.clip(corrupted, 0, 1) * 255 + 1e-6).astype(np.uint8)
