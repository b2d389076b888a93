"""Fashion-MNIST from its official gzip files (Xiao, Rasul and Vollgraf, 2017)."""

import gzip
import os
import struct
import zlib

import numpy as np

from lvb.data import sources

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

_PREFIXES = {"train": "train", "val": "t10k"}
_IMAGE_MAGIC, _LABEL_MAGIC = 2051, 2049  # IDX: unsigned bytes in 3 and 1 dimensions.


def open_fashion_mnist(
    split: str,
    *,
    data_dir: str | os.PathLike[str] | None,
    num_train: int | None = None,
) -> sources.ArraySource:
    """Returns 60,000 ("train") or 10,000 ("val") pictures, (28, 28, 1) uint8.

    Args:
      split: "train" or "val"; "val" is the official test set.
      data_dir: directory that holds `fashion_mnist/` with the four official files.
      num_train: takes that many of the training pictures, the first ones; None is all.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: no data_dir was given, there are too few pictures, or a file is
        damaged.
    """
    if data_dir is None:
        raise ValueError(
            "data source 'fashion_mnist' needs --data_dir, the directory that holds "
            "fashion_mnist/ with the four official .gz files."
        )
    folder = os.path.join(data_dir, "fashion_mnist")
    prefix = _PREFIXES[split]
    images = _read_idx(folder, f"{prefix}-images-idx3-ubyte.gz", _IMAGE_MAGIC)
    labels = _read_idx(folder, f"{prefix}-labels-idx1-ubyte.gz", _LABEL_MAGIC)
    if split == "train" and num_train is not None:
        if num_train > len(images):
            raise ValueError(
                f"data source 'fashion_mnist:{num_train}' asks for more training "
                f"pictures than the {len(images)} there are."
            )
        images, labels = images[:num_train], labels[:num_train]
    return sources.ArraySource(
        images[..., None],
        labels,
        class_names=CLASS_NAMES,
        name=f"fashion_mnist/{split}",
    )


def _read_idx(folder: str, name: str, magic: int) -> np.ndarray:
    """Reads a gzipped IDX file of unsigned bytes."""
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"fashion_mnist: {path} is missing; put the four official files of "
            f"github.com/zalandoresearch/fashion-mnist into {folder}."
        )
    num_dims = magic % 256
    try:
        with gzip.open(path) as file:
            data = file.read()
        found, *shape = struct.unpack_from(f">{1 + num_dims}I", data)
        if found != magic:
            raise ValueError(f"magic number {found}, where {magic} is expected")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * num_dims).reshape(shape)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise ValueError(
            f"fashion_mnist: {path} is damaged ({error}); fetch it again."
        ) from error
