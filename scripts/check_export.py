"""Checks exported files with their own runtime alone: jax or onnxruntime, not lvb.

    python scripts/check_export.py deployed/*.onnx deployed/*.stablehlo

Runs each file on the images that lie beside it, alone and in a batch of seven, and
fails if a logit is further than 1e-4 from the JAX model's.
"""

import pathlib
import sys
from collections.abc import Callable, Sequence

import numpy as np

TOLERANCE = 1e-4
BATCHES = (1, 7)


def open_file(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    """What a file computes, images (B, H, W, C) -> logits (B, num_classes)."""
    if path.suffix == ".stablehlo":
        import jax
        from jax import export

        call = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
        return lambda images: np.asarray(call(images))
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(path), providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def errors(path: pathlib.Path) -> dict[int, float]:
    """The largest error of a logit by size of batch."""
    with np.load(path.with_name(path.name + ".npz")) as sample:
        images, expected = sample["image"], sample["logits"]
    if len(images) < max(BATCHES):
        raise SystemExit(
            f"{path}: {len(images)} images lie beside it; export with 7 or more."
        )
    logits_of = open_file(path)
    return {
        size: float(np.abs(logits_of(images[:size]) - expected[:size]).max())
        for size in BATCHES
    }


def main(paths: Sequence[str]) -> int:
    """Checks all files; returns 1 if one fails."""
    failed = 0
    for path in map(pathlib.Path, paths):
        found = errors(path)
        good = max(found.values()) <= TOLERANCE
        failed += not good
        words = ", ".join(f"batch {size}: {error:.1e}" for size, error in found.items())
        print(f"{path.name}: {words}{'' if good else ' FAILED'}", flush=True)
    if "lvb" in sys.modules:
        raise SystemExit("lvb was imported; this check must not need it.")
    print(f"{len(paths) - failed} of {len(paths)} files within {TOLERANCE:g}.")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
