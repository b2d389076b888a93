"""One row of a batch from its number: order, decoding, augmentation, replacement.

Everything here is a pure function of the seed and of the row's position in the global
stream of examples, so any worker process on any host can make any row.
"""

import threading
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from lvb.data import decode, sources, transforms

Row = dict[str, Any]

# Streams of the generator (seed, stream, number).
ORDER_STREAM, AUGMENT_STREAM, EVAL_STREAM = 0, 1, 2

# A broken picture is replaced by the next one in the epoch's order. Where a share s of
# the pictures is broken, all tries fail with probability s^16: 4e-5 at one half. Ours.
_MAX_TRIES = 16


class Shard(NamedTuple):
    """Which rows of every global batch this host makes: the `index`-th of `count`."""

    index: int = 0
    count: int = 1


class HostRows(NamedTuple):
    """Maps this host's rows to positions in the global stream.

    Position p is row p mod batch_size of step p // batch_size, whatever the number of
    hosts; each host has consecutive rows of every step.

    Attributes:
      batch_size: global batch size.
      shard: this host.
      start_step: step of this host's first row.
    """

    batch_size: int
    shard: Shard
    start_step: int = 0

    @property
    def per_step(self) -> int:
        """Rows of this host in each global batch."""
        return self.batch_size // self.shard.count

    def position(self, row: int) -> int:
        """Returns the global position of this host's `row`-th row."""
        step, column = divmod(row, self.per_step)
        first = (self.start_step + step) * self.batch_size
        return first + self.shard.index * self.per_step + column


class EpochOrder:
    """The example of each draw from an endless stream of epochs.

    Each epoch is a new permutation of all examples, a function of (seed, epoch).
    """

    def __init__(self, num_examples: int, *, seed: int) -> None:
        self._num_examples = num_examples
        self._seed = seed
        self._epochs: dict[int, np.ndarray] = {}

    def __getitem__(self, draw: int) -> int:
        epoch, place = divmod(draw, self._num_examples)
        order = self._epochs.get(epoch)
        if order is None:
            # NumPy's and not Grain's shuffle: that one walks a cycle of 2^16 places,
            # which takes milliseconds for each draw from a set of a few examples.
            rng = np.random.default_rng((self._seed, ORDER_STREAM, epoch))
            order = rng.permutation(self._num_examples).astype(np.uint32)
            # Batches straddle epochs and threads run ahead: keep the newest few.
            kept = list(self._epochs.items())[-3:]
            self._epochs = dict([*kept, (epoch, order)])
        return int(order[place])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_epochs": {}}


class _Picture(NamedTuple):
    """A picture to augment, its label, and the index of the example drawn."""

    image: Image.Image
    label: int
    index: int
    broken: bool


class _Recent(threading.local):
    """The draw that a thread decoded last, and its picture.

    Threads make whole batches, several at a time: each would push another's picture out
    of a common place, and decode every copy anew.
    """

    draw = -1
    picture: _Picture

    def __reduce__(self) -> tuple[type["_Recent"], tuple[()]]:
        return _Recent, ()  # Another process starts without.


class TrainRows:
    """Makes this host's rows of the training stream.

    A row has "image" (H, W, C) uint8, "label" int32, "index" int64, "mask" True and
    "broken" bool. If the picture drawn is broken, image and label are those of the next
    good one in the epoch's order, "index" still names the picture drawn and "broken" is
    true.

    With `repeats` > 1 each draw fills that many consecutive rows, each augmented anew:
    repeated augmentation (Hoffer et al., 2020) as in DeiT, where the copies share a
    global batch. An epoch of the stream is then `repeats` times as long. DeiT starts a
    new shuffle after as many rows as there are examples, and so shows one in `repeats`
    of them; here every example has come before any comes again.
    """

    def __init__(
        self,
        source: sources.Source,
        transform: transforms.Transform,
        *,
        rows: HostRows,
        seed: int,
        repeats: int = 1,
    ) -> None:
        self._source = source
        self._transform = transform
        self._rows = rows
        self._order = EpochOrder(len(source), seed=seed)
        self._seed = seed
        self._repeats = repeats
        self._recent = _Recent()

    def __call__(self, row: int) -> Row:
        position = self._rows.position(row)
        picture = self._picture(position // self._repeats)
        rng = np.random.default_rng((self._seed, AUGMENT_STREAM, position))
        return {
            "image": self._transform(picture.image, rng),
            "label": np.int32(picture.label),
            "index": np.int64(picture.index),
            "mask": np.True_,
            "broken": np.bool_(picture.broken),
        }

    def _picture(self, draw: int) -> _Picture:
        """Decodes the picture of a draw, once for all its copies."""
        recent = self._recent
        if recent.draw != draw:
            recent.picture = self._load_or_replace(draw)
            recent.draw = draw
        return recent.picture

    def _load_or_replace(self, draw: int) -> _Picture:
        drawn = self._order[draw]
        for attempt in range(_MAX_TRIES):
            index = self._order[draw + attempt]
            try:
                return _Picture(*load(self._source, index), drawn, attempt > 0)
            except decode.BrokenImage as error:
                name, reason = self._source.describe(index), error
        raise ValueError(
            f"{_MAX_TRIES} images in a row are broken, the last of them {name}: "
            f"{reason}; check the data set."
        )


class EvalRows:
    """Makes this host's rows of one pass over the examples, padded to whole batches.

    A row has "image", "label", "index" and "mask" as in training; padding is zero with
    index -1 and mask False. A broken picture is an error, since leaving it out would
    change the score.
    """

    def __init__(
        self,
        source: sources.Source,
        transform: transforms.Transform,
        *,
        rows: HostRows,
        seed: int,
        image_shape: tuple[int, ...],
    ) -> None:
        self._source = source
        self._transform = transform
        self._rows = rows
        self._seed = seed
        self._image_shape = image_shape

    def __call__(self, row: int) -> Row:
        index = self._rows.position(row)
        if index >= len(self._source):
            return {
                "image": np.zeros(self._image_shape, np.uint8),
                "label": np.int32(0),
                "index": np.int64(-1),
                "mask": np.False_,
            }
        image, label = load_strictly(self._source, index)
        rng = np.random.default_rng((self._seed, EVAL_STREAM, index))
        return {
            "image": self._transform(image, rng),
            "label": np.int32(label),
            "index": np.int64(index),
            "mask": np.True_,
        }


def load(source: sources.Source, index: int) -> tuple[Image.Image, int]:
    """Returns the decoded picture and the label of one example.

    Raises:
      BrokenImage: the file cannot be read or decoded.
      ValueError: the label is none of the source's classes.
    """
    try:
        example = source[index]
    except OSError as error:
        reason = error.strerror or str(error)
        raise decode.BrokenImage(f"the file cannot be read ({reason})") from error
    if not 0 <= example.label < len(source.class_names):
        raise ValueError(
            f"{source.describe(index)} has label {example.label}, where labels 0 to "
            f"{len(source.class_names) - 1} fit; the split may be unlabelled."
        )
    return decode.decode_image(example.image), example.label


def load_strictly(source: sources.Source, index: int) -> tuple[Image.Image, int]:
    """Returns the decoded picture and the label, or raises an error with its name.

    Raises:
      ValueError: the picture is broken or has no label.
    """
    try:
        return load(source, index)
    except decode.BrokenImage as error:
        raise ValueError(
            f"{source.describe(index)} is broken: {error}; evaluation counts every "
            "image once, so repair it or remove it."
        ) from error
