"""ImageNet-C made in memory from the validation set, as its authors made the files."""

import io
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from lvb.data import corruptions, decode, sources, transforms

# Resize(256) and CenterCrop(224) with the bilinear filter, then corrupt, then save.
STORED = transforms.EvalTransform(224, interpolation="bilinear", crop_ratio=0.875)


class CorruptedSource:
    """Another source with one corruption applied; a function of (seed, example).

    Attributes:
      class_names: those of the other source.
    """

    def __init__(
        self,
        source: sources.Source,
        *,
        name: str,
        severity: int,
        seed: int = 0,
        frost_photographs: Sequence[np.ndarray] = (),
    ) -> None:
        """Wraps a source.

        Args:
          source: of the uncorrupted images.
          name: a key of `corruptions.CORRUPTIONS`.
          severity: 1 to 5.
          seed: of the corruption; the example is the index in the source.
          frost_photographs: see `corruptions.corrupt`.
        """
        self.class_names = source.class_names
        self._source = source
        self._name, self._severity, self._seed = name, severity, seed
        self._frost_photographs = tuple(frost_photographs)
        self._quality = corruptions.imagenet_c_facts()["jpeg_quality"]

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> sources.Example:
        """Returns the bytes of a JPEG of 224 x 224 pixels.

        Raises:
          BrokenImage: when the uncorrupted image cannot be decoded.
        """
        example = self._source[index]
        picture = decode.decode_image(example.image)
        pixels = STORED(picture, np.random.default_rng(0))  # Draws nothing.
        corrupted = corruptions.corrupt(
            pixels,
            self._name,
            severity=self._severity,
            seed=self._seed,
            example=index,
            frost_photographs=self._frost_photographs,
        )
        file = io.BytesIO()
        Image.fromarray(corrupted).save(file, format="JPEG", quality=self._quality)
        return sources.Example(file.getvalue(), example.label)

    def describe(self, index: int) -> str:
        """Names the uncorrupted image and the corruption."""
        stem = pathlib.PurePath(self._source.describe(index))
        return f"{stem} with {self._name}/{self._severity}"
