"""Reads exported classifiers: StableHLO through `jax.export`, ONNX through its runtime.

    model.stablehlo         bytes of jax.export.Exported.serialize()
    model.onnx              an ONNX graph of one input and one output
    <either file>.json      its certificate

The certificate tells what the file itself cannot: "input": {"shape": [null, H, W, C],
"dtype": "uint8" or "float32"}, "preprocessing" as a checkpoint notes it, "class_names".
A float input expects normalised images, a uint8 input pixels.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

SUFFIXES = (".stablehlo", ".onnx")


class ExportedModel(NamedTuple):
    """An exported classifier.

    Attributes:
      logits_of: images (B, H, W, C), in `dtype` -> logits (B, num_classes).
      batch_size: the only one it takes, or None when any will do.
      image_shape: (H, W, C).
      dtype: "uint8" when it normalises itself, else "float32" or "bfloat16".
      certificate: what the file beside it says.
      digest: SHA-256 of the file.
    """

    logits_of: Callable[[np.ndarray], np.ndarray]
    batch_size: int | None
    image_shape: tuple[int, int, int]
    dtype: str
    certificate: Mapping[str, Any]
    digest: str


def open_exported(path: str | pathlib.Path) -> ExportedModel:
    """Opens an exported classifier.

    Args:
      path: of a file that ends in one of `SUFFIXES`.

    Raises:
      ValueError: when the file, its certificate or its input do not fit.
    """
    path = pathlib.Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is no exported model; use {' or '.join(SUFFIXES)}.")
    if not path.is_file():
        raise ValueError(f"the exported model {path} does not exist; check the path.")
    certificate = _read_certificate(path)
    opener = _open_stablehlo if path.suffix == ".stablehlo" else _open_onnx
    logits_of, shape, dtype = opener(path)
    declared = certificate.get("input", {}).get("shape")
    shape = _fill(shape, declared)
    layout = "NCHW" if shape[1] in (1, 3) and shape[3] not in (1, 3) else "NHWC"
    if layout == "NCHW":
        shape = (shape[0], *shape[2:], shape[1])
        channels_last = logits_of

        def logits_of(images: np.ndarray) -> np.ndarray:
            return channels_last(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))

    if any(size is None for size in shape[1:]):
        raise ValueError(
            f"{path} takes images of any size; name the one to use as"
            f' {{"input": {{"shape": [null, 224, 224, 3]}}}} in {path}.json.'
        )
    return ExportedModel(
        logits_of,
        shape[0],
        (shape[1], shape[2], shape[3]),
        dtype,
        certificate,
        hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def _read_certificate(path: pathlib.Path) -> dict[str, Any]:
    file = path.with_name(path.name + ".json")
    if not file.is_file():
        return {}
    try:
        certificate = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(
            f"{file} is no JSON ({error}); export the model again."
        ) from None
    if not isinstance(certificate, dict):
        raise ValueError(f"{file} is no JSON object; export the model again.")
    return certificate


def _open_stablehlo(path: pathlib.Path) -> tuple[Callable, tuple, str]:
    from jax import export

    try:
        exported = export.deserialize(bytearray(path.read_bytes()))
    except ImportError:
        raise ValueError(
            f"{path} needs flatbuffers; run pip install 'lvb[export]'."
        ) from None
    except Exception as error:
        raise ValueError(
            f"{path} is not what jax.export wrote ({_brief(error)}); export it again."
        ) from None
    platform = jax.default_backend()
    if platform not in exported.platforms:
        raise ValueError(
            f"{path} was exported for {', '.join(exported.platforms)}, and this is"
            f" {platform}; set JAX_PLATFORMS={exported.platforms[0]} or export again."
        )
    inputs = exported.in_avals
    _check_input(path, len(inputs), len(inputs[0].shape) if inputs else 0)
    shape = tuple(size if isinstance(size, int) else None for size in inputs[0].shape)
    call = jax.jit(exported.call)

    def logits_of(images: np.ndarray) -> np.ndarray:
        return np.asarray(jax.tree.leaves(call(images))[0])

    return logits_of, shape, inputs[0].dtype.name


def _open_onnx(path: pathlib.Path) -> tuple[Callable, tuple, str]:
    try:
        import onnxruntime
    except ImportError:
        raise ValueError(
            f"{path} needs onnxruntime; run pip install 'lvb[export]'."
        ) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # Errors; its warnings are about its own buffers.
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=onnxruntime.get_available_providers()
        )
    except Exception as error:
        raise ValueError(
            f"{path} does not load in onnxruntime ({_brief(error)}); export it again."
        ) from None
    inputs = session.get_inputs()
    _check_input(path, len(inputs), len(inputs[0].shape) if inputs else 0)
    name, output = inputs[0].name, session.get_outputs()[0].name
    shape = tuple(size if isinstance(size, int) else None for size in inputs[0].shape)
    dtype = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}.get(inputs[0].type)
    if dtype is None:
        raise ValueError(
            f"{path} takes {inputs[0].type}; export it with uint8 or float32 input."
        )

    def logits_of(images: np.ndarray) -> np.ndarray:
        return session.run([output], {name: images})[0]

    return logits_of, shape, dtype


def _check_input(path: pathlib.Path, count: int, rank: int) -> None:
    if count != 1 or rank != 4:
        raise ValueError(
            f"{path} takes {count} inputs, the first of rank {rank}; a classifier takes"
            " one batch of images of rank 4."
        )


def _fill(shape: tuple, declared: Any) -> tuple:
    """Sizes of the file, open ones from the certificate; the batch stays open."""
    if not isinstance(declared, list) or len(declared) != 4:
        return shape
    filled = zip(shape[1:], declared[1:], strict=True)
    return (shape[0], *(mine if mine is not None else other for mine, other in filled))


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(".")
