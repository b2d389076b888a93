r"""Names what is in a picture.

    python -m lvb.predict cat.jpg dog.png --checkpoint runs/lsnet_t
    python -m lvb.predict cat.jpg --checkpoint lsnet_t.stablehlo --top 3

The checkpoint is the workdir of a run, one of its checkpoints, a converted checkpoint,
or an exported .stablehlo or .onnx file. It says how pictures are made ready; a flag
that says otherwise is refused unless --allow_mismatch comes with it.

Exit codes: 0 done; 1 an error, told on stderr.
"""

import argparse
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from lvb import restore
from lvb.data import class_words, decode, transforms
from lvb.training import checkpoint, process, sharding, weights

_BATCH_SIZE = 16


class Guess(NamedTuple):
    """A class and its probability, in [0, 1]."""

    name: str
    probability: float


def predict(
    model: restore.Restored,
    images: Sequence[Image.Image],
    *,
    preprocessing: restore.Preprocessing | None = None,
    top: int = 5,
) -> list[list[Guess]]:
    """Classifies pictures.

    Args:
      model: from `choose`.
      images: upright pictures of mode "L" or "RGB".
      preprocessing: instead of the model's own.
      top: number of guesses; fewer if there are fewer classes.

    Returns:
      The guesses of each picture, the likeliest first.
    """
    ready = preprocessing or model.preprocessing
    transform = transforms.EvalTransform(
        size=ready.size,
        channels=ready.channels,
        interpolation=ready.interpolation,
        crop_ratio=ready.crop_ratio,
    )
    pixels = [transform(image, np.random.default_rng(0)) for image in images]
    predictor = model.make_predictor(sharding.make_mesh(jax.devices()[:1]))
    size = model.batch_size or min(_BATCH_SIZE, len(pixels))
    rows = [
        predictor(batch)["logits"][batch["mask"]] for batch in _batches(pixels, size)
    ]
    logits = np.concatenate(rows).astype(np.float64)  # (N, num_classes)
    names = class_words.readable(model.class_names, num_classes=logits.shape[-1])
    scores = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    return [
        [Guess(names[k], float(row[k])) for k in np.argsort(-row, kind="stable")[:top]]
        for row in scores
    ]


def choose(path: pathlib.Path, row: str = "") -> restore.Restored:
    """Opens the weights that a run evaluates, or those of a row.

    Args:
      path: of a run, a checkpoint or an exported file.
      row: one of `restore.ROWS`; "" for the best checkpoint, raw or averaged as the
        run evaluates it.

    Raises:
      ValueError: if there is nothing there, or nothing of that row.
    """
    models = restore.restore(path, rows=[row] if row else ())
    if row or len(models) == 1:
        return models[0]
    notes = checkpoint.read_notes(weights.find_checkpoint(path))
    kind = "ema" if notes.get("use_ema") else "raw"
    fitting = [model for model in models if model.row.endswith(kind)]
    return next((model for model in fitting if "best" in model.row), fitting[0])


def override(
    model: restore.Restored, *, allow_mismatch: bool = False, **flags: object
) -> restore.Preprocessing:
    """The model's preprocessing with the flags that were given.

    Args:
      model: with the preprocessing it was validated with.
      allow_mismatch: whether a flag may say otherwise.
      **flags: fields of `restore.Preprocessing`; None where no flag was given.

    Raises:
      ValueError: if a flag says otherwise and may not.
    """
    own = model.preprocessing
    given = {
        name: value
        for name, value in flags.items()
        if value is not None and value != getattr(own, name)
    }
    for name, value in given.items():
        if name == "size" and model.fixed_size:
            raise ValueError(
                f"{model.model} takes images of {own.size} px only; leave out --size."
            )
        if not allow_mismatch:
            raise ValueError(
                f"{model.model} was validated with {name}={getattr(own, name)}, not "
                f"{value}; leave out --{name}, or add --allow_mismatch to go on all "
                "the same."
            )
    return own._replace(**given)


def read_image(path: pathlib.Path) -> Image.Image:
    """Reads a picture file; an error names it."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give picture files, such as {path}/*.")
    if not path.is_file():
        raise ValueError(f"the picture {path} does not exist; check the path.")
    try:
        return decode.decode_image(path.read_bytes())
    except decode.BrokenImage as error:
        raise ValueError(f"the picture {path} cannot be read: {error}.") from None


def _batches(
    pixels: Sequence[np.ndarray], size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of one size; the last is filled with its first picture."""
    for start in range(0, len(pixels), size):
        chunk = list(pixels[start : start + size])
        mask = np.arange(size) < len(chunk)
        chunk += chunk[:1] * (size - len(chunk))
        numbers = np.arange(size)
        yield {
            "image": np.stack(chunk),
            "label": np.zeros(size, np.int32),
            "index": numbers,
            "mask": mask,
        }


def _main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lvb.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("images", nargs="+", type=pathlib.Path, metavar="IMAGE")
    parser.add_argument("--checkpoint", required=True, type=pathlib.Path)
    parser.add_argument("--row", default="", help=f"one of {', '.join(restore.ROWS)}")
    parser.add_argument("--top", type=int, default=5, help="number of guesses")
    parser.add_argument("--size", type=int, help="input side in pixels")
    parser.add_argument("--crop_ratio", type=float, help="size / short side")
    parser.add_argument("--interpolation", choices=sorted(transforms.FILTERS))
    parser.add_argument("--allow_mismatch", action="store_true")
    args = parser.parse_args(argv)
    images = [read_image(path) for path in args.images]
    model = choose(args.checkpoint.expanduser(), args.row)
    ready = override(
        model,
        allow_mismatch=args.allow_mismatch,
        size=args.size,
        crop_ratio=args.crop_ratio,
        interpolation=args.interpolation,
    )
    guesses = predict(model, images, preprocessing=ready, top=args.top)
    for path, row in zip(args.images, guesses, strict=True):
        print(path)
        for name, probability in row:
            print(f"  {probability:7.2%}  {name}")
    return process.DONE


if __name__ == "__main__":
    sys.exit(process.run(lambda: _main(sys.argv[1:]), name="lvb.predict"))
