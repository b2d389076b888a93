"""Reads the tensors of a PyTorch checkpoint file without running code from it.

`.npz` and `.safetensors` files need no PyTorch; `.pth`, `.pt` and `.bin` files are read
by `torch.load(weights_only=True)`, of the optional extra `lvb[torch]`.
"""

import argparse
import pathlib
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".npz")


def read_state(
    path: str | pathlib.Path, *, weights: str = "model"
) -> dict[str, np.ndarray]:
    """Reads one state dict: names as PyTorch spells them, arrays as stored.

    A training checkpoint holds several, each under a key; in `.npz` and
    `.safetensors` files that key is a prefix, as in "model_ema.head.l.bias". A file
    without such a key is one state dict. The prefix "module." of data-parallel
    training is dropped.

    Args:
      path: a file whose suffix is one of `SUFFIXES`.
      weights: the key to read, "model" or "model_ema" in LSNet's checkpoints.

    Returns:
      The arrays by name, in the file's order; half precision as float32.

    Raises:
      ValueError: if the file cannot be read, holds code, or has no `weights`.
      ImportError: if the file's library is not installed.
    """
    path = pathlib.Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"{path}: suffix {path.suffix!r} is unknown; use one of "
            f"{', '.join(SUFFIXES)}."
        )
    if not path.is_file():
        raise ValueError(f"{path}: no such file; pass the path of a checkpoint.")
    if path.suffix == ".npz":
        stored = _read_npz(path)
    elif path.suffix == ".safetensors":
        stored = _read_safetensors(path)
    else:
        stored = _read_pickle(path)
    state = _select(stored, weights, path)
    return {name.removeprefix("module."): array for name, array in state.items()}


def _select(
    stored: Mapping[str, Any], weights: str, path: pathlib.Path
) -> dict[str, np.ndarray]:
    """The state dict under `weights`, nested or as a prefix, or the only one."""
    if isinstance(stored.get(weights), Mapping):
        return dict(stored[weights])
    prefix = f"{weights}."
    prefixed = {
        name.removeprefix(prefix): array
        for name, array in stored.items()
        if name.startswith(prefix)
    }
    if prefixed:
        return prefixed
    wrapped = any(
        isinstance(value, Mapping) or name.startswith(("model.", "model_ema."))
        for name, value in stored.items()
    )
    if wrapped or weights != "model":
        raise ValueError(
            f"{path}: no {weights!r} in this checkpoint; it has "
            f"{', '.join(sorted({name.split('.')[0] for name in stored}))}."
        )
    return dict(stored)


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: _plain(name, file[name]) for name in file.files}
    except Exception as error:  # A corrupt archive raises half a dozen types.
        raise ValueError(
            f"{path}: cannot be read as an archive of plain arrays ({error}); save it "
            "with numpy.savez from the tensors of a state dict."
        ) from error


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            f"{path}: reading it needs safetensors; pip install 'lvb[torch]'."
        ) from error
    try:
        stored = safetensors.numpy.load_file(path)
        return {name: _plain(name, array) for name, array in stored.items()}
    except Exception as error:  # A type that NumPy lacks is a KeyError, for instance.
        raise ValueError(f"{path}: not a safetensors file ({error}).") from error


def _read_pickle(path: pathlib.Path) -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{path}: reading it needs torch; pip install 'lvb[torch]', or save its "
            "state dict as .npz or .safetensors where torch is installed."
        ) from error
    # LSNet's training script stores its flags; a Namespace only holds attributes.
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            stored = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(stored, Mapping):
            raise ValueError(f"it holds a {type(stored).__name__}, not a state dict")
        return _tensors(stored, torch.Tensor)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: holds pickled Python objects besides tensors, which could run "
            "code, or is no checkpoint; save {'model': model.state_dict()} alone."
        ) from error
    except Exception as error:  # A truncated file is an EOFError, for instance.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path}: not a PyTorch checkpoint ({reason}).") from error


def _tensors(stored: Mapping[Any, Any], tensor: type) -> dict[str, Any]:
    """The tensors, one level of nesting kept, as arrays."""
    arrays = {}
    for name, value in stored.items():
        if isinstance(value, tensor):
            value = value.detach()
            value = value.float() if value.is_floating_point() else value
            arrays[str(name)] = value.numpy()
        elif isinstance(value, Mapping):
            arrays[str(name)] = _tensors(value, tensor)
    return arrays


def _plain(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} is of type {array.dtype}, no real number")
    return array.astype(np.float32) if array.dtype == np.float16 else array
