r"""Converts an official LSNet checkpoint, with one head or two, to one of lvb.

    python scripts/convert_torch_lsnet.py lsnet_t.pth --out weights/lsnet_t

The output folder works wherever a checkpoint or a --workdir is asked for. A .pth file
needs `pip install 'lvb[torch]'`; .safetensors and .npz files do not need PyTorch.

With `--reference outputs.npz` every layer is compared first, and nothing is written if
one differs. The file holds images as "input", (B, 3, H, W), and outputs of PyTorch's
modules by name, for instance:

    outputs = {"input": images.numpy()}
    for name, module in model.eval().named_modules():
        module.register_forward_hook(
            lambda m, args, y, name=name: outputs.update({name: y.numpy()}))
    with torch.no_grad(): model(images)
    numpy.savez("outputs.npz", **outputs)

Exit status: 0 when converted, 1 when the file does not fit, 2 for a wrong call.
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lvb
from lvb.models import lsnet_compare, lsnet_weights, torch_file
from lvb.training import weights as weights_lib

# How LSNet's tables were measured: its released evaluation code.
PREPROCESSING = {
    "size": 224,
    "crop_ratio": 0.875,  # 224 / 256.
    "channels": 3,
    "interpolation": "bicubic",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


def main(argv: list[str] | None = None) -> int:
    """Converts one file and returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("checkpoint", help="a .pth, .safetensors or .npz file")
    parser.add_argument("--out", required=True, help="folder to write, new or empty")
    parser.add_argument("--weights", default="model", choices=("model", "model_ema"))
    parser.add_argument("--reference", help=".npz of PyTorch's outputs to compare with")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    args = parser.parse_args(argv)
    try:
        written = convert(args)
    except (ValueError, ImportError, OSError) as error:
        print(f"convert_torch_lsnet: {error}", file=sys.stderr)
        return 1
    print(f"wrote {written}")
    return 0


def convert(args: argparse.Namespace) -> pathlib.Path:
    """Reads, compares if asked, and writes; returns the checkpoint's folder."""
    state = torch_file.read_state(args.checkpoint, weights=args.weights)
    name = f"lsnet_{lsnet_weights.variant_of(state).lower()}"
    variables = lsnet_weights.convert(name, state)
    head = variables["params"]["head"]
    model = dict(
        name=name,
        num_classes=int(head["classifier"]["bias"].size),
        distilled="distill_classifier" in head,
    )
    print(f"{args.checkpoint}: {model}")
    if args.reference:
        compare(model, variables, args.reference, args.tolerance)
    return weights_lib.save_variables(
        args.out,
        variables,
        model=model,
        preprocessing=PREPROCESSING,
        source=pathlib.Path(args.checkpoint).name,
    )


def compare(
    options: Mapping[str, Any],
    variables: Mapping[str, Any],
    path: str,
    tolerance: float,
) -> None:
    """Raises ValueError, naming the first layer whose output differs."""
    with np.load(path, allow_pickle=False) as file:
        reference = {name: file[name] for name in file.files}
    if "input" not in reference:
        raise ValueError(f"{path} has no array 'input'; store the images under it.")
    images = jnp.moveaxis(jnp.asarray(reference.pop("input")), 1, -1)
    run = jax.jit(
        functools.partial(
            lvb.create_model(**options).apply,
            train=False,
            capture_intermediates=True,
            mutable=["intermediates"],
        )
    )
    logits, extra = run(variables, images)
    found = lsnet_compare.first_difference(
        reference, extra["intermediates"], tolerance=tolerance
    )
    if found:
        raise ValueError(
            f"{found.torch_name} ({found.path}) is the first layer that differs: by "
            f"{found.error:.3g}, where PyTorch's values reach {found.scale:.3g}."
        )
    print(f"all compared layers agree; logits {logits.shape}")


if __name__ == "__main__":
    sys.exit(main())
