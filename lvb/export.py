r"""Exports a trained classifier for deployment.

    python -m lvb.export --checkpoint runs/quickstart --format stablehlo,onnx --out D
    python -m lvb.export --checkpoint W --input uint8 --images photos --out D
    python -m lvb.export --model all --format stablehlo,onnx --out D   # random weights
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
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lvb import api, random_weights
from lvb.data import decode, transforms
from lvb.ops import forms, preprocess
from lvb.training import exported, exporting, process, weights

_NUM_IMAGES = 16
_SUFFIXES = (".jpg", ".jpeg", ".png")
# Of a model without a checkpoint: the papers' evaluation on ImageNet.
_PREPROCESSING = {
    "size": 224,
    "channels": 3,
    "crop_ratio": 0.875,
    "interpolation": "bicubic",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


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
    notes, variables = weights.load_checkpoint(path, weights=which_weights)
    return export_variables(
        notes,
        variables,
        out,
        formats=formats,
        input_dtype=input_dtype,
        images=images,
    )


def export_random(
    names: Sequence[str],
    out: pathlib.Path,
    *,
    images: str | None = None,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """Exports models with random weights, to try a runtime before there are others.

    Args:
      names: of models.
      out: folder of the files.
      images: folder of photographs for batch statistics and certificate, or None for
        noise.
      **options: as for `export_variables`.

    Returns:
      Certificates by file name.
    """
    pixels = sample_pixels(images, _PREPROCESSING)
    certificates = {}
    for name in names:
        model = {"name": name, "num_classes": 1000}
        notes = {
            "model": model,
            "preprocessing": _PREPROCESSING,
            "class_names": [],
        }
        network = api.create_model(**model)
        variables = random_weights.random_variables(network)
        variables = random_weights.calibrated(
            network, variables, np.asarray(normalise(pixels, _PREPROCESSING))
        )
        certificates |= export_variables(
            notes, variables, out, images=images, **options
        )
    return certificates


def export_variables(
    notes: Mapping[str, Any],
    variables: Mapping[str, Any],
    out: pathlib.Path,
    *,
    formats: Sequence[str],
    input_dtype: str,
    images: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Exports a model and certifies each file.

    Args:
      notes: "model", "preprocessing" and "class_names" of a checkpoint.
      variables: of the model in training form.
      out: folder of the files, named after the model.
      formats: of "stablehlo" and "onnx".
      input_dtype: "float32" takes normalised images, "uint8" pixels.
      images: folder of photographs for the certificate, or None for noise.

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
    preprocessing = notes["preprocessing"]
    shape = image_shape(preprocessing)
    inputs = sample_pixels(images, preprocessing)
    if input_dtype != "uint8":
        inputs = np.asarray(normalise(inputs, preprocessing))

    def fused(form: str) -> Callable[[jax.Array], jax.Array]:
        """The function of a file, in an operator form."""
        model = api.create_model(**{**notes["model"], "op_form": form})
        model, deployed = api.fuse(model, variables)

        def logits_of(x: jax.Array) -> jax.Array:
            if input_dtype == "uint8":
                x = normalise(x, preprocessing)
            return model.apply(deployed, x, train=False)

        return logits_of

    ours = fused("auto")
    logits = np.asarray(jax.jit(ours)(inputs), np.float32)
    certificates = {}
    for kind in formats:
        # XLA shifts and adds on CPU; ONNX runtimes have depthwise kernels. Neither has
        # native programs, which "auto" may take.
        form = "reference" if kind == "onnx" else forms.resolve("auto")
        logits_of = fused(form)
        convert = exporting.to_onnx if kind == "onnx" else exporting.to_stablehlo
        export = convert(logits_of, image_shape=shape, dtype=input_dtype)
        file = out / f"{notes['model']['name']}.{kind}"
        exporting.write(
            file,
            export,
            images=inputs,
            logits=logits,
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
    add("--model", help="names with commas, or all: with random weights instead")
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
    elif args.out and bool(args.checkpoint) != bool(args.model):
        options = dict(
            formats=args.format.split(","), input_dtype=args.input, images=args.images
        )
        out = pathlib.Path(args.out)
        if args.model:
            every = args.model == "all"
            names = api.list_models() if every else args.model.split(",")
            certificates = export_random(names, out, **options)
        else:
            certificates = export_checkpoint(
                args.checkpoint, out, which_weights=args.weights, **options
            )
    else:
        raise ValueError("give --checkpoint or --model, and --out; or --certify.")
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
