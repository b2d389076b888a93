"""Sources of labelled pictures, opened by one string.

| string | train and val |
| --- | --- |
| `digits` | scikit-learn's 1,797 handwritten digits, a fixed stratified split |
| `synthetic` | generated pictures, see `synthetic.SyntheticSource` for the options |
| `folder:/path` | one directory per class, see `folder.open_folder` |
| `fashion_mnist[:n]` | the official gzip files in `<data_dir>/fashion_mnist` |
| `tfds:name[/config][:version]` | a prepared ArrayRecord set under `<data_dir>` |

A source knows its length and its classes and gives any example at random access.
"""

import difflib
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from lvb.data import decode

SPLITS = ("train", "val")


class Example(NamedTuple):
    """One labelled picture.

    Attributes:
      image: bytes of a picture file, or pixels (H, W, C) uint8.
      label: index into the source's `class_names`.
    """

    image: bytes | np.ndarray
    label: int


class Source(Protocol):
    """A picklable random-access collection of examples.

    Attributes:
      class_names: one name for each class, in label order.
    """

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def describe(self, index: int) -> str:
        """Names example `index` in messages, for instance by its file."""
        ...


class ArraySource:
    """Examples held in memory as pixels, so that nothing is left to decode.

    Attributes:
      class_names: one name for each class, in label order.
    """

    def __init__(
        self,
        images: np.ndarray | Sequence[np.ndarray | bytes],
        labels: np.ndarray,
        *,
        class_names: Sequence[str],
        name: str,
    ) -> None:
        """Holds the arrays, uncopied.

        Args:
          images: pixels, (N, H, W, C) uint8 or N arrays (H, W, C) of any sizes.
          labels: (N,) integers, indices into `class_names`.
          class_names: one name for each class.
          name: what the messages call the source, for instance "digits/train".

        Raises:
          ValueError: the numbers of images and labels differ.
        """
        if len(images) != len(labels):
            raise ValueError(
                f"ArraySource {name}: {len(images)} images came with {len(labels)} "
                "labels; give one label for each image."
            )
        self.class_names = tuple(class_names)
        self._images = images
        self._labels = np.asarray(labels, np.int32)
        self._name = name

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Example:
        return Example(self._images[index], int(self._labels[index]))

    def describe(self, index: int) -> str:
        """Names example `index` in messages."""
        return f"{self._name}[{index}]"


class DecodedSource:
    """Another source, decoded once and kept in memory: for small sets such as CIFAR.

    A picture that cannot be decoded stays as it is, to be met by the loader.

    Attributes:
      class_names: those of the other source.
    """

    def __init__(self, source: Source) -> None:
        self.class_names = source.class_names
        self._source = source
        self._examples = [_decoded(source[index]) for index in range(len(source))]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]

    def describe(self, index: int) -> str:
        """Names example `index` as the other source does."""
        return self._source.describe(index)


def _decoded(example: Example) -> Example:
    try:
        pixels = np.asarray(decode.decode_image(example.image))
    except decode.BrokenImage:
        return example
    return Example(pixels if pixels.ndim == 3 else pixels[..., None], example.label)


def open_source(
    spec: str,
    split: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    in_memory: bool = False,
    **options: Any,
) -> Source:
    """Opens the source that `spec` names; the module's table lists what there is.

    Args:
      spec: kind of source, for some kinds followed by ":" and a path or a name.
      split: "train" or "val". They are disjoint.
      data_dir: where `tfds:` and `fashion_mnist` find their files.
      seed: of a folder's split, where the folder has none of its own, and of
        synthetic pictures. Runs to be compared need the same one.
      in_memory: decodes every picture now and keeps the pixels.
      **options: of `synthetic` only: length, size, num_classes, channels, content.

    Raises:
      ValueError: the string, the split or an option is unknown, or what is on disk
        does not fit; the message says what to do.
      FileNotFoundError: a directory or a file is missing.
    """
    kind, _, rest = spec.partition(":")
    if kind not in _OPENERS:
        near = difflib.get_close_matches(kind, _OPENERS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {list(_OPENERS)}."
        raise ValueError(f"data source {spec!r} is unknown; {hint}")
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; use one of {list(SPLITS)}.")
    if options and kind != "synthetic":
        raise ValueError(
            f"data source {spec!r} takes no options, but {sorted(options)} came; "
            "only 'synthetic' has options."
        )
    if data_dir is not None:
        data_dir = os.path.expanduser(data_dir)
    source = _OPENERS[kind](rest, split, data_dir=data_dir, seed=seed, **options)
    return DecodedSource(source) if in_memory else source


# The kinds import their files when opened: scikit-learn and tensorflow_datasets are
# slow to import, and worker processes need at most one of them.


def _open_digits(rest: str, split: str, **unused: Any) -> Source:
    from lvb.data import digits

    _refuse_rest("digits", rest)
    return digits.open_digits(split)


def _open_synthetic(
    rest: str, split: str, *, data_dir: str | None, seed: int, **options: Any
) -> Source:
    from lvb.data import synthetic

    _refuse_rest("synthetic", rest)
    return synthetic.open_synthetic(split, seed=seed, **options)


def _open_folder(rest: str, split: str, *, data_dir: str | None, seed: int) -> Source:
    from lvb.data import folder

    if not rest:
        raise ValueError(
            "data source 'folder:' names no directory; write 'folder:/path/to/images'."
        )
    return folder.open_folder(rest, split, seed=seed)


def _open_fashion_mnist(
    rest: str, split: str, *, data_dir: str | None, seed: int
) -> Source:
    from lvb.data import fashion_mnist

    if rest and not (rest.isdecimal() and int(rest)):
        raise ValueError(
            f"data source 'fashion_mnist:{rest}' names no number of training pictures; "
            "write 'fashion_mnist' for all, or for example 'fashion_mnist:2000'."
        )
    return fashion_mnist.open_fashion_mnist(
        split, data_dir=data_dir, num_train=int(rest) if rest else None
    )


def _open_tfds(rest: str, split: str, *, data_dir: str | None, seed: int) -> Source:
    from lvb.data import tfds_source

    return tfds_source.open_tfds(rest, split, data_dir=data_dir)


def _refuse_rest(kind: str, rest: str) -> None:
    if rest:
        raise ValueError(
            f"data source '{kind}:{rest}' has something after {kind!r}; write "
            f"{kind!r} alone."
        )


_OPENERS = {
    "digits": _open_digits,
    "synthetic": _open_synthetic,
    "folder": _open_folder,
    "fashion_mnist": _open_fashion_mnist,
    "tfds": _open_tfds,
}
