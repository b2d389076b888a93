r"""Exports a trained classifier for deployment.

    python -m lvb.export --checkpoint runs/quickstart --format stablehlo,onnx --out D
    python -m lvb.export --checkpoint W --input uint8 --images photos --out D
    python -m lvb.export --certify D/model.onnx

The network is fused; its batch is free. Beside each file lie its certificate (input,
errors against the JAX model, agreement, operators, digest, versions) and the images and
logits it was made with, so that `--certify` needs the file's own runtime only: jax for
.stablehlo, onnxruntime for .onnx.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lvb import api
from lvb.data import decode, transforms
from lvb.ops import preprocess
from lvb.training import exported, exporting, process, weights

_NUM_IMAGES = 16
_SUFFIXES = (".jpg", ".jpeg", ".png")


def export_checkpoint(
    path: str,
    out: pathlib.Path,
    *,
    formats: Sequence[str],
    input_dtype: str,
    images: str | None = None,
    which_weights: str = "auto",
) -> dict[str, dict[str, Any]]:
    """Exports a checkpoint and certifies each file.

    Args:
      path: workdir or checkpoint.
      out: folder of the files, named after the model.
      formats: of "stablehlo" and "onnx".
      input_dtype: "float32" takes normalised images, "uint8" pixels.
      images: folder of photographs for the certificate, or None for noise.
      which_weights: see `lvb.training.weights.load_checkpoint`.

    Returns:
      Certificates by file name.

    Raises:
      ValueError: if something does not fit, in one sentence.
    """
    unknown = sorted(set(formats) - set(exporting.FORMATS))
    if unknown:
        raise ValueError(
            f"--format={','.join(unknown)} is unknown; use one or more of "
            f"{', '.join(exporting.FORMATS)}."
        )
    notes, variables = weights.load_checkpoint(path, weights=which_weights)
    preprocessing = notes["preprocessing"]
    shape = image_shape(preprocessing)
    pixels = sample_pixels(images, preprocessing)
    sample = np.asarray(normalise(pixels, preprocessing))
    name = notes["model"]["name"]
    certificates = {}
    for kind in formats:
        # XLA shifts and adds on CPU; ONNX runtimes have depthwise kernels.
        form = "reference" if kind == "onnx" else "auto"
        model = api.create_model(**{**notes["model"], "op_form": form})
        model, fused = api.fuse(model, variables)

        def logits_of(x: jax.Array, model: Any = model, fused: Any = fused) -> Any:
            if input_dtype == "uint8":
                x = normalise(x, preprocessing)
            return model.apply(fused, x, train=False)

        convert = exporting.to_onnx if kind == "onnx" else exporting.to_stablehlo
        export = convert(logits_of, image_shape=shape, dtype=input_dtype)
        inputs = pixels if input_dtype == "uint8" else sample
        file = out / f"{name}.{kind}"
        exporting.write(
            file,
            export,
            images=inputs,
            logits=np.asarray(jax.jit(logits_of)(inputs), np.float32),
            notes={
                "model": notes["model"],
                "preprocessing": preprocessing,
                "class_names": notes["class_names"],
                "images": "photographs" if images else "noise",
            },
        )
        certificates[file.name] = certify_file(file)
    return certificates


def certify_file(path: pathlib.Path) -> dict[str, Any]:
    """Checks an exported file in its own runtime; see `exporting.certify`."""
    return exporting.certify(path, exported.open_exported(path).logits_of)


def image_shape(preprocessing: Mapping[str, Any]) -> tuple[int, int, int]:
    """(H, W, C) of the images that a checkpoint's model was trained on."""
    size = int(preprocessing["size"])
    return size, size, int(preprocessing["channels"])


def normalise(images: Any, preprocessing: Mapping[str, Any]) -> jax.Array:
    """Pixels to the model's input."""
    return preprocess.normalize(
        images, mean=preprocessing["mean"], std=preprocessing["std"]
    )


def sample_pixels(folder: str | None, preprocessing: Mapping[str, Any]) -> np.ndarray:
    """Images to certify with, (B, H, W, C) uint8.

    Args:
      folder: of photographs, looked through recursively, or None for noise.
      preprocessing: of the checkpoint.

    Raises:
      ValueError: if the folder holds no photographs.
    """
    shape = image_shape(preprocessing)
    rng = np.random.default_rng(0)
    if folder is None:
        return rng.integers(0, 256, (_NUM_IMAGES, *shape), dtype=np.uint8)
    paths = sorted(
        path
        for path in pathlib.Path(folder).rglob("*")
        if path.suffix.lower() in _SUFFIXES
    )[:_NUM_IMAGES]
    if len(paths) < 2:
        raise ValueError(
            f"--images={folder} holds {len(paths)} JPEG or PNG files; give 2 or more."
        )
    transform = transforms.EvalTransform(
        shape[0],
        channels=shape[2],
        interpolation=preprocessing["interpolation"],
        crop_ratio=preprocessing["crop_ratio"],
    )
    return np.stack(
        [transform(decode.decode_image(path.read_bytes()), rng) for path in paths]
    )


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m lvb.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--checkpoint", help="workdir or checkpoint folder")
    add("--out", help="folder to write to")
    formats = ", ".join(exporting.FORMATS)
    add("--format", default="stablehlo", help=f"one or more of {formats}, with commas")
    add(
        "--input",
        default="float32",
        choices=("float32", "uint8"),
        help="float32 takes normalised images; uint8 pixels, which the file normalises",
    )
    add("--images", help="folder of photographs to certify with; default: noise")
    add(
        "--weights",
        default="auto",
        choices=weights.WEIGHTS,
        help="raw, averaged, or those that the run evaluates",
    )
    add("--certify", metavar="FILE", help="check an exported file again, nothing else")
    return parser


def run(args: argparse.Namespace) -> int:
    """Exports or certifies; returns the exit code."""
    if args.certify:
        path = pathlib.Path(args.certify)
        certificates = {path.name: certify_file(path)}
    elif args.checkpoint and args.out:
        certificates = export_checkpoint(
            args.checkpoint,
            pathlib.Path(args.out),
            formats=args.format.split(","),
            input_dtype=args.input,
            images=args.images,
            which_weights=args.weights,
        )
    else:
        raise ValueError("give --checkpoint and --out, or --certify.")
    for name, certificate in certificates.items():
        shown = {
            key: certificate[key]
            for key in ("max_abs_error", "mean_abs_error", "top1_agreement", "images")
        }
        print(f"{name}: {json.dumps(shown)}")
    return process.DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, runs the command and returns the exit code."""
    args = make_parser().parse_args(argv)
    return process.run(lambda: run(args), name="lvb.export")


if __name__ == "__main__":
    sys.exit(main())
