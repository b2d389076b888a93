"""What a run has come to: comparable across runs, readable without its model."""

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from flax import traverse_util

from lvb.training import checkpoint, digest, metric_writer, workdir

# Metrics that measure time differ from run to run.
_TIMED = "perf/"


class Outcome(NamedTuple):
    """A run up to its newest whole checkpoint.

    Attributes:
      step: of the checkpoint.
      state: SHA-256 of all its arrays: parameters, statistics, optimiser, averages,
        metric accumulators.
      scores: the last and the best evaluation.
      metrics: SHA-256 of the metrics file up to the step, times left out.
    """

    step: int
    state: str
    scores: Mapping[str, Any]
    metrics: str


def read(folder: pathlib.Path) -> Outcome | None:
    """The outcome of a workdir so far, None without a checkpoint.

    Raises:
      CheckpointError: if the newest checkpoint is damaged.
    """
    checkpoints = folder / workdir.CHECKPOINTS
    steps = checkpoint.steps_on_disk(checkpoints)
    if not steps:
        return None
    found = checkpoint.read(checkpoint.step_folder(checkpoints, steps[-1]))
    return Outcome(
        step=steps[-1],
        state=state_digest(found),
        scores=found.notes.get("progress", {}),
        metrics=metrics_digest(folder / workdir.METRICS, until=steps[-1]),
    )


def state_digest(found: checkpoint.Checkpoint) -> str:
    """SHA-256 of a checkpoint's arrays alone; notes may name other folders."""
    return digest.digest(found.arrays, notes={})


def metrics_digest(path: pathlib.Path, *, until: int) -> str:
    """SHA-256 of the metrics up to a step, times left out."""
    kept = [
        {name: value for name, value in line.items() if not name.startswith(_TIMED)}
        for line in metric_writer.read_metrics(path)
        if line["step"] <= until
    ]
    return hashlib.sha256(digest.canonical_json(kept).encode()).hexdigest()


def differences(one: Outcome, other: Outcome) -> list[str]:
    """What differs, a word each; empty for equal outcomes."""
    pairs = zip(one._asdict().items(), other, strict=True)
    return [name for (name, value), theirs in pairs if value != theirs]


def describe(path: pathlib.Path) -> tuple[str, bool]:
    """Tells what a checkpoint holds, without building its model.

    Args:
      path: its folder.

    Returns:
      Some lines, and whether the checkpoint is whole.
    """
    try:
        found = checkpoint.read(path)
    except checkpoint.CheckpointError as error:
        return f"{path.name}: DAMAGED. {error}", False
    notes = found.notes
    flat = traverse_util.flatten_dict(found.arrays, sep="/")
    num_bytes = sum(array.nbytes for array in flat.values())
    width = max((len(name) for name in flat), default=0)
    lines = [
        f"{path.name}: whole; {len(flat)} arrays, {num_bytes:,} bytes, arrays' SHA-256 "
        f"{state_digest(found)}",
        *(f"  {name} = {_shown(value)}" for name, value in sorted(notes.items())),
        *(
            f"  {name:<{width}}  {array.dtype.name} {array.shape}"
            for name, array in sorted(flat.items())
        ),
    ]
    return "\n".join(lines), True


def _shown(value: Any) -> str:
    text = digest.canonical_json(value)
    return text if len(text) <= 160 else f"{text[:157]}..."
