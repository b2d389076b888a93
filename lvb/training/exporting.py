"""Writes classifiers as files that run without lvb, each with its certificate.

    model.stablehlo         bytes of jax.export.Exported.serialize(), for CPU, GPU, TPU
    model.onnx              an ONNX graph of stock operators
    <either file>.json      its certificate
    <either file>.npz       what the certificate was made with: "image", "logits"

`lvb.training.exported` opens them.
"""

import collections
import hashlib
import importlib.metadata
import json
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

FORMATS = ("stablehlo", "onnx")
PLATFORMS = ("cpu", "cuda", "tpu")
_PACKAGES = ("jax", "jaxlib", "flax", "jax2onnx", "onnx", "onnxruntime")


class Export(NamedTuple):
    """A file's bytes and how often it uses each operator."""

    content: bytes
    operators: dict[str, int]


def to_stablehlo(
    logits_of: Callable[[jax.Array], jax.Array],
    *,
    image_shape: tuple[int, int, int],
    dtype: str,
) -> Export:
    """Exports a function of a batch of any size as StableHLO.

    Args:
      logits_of: images (B, H, W, C) -> (B, num_classes).
      image_shape: (H, W, C).
      dtype: of the images, "uint8" or "float32".

    Returns:
      What `jax.export.deserialize` reads, for the platforms in `PLATFORMS`.
    """
    from jax import export

    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.dtype(dtype))
    exported = export.export(jax.jit(logits_of), platforms=PLATFORMS)(images)
    # A custom call counts under what it calls.
    pattern = r"\b(?:stablehlo|chlo)\.[a-z_0-9]+(?: @\w+)?"
    names = re.findall(pattern, exported.mlir_module())
    return Export(bytes(exported.serialize()), _counted(names))


def to_onnx(
    logits_of: Callable[[jax.Array], jax.Array],
    *,
    image_shape: tuple[int, int, int],
    dtype: str,
) -> Export:
    """Exports a function of a batch of any size as ONNX.

    Args:
      logits_of: as for `to_stablehlo`; build its model with `op_form="reference"`, so
        that a depthwise convolution is one `Conv`.
      image_shape: (H, W, C).
      dtype: of the images.

    Returns:
      A graph of one input and one output, operators of ONNX's own domain only.

    Raises:
      ValueError: if jax2onnx is missing, or an operator is not ONNX's own.
    """
    try:
        import jax2onnx
    except ImportError:
        raise ValueError(
            "ONNX export needs jax2onnx; run pip install 'lvb[export]'."
        ) from None
    images = jax.ShapeDtypeStruct(("batch", *image_shape), jnp.dtype(dtype))
    graph = jax2onnx.to_onnx(logits_of, inputs=[images])
    custom = {node.domain for node in graph.graph.node} - {"", "ai.onnx"}
    if custom:
        raise ValueError(
            f"the graph uses operators of {', '.join(sorted(custom))}, which a stock "
            "runtime does not have; export as stablehlo."
        )
    operators = _counted(node.op_type for node in graph.graph.node)
    return Export(graph.SerializeToString(), operators)


def write(
    path: pathlib.Path,
    export: Export,
    *,
    images: np.ndarray,
    logits: np.ndarray,
    notes: Mapping[str, Any],
) -> None:
    """Writes the file, the images and logits it must reproduce, and a bare certificate.

    `certify` completes the certificate.

    Args:
      path: of the file, ending in .stablehlo or .onnx.
      export: from `to_stablehlo` or `to_onnx`.
      images: (B, H, W, C) as the file takes them.
      logits: (B, num_classes) of the model itself, float32.
      notes: JSON values kept in the certificate.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(export.content)
    np.savez_compressed(_sibling(path, ".npz"), image=images, logits=logits)
    certificate = {
        **notes,
        "input": {"shape": [None, *images.shape[1:]], "dtype": str(images.dtype)},
        "operators": export.operators,
        "digest": hashlib.sha256(export.content).hexdigest(),
        "exported_with": versions(),
    }
    _sibling(path, ".json").write_text(json.dumps(certificate, indent=1) + "\n")


def certify(
    path: pathlib.Path, logits_of: Callable[[np.ndarray], np.ndarray]
) -> dict[str, Any]:
    """Runs a file on the images it was exported with and notes how far it is off.

    Args:
      path: of the file.
      logits_of: what the file computes, in its own runtime.

    Returns:
      The completed certificate, as written beside the file: "max_abs_error",
      "mean_abs_error", "top1_agreement", "num_images", "checked_with".

    Raises:
      ValueError: if a file is missing or the bytes are not those that were exported.
    """
    sample, file = _sibling(path, ".npz"), _sibling(path, ".json")
    for needed in (path, sample, file):
        if not needed.is_file():
            raise ValueError(f"{needed} is missing; export the model again.")
    certificate = json.loads(file.read_text())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != certificate["digest"]:
        raise ValueError(
            f"{path} has digest {digest[:12]}..., its certificate is for "
            f"{certificate['digest'][:12]}...; export the model again."
        )
    with np.load(sample) as arrays:
        images, expected = arrays["image"], arrays["logits"]
    # One image alone, seven, and the others: any size of batch must work.
    parts = [part for part in np.split(images, (1, 8)) if len(part)]
    actual = np.concatenate([logits_of(part) for part in parts])
    difference = np.abs(actual - expected)
    certificate |= {
        "num_images": len(images),
        "max_abs_error": float(difference.max()),
        "mean_abs_error": float(difference.mean()),
        "largest_logit": float(np.abs(expected).max()),
        "top1_agreement": float(np.mean(actual.argmax(-1) == expected.argmax(-1))),
        "checked_with": versions(),
    }
    file.write_text(json.dumps(certificate, indent=1) + "\n")
    return certificate


def versions() -> dict[str, str]:
    """Versions of the packages that matter here and are installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _sibling(path: pathlib.Path, suffix: str) -> pathlib.Path:
    return path.with_name(path.name + suffix)


def _counted(names: Any) -> dict[str, int]:
    return dict(sorted(collections.Counter(names).items()))
