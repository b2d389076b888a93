"""Weights for use elsewhere: read from any checkpoint, written as one."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from lvb.training import checkpoint, workdir
from lvb.training import digest as digest_lib

WEIGHTS = ("auto", "raw", "ema")


def load_checkpoint(
    path: str | pathlib.Path, *, which: str | int = "best", weights: str = "auto"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a model's variables and what is needed to use them.

    Args:
      path: a workdir, its folder of checkpoints, or the folder of one checkpoint.
      which: of several, "best" by top-1 (the newest if none was evaluated), "latest",
        or a step.
      weights: "raw", "ema", or "auto": those the run evaluates.

    Returns:
      The notes: "model" (options of `lvb.create_model`), "preprocessing",
      "class_names", "config", "versions" and more. And the variables, {"params": ...,
      "batch_stats": ...}, NumPy arrays.

    Raises:
      ValueError: if there is no checkpoint, or it has no such weights.
      CheckpointError: if it is damaged.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights={weights!r} is unknown; use one of {WEIGHTS}.")
    loaded = checkpoint.read(find_checkpoint(path, which=which))
    arrays, notes = loaded.arrays, loaded.notes
    checkpoint.check_notes(loaded.path, notes, "model", "preprocessing")
    use_ema = weights == "ema" or (weights == "auto" and notes.get("use_ema", False))
    if use_ema and "ema" not in arrays:
        raise ValueError(
            f"checkpoint {loaded.path} keeps no averages; use weights='raw'."
        )
    source = arrays["ema"] if use_ema else arrays
    if "params" not in source:
        raise ValueError(f"checkpoint {loaded.path} holds no parameters of a model.")
    variables = {
        "params": source["params"],
        "batch_stats": source.get("batch_stats", {}),
    }
    return notes, variables


def find_checkpoint(
    path: str | pathlib.Path, *, which: str | int = "best"
) -> pathlib.Path:
    """Returns the folder of one checkpoint, see `load_checkpoint`."""
    path = pathlib.Path(path)
    if (path / "metadata").is_dir():
        return path
    inner = path / workdir.CHECKPOINTS
    folder = inner if inner.is_dir() else path
    steps = checkpoint.steps_on_disk(folder)
    if not steps:
        raise ValueError(
            f"{path} holds no checkpoint; give the --workdir of a run, or the folder "
            "of one checkpoint."
        )
    if which == "latest":
        return checkpoint.step_folder(folder, steps[-1])
    if which == "best":
        return checkpoint.step_folder(folder, _best_step(folder, steps))
    if which not in steps:
        raise ValueError(
            f"{folder} has no step {which}; it has {', '.join(map(str, steps))}."
        )
    return checkpoint.step_folder(folder, int(which))


def save_variables(
    path: str | pathlib.Path,
    variables: Mapping[str, Any],
    *,
    model: Mapping[str, Any],
    preprocessing: Mapping[str, Any],
    class_names: tuple[str, ...] = (),
    **notes: Any,
) -> pathlib.Path:
    """Writes variables that no run made, such as converted ones, as a checkpoint.

    Args:
      path: a folder that is empty or not there yet; `load_checkpoint` takes it.
      variables: {"params": ..., "batch_stats": ...}.
      model: options of `lvb.create_model`, as JSON values, the name among them.
      preprocessing: how images were made ready, as JSON values.
      class_names: of the logits, in order.
      **notes: more JSON values, such as where the weights come from.

    Returns:
      The checkpoint's folder.

    Raises:
      ValueError: if there is something in the folder.
    """
    folder = pathlib.Path(path).absolute()
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; choose another folder.")
    arrays = {name: _to_numpy(tree) for name, tree in variables.items() if tree}
    all_notes = {
        "model": dict(model),
        "preprocessing": dict(preprocessing),
        "class_names": list(class_names),
        "use_ema": False,
        "step": 0,
        **notes,
    }
    metadata = {
        "digest": digest_lib.digest(arrays, notes=all_notes),
        "notes": all_notes,
    }
    target = checkpoint.step_folder(folder / workdir.CHECKPOINTS, 0)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            target,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(arrays),
                metadata=ocp.args.JsonSave(metadata),
            ),
        )
    return target


def _best_step(folder: pathlib.Path, steps: list[int]) -> int:
    """The step the newest readable checkpoint names as the best, if still there."""
    for step in reversed(steps):
        try:
            notes = checkpoint.read_notes(checkpoint.step_folder(folder, step))
        except checkpoint.CheckpointError:
            continue
        best = notes.get("progress", {}).get("best", {}).get("step")
        return best if best in steps else step
    return steps[-1]


def _to_numpy(tree: Any) -> Any:
    if hasattr(tree, "items"):
        return {str(key): _to_numpy(value) for key, value in tree.items()}
    return np.asarray(tree)
