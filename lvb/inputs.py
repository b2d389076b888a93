"""From the leaves of a config to pictures in batches; for commands only."""

import os
from typing import Any, NamedTuple

import jax
from ml_collections import config_dict

from lvb.data import augment, loader, sources, transforms

IMAGE_SIZES = (32, 4096)  # Pixels; the networks reduce 32 to one position.

_EVAL_OPTIONS = ("size", "crop_ratio", "channels", "interpolation")


class Data(NamedTuple):
    """Both splits of a data set and what turns pictures into pixels.

    Attributes:
      train: source of training examples.
      val: source of held-out examples.
      train_transform: picture and generator to (H, W, C) uint8, with augmentation.
      eval_transform: the same without.
    """

    train: sources.Source
    val: sources.Source
    train_transform: transforms.Transform
    eval_transform: transforms.Transform


def open_data(
    config: config_dict.ConfigDict, *, data_dir: str | os.PathLike[str] | None
) -> Data:
    """Opens the data set that `config.data` names.

    Raises:
      ValueError: if it does not fit, or has another number of classes than the model.
      FileNotFoundError: if it is not there.
    """
    data = config.data
    check_image_size(data.image_size)
    options = {}
    if data.source == "synthetic":
        options = dict(
            length=data.synthetic_length,
            size=data.image_size,
            num_classes=config.model.num_classes or 10,
            channels=data.channels,
        )
    train, val = (
        sources.open_source(
            data.source, split, data_dir=data_dir, in_memory=data.in_memory, **options
        )
        for split in sources.SPLITS
    )
    classes = len(train.class_names)
    if config.model.num_classes not in (0, classes):
        raise ValueError(
            f"model.num_classes={config.model.num_classes}, but {data.source} has "
            f"{classes} classes; set --config.model.num_classes={classes}, or 0 to "
            "take it from the data."
        )
    eval_options = {
        k: v for k, v in preprocessing(config).items() if k in _EVAL_OPTIONS
    }
    return Data(
        train, val, train_transform(config), transforms.EvalTransform(**eval_options)
    )


def train_transform(config: config_dict.ConfigDict) -> transforms.Transform:
    """The host's part of the augmentation."""
    data = config.data
    shared = dict(
        size=data.image_size,
        channels=data.channels,
        interpolation=data.interpolation,
        flip=data.flip_prob,
        ops=augment.make_augment(data.augment).parts,
    )
    if data.crop == "resized":
        return transforms.TrainTransform(area=data.area, ratio=data.ratio, **shared)
    if data.crop == "shift":
        return transforms.ShiftTransform(shift=data.shift, **shared)
    raise ValueError(f"data.crop={data.crop!r} is unknown; use resized or shift.")


def preprocessing(config: config_dict.ConfigDict) -> dict[str, Any]:
    """How an image is made ready for the model, as values JSON can hold.

    `size`, `crop_ratio`, `channels` and `interpolation` are those of
    `transforms.EvalTransform`, `mean` and `std` those of `preprocess.normalize`.
    """
    data = config.data
    return {
        "size": data.image_size,
        "crop_ratio": data.crop_ratio,
        "channels": data.channels,
        "interpolation": data.interpolation,
        "mean": list(data.mean),
        "std": list(data.std),
    }


def train_batches(
    config: config_dict.ConfigDict, data: Data, *, start_step: int
) -> loader.TrainBatches:
    """This host's training batches from a step on, without end."""
    return loader.train_batches(
        data.train,
        data.train_transform,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        shard=_shard(),
        num_workers=config.data.num_workers,
        repeats=config.data.repeats,
        max_broken=config.data.max_broken,
    )


def eval_batches(
    config: config_dict.ConfigDict, data: Data, *, batch_size: int
) -> loader.Batches:
    """This host's share of the held-out examples, each once."""
    return loader.eval_batches(
        data.val,
        data.eval_transform,
        batch_size=batch_size,
        shard=_shard(),
        num_workers=config.data.num_workers,
    )


def _shard() -> loader.Shard:
    return loader.Shard(jax.process_index(), jax.process_count())


def check_image_size(size: int) -> None:
    """Raises ValueError at a size that no model takes."""
    low, high = IMAGE_SIZES
    if not low <= size <= high:
        raise ValueError(
            f"data.image_size={size} is out of range; use {low} to {high} pixels, for "
            "example 224."
        )
