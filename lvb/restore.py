"""From a path to classifiers that can be applied; only commands use this.

The path is the workdir of a run, one of its checkpoints, a converted checkpoint, or an
exported file. A run offers several weights: last and best, raw and averaged.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lvb import api
from lvb.training import checkpoint, digest, exported, prediction, weights

ROWS = ("last/raw", "last/ema", "best/raw", "best/ema")
FILE_ROW = "file"


class Preprocessing(NamedTuple):
    """How images are made ready; lengths in pixels.

    Attributes:
      size: side of the network's input.
      channels: 3 or 1.
      crop_ratio: size / short side before the central crop.
      interpolation: filter of the resize.
      mean: per channel, of pixels in [0, 1].
      std: per channel, of pixels in [0, 1].
    """

    size: int
    channels: int
    crop_ratio: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Restored(NamedTuple):
    """A classifier with its weights.

    Attributes:
      row: such as "last/ema", "raw" or "file": which weights these are.
      model: its name.
      digest: of the weights and of what decides their use.
      class_names: of the logits, in order; empty when nobody noted them.
      preprocessing: of the model's own validation.
      make_predictor: mesh -> what computes logits.
      batch_size: the only one the model takes, or None.
      fixed_size: whether it takes no other image size.
    """

    row: str
    model: str
    digest: str
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    make_predictor: Callable[[jax.sharding.Mesh], prediction.Predictor]
    batch_size: int | None = None
    fixed_size: bool = False


def restore(
    path: pathlib.Path, *, rows: Sequence[str] = (), fuse: bool = False
) -> list[Restored]:
    """Opens all weights that a path offers.

    Args:
      path: see the module.
      rows: which of `ROWS`; empty for all there are. A path with a single set of
        weights ignores it.
      fuse: fuse the network for inference.

    Returns:
      At least one classifier; when the best checkpoint is the last, it comes once, as
      "last=best".

    Raises:
      ValueError: when there is nothing there, or a row is unknown or not there.
      CheckpointError: when a checkpoint is damaged.
    """
    if unknown := [row for row in rows if row not in ROWS]:
        raise ValueError(f"row {unknown[0]!r} is unknown; use {', '.join(ROWS)}.")
    if not path.exists():
        raise ValueError(f"the checkpoint {path} does not exist; check the path.")
    if path.is_file():
        return [_restore_file(path)]
    found = _find_checkpoints(path)
    restored = []
    for which, folder in found.items():
        content = checkpoint.read(folder)
        checkpoint.check_notes(folder, content.notes, "model")
        sources = {"raw": content.arrays}
        if "ema" in content.arrays:
            sources["ema"] = content.arrays["ema"]
        for kind, arrays in sources.items():
            names = [f"{part}/{kind}" for part in which.split("=")]
            if rows and not set(rows) & set(names):
                continue
            row = f"{which}/{kind}" if which else kind
            restored.append(_restore_weights(row, content.notes, arrays, fuse=fuse))
    if not restored:
        raise ValueError(
            f"{path} has none of the rows {', '.join(rows)}; it has"
            f" {', '.join(found)} checkpoints; leave out --rows."
        )
    return restored


def _find_checkpoints(path: pathlib.Path) -> dict[str, pathlib.Path]:
    """By name: "last" and "best", "last=best", or "" when the path is no run's."""
    last = weights.find_checkpoint(path, which="latest")
    if last == path or not checkpoint.read(last).notes.get("progress"):
        return {"": last}
    best = weights.find_checkpoint(path, which="best")
    return {"last=best": last} if best == last else {"last": last, "best": best}


def _restore_weights(
    row: str, notes: Mapping[str, Any], arrays: Mapping[str, Any], *, fuse: bool
) -> Restored:
    options = dict(notes["model"])
    name = options["name"]
    if "dtype" in options:
        options["dtype"] = jnp.dtype(options["dtype"])
    model = api.create_model(**options)
    variables = {"params": arrays["params"]}
    if "batch_stats" in arrays:
        variables["batch_stats"] = arrays["batch_stats"]
    if fuse:
        model, variables = api.fuse(model, variables)
    preprocessing = _preprocessing(notes.get("preprocessing", {}), where=row)
    meaning = {
        "model": notes["model"],
        "preprocessing": preprocessing._asdict(),
        "class_names": list(notes.get("class_names", ())),
        "fused": fuse,
    }
    return Restored(
        row=f"{row} fused" if fuse else row,
        model=name,
        digest=digest.digest(jax.tree.map(jax.device_get, variables), notes=meaning),
        class_names=tuple(notes.get("class_names", ())),
        preprocessing=preprocessing,
        make_predictor=lambda mesh: prediction.model_predictor(
            functools.partial(model.apply, train=False),
            variables,
            mesh=mesh,
            mean=preprocessing.mean,
            std=preprocessing.std,
        ),
    )


def _restore_file(path: pathlib.Path) -> Restored:
    model = exported.open_exported(path)
    height, width, channels = model.image_shape
    if height != width:
        raise ValueError(
            f"{path} takes images of {height} x {width}; evaluation crops are square."
        )
    notes = dict(model.certificate.get("preprocessing", {}))
    notes.setdefault("channels", channels)
    preprocessing = _preprocessing({**notes, "size": height}, where=str(path))
    return Restored(
        row=FILE_ROW,
        model=path.name,
        digest=digest.digest(
            {}, notes={"file": model.digest, "preprocessing": preprocessing._asdict()}
        ),
        class_names=tuple(model.certificate.get("class_names", ())),
        preprocessing=preprocessing,
        make_predictor=lambda mesh: prediction.host_predictor(
            model.logits_of,
            mean=preprocessing.mean,
            std=preprocessing.std,
            dtype=model.dtype,
        ),
        batch_size=model.batch_size,
        fixed_size=True,
    )


def _preprocessing(notes: Mapping[str, Any], *, where: str) -> Preprocessing:
    """From the notes of a checkpoint; ImageNet's usual values where they are silent."""
    size = notes.get("size", notes.get("image_size"))
    if size is None:
        raise ValueError(
            f"{where} does not note the size of its images; export or save it again."
        )
    mean = tuple(notes.get("mean", (0.485, 0.456, 0.406)))
    return Preprocessing(
        size=int(size),
        channels=int(notes.get("channels", len(mean))),
        crop_ratio=float(notes.get("crop_ratio", 0.875)),
        interpolation=notes.get("interpolation", "bicubic"),
        mean=mean,
        std=tuple(notes.get("std", (0.229, 0.224, 0.225))),
    )
