"""Checkpoints of a run: saved in the background, verified when read.

    checkpoints/00000120/state/       arrays, written by Orbax
    checkpoints/00000120/metadata/    JSON: {"digest": ..., "notes": {...}}

The digest covers arrays and notes; only what it confirms is used. A checkpoint can be
read without building the model it belongs to.
"""

import concurrent.futures
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import jax
import orbax.checkpoint as ocp
from flax import serialization, traverse_util

from lvb.training import digest as digest_lib
from lvb.training import orbax_io, sharding

STEP_DIGITS = 8
DAMAGED = "damaged_checkpoints"
_STATE, _METADATA = "state", "metadata"
_HALF_WRITTEN = ".orbax-checkpoint-tmp"


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged, of another model or cannot be saved."""


class Checkpoint(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      path: its folder.
      notes: what was noted beside the arrays; see `Saver.save`.
      arrays: nested dictionaries of NumPy arrays.
    """

    path: pathlib.Path
    notes: dict[str, Any]
    arrays: dict[str, Any]


class Saver:
    """Saves states in the background and deletes those no longer wanted.

    A checkpoint is read back as soon as it is written; only when its digest confirms it
    are older ones deleted, so that there is always one that is known to be whole.

    Used as a context manager; leaving it waits for the save under way.

    Attributes:
      newest: step of the newest checkpoint; None when there is none.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        keep_last: int,
        keep_every: int = 0,
        writes: bool = True,
    ) -> None:
        """Opens the folder.

        Args:
          folder: made if it is not there.
          keep_last: number of newest checkpoints kept, at least 1.
          keep_every: all at multiples of this step are kept too; 0 for none.
          writes: whether this process writes; only one of a pod does.
        """
        if keep_last < 1:
            raise ValueError(f"checkpoint.keep_last={keep_last}; keep at least 1.")
        self._folder, self._writes = folder, writes
        self._keep_last, self._keep_every = keep_last, keep_every
        self._best_step: int | None = None
        self.newest: int | None = max(steps_on_disk(folder), default=None)
        self._under_way = self.newest
        self._reader = concurrent.futures.ThreadPoolExecutor(1, "verify")
        self._unread: int | None = None  # A step written and not yet read back.
        self._reading: concurrent.futures.Future[Checkpoint] | None = None
        if writes:
            _clear_half_written(folder)
            self._manager = orbax_io.open_manager(folder, step_digits=STEP_DIGITS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            if exception[0] is None:
                self.wait()
        finally:
            self._reader.shutdown()
            if self._writes:
                self._manager.close()

    def save(
        self,
        state: Any,
        *,
        step: int,
        notes: Mapping[str, Any],
        best_step: int | None = None,
    ) -> None:
        """Copies the state to the host and starts writing it.

        All hosts call it together, because they gather what is split over them.

        Args:
          state: a pytree that Flax can serialise; its memory may be reused at once.
          step: of the state.
          notes: JSON values kept beside it, covered by the digest.
          best_step: a step whose checkpoint is kept for as long as it is the best.

        Raises:
          CheckpointError: if this save or the one before failed.
        """
        host_state = sharding.to_host(state)
        self.newest = step
        if not self._writes:
            return
        self.wait()
        self._best_step, self._under_way = best_step, step
        arrays = _drop_empty(serialization.to_state_dict(host_state))
        metadata = {"digest": digest_lib.digest(arrays, notes=notes), "notes": notes}
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(arrays),
                    metadata=ocp.args.JsonSave(metadata),
                ),
                force=True,
            )
        except Exception as error:
            raise self._failed(error) from error
        self._unread = step

    def check(self) -> None:
        """Raises CheckpointError if a save in the background has failed."""
        if self._unread is None:
            return
        try:
            self._manager.check_for_errors()
            if self._reading is None and not self._manager.is_saving_in_progress():
                self._reading = self._reader.submit(self._read_back, self._unread)
            if self._reading is not None and self._reading.done():
                self._settle()
        except Exception as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Waits for the save under way; raises CheckpointError if it failed."""
        if self._unread is None:
            return
        try:
            self._manager.wait_until_finished()
            self._settle()
        except Exception as error:
            raise self._failed(error) from error

    def _settle(self) -> None:
        """Ends the reading back, and deletes what the new checkpoint replaces."""
        reading, self._reading = self._reading, None
        step, self._unread = self._unread, None
        if reading is None:
            self._read_back(step)
        else:
            reading.result()
        steps = steps_on_disk(self._folder)
        wanted = {self._best_step, *steps[-self._keep_last :]}
        for old in steps:
            every = self._keep_every and old % self._keep_every == 0
            if old not in wanted and not every:
                self._manager.delete(old)

    def _read_back(self, step: int) -> Checkpoint:
        return read(step_folder(self._folder, step))

    def _failed(self, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"saving step {self._under_way} to {self._folder} failed "
            f"({orbax_io.brief(error)}); free space or mend the disk, then run the "
            "same command again to continue from the last checkpoint."
        )


def steps_on_disk(folder: pathlib.Path) -> list[int]:
    """The steps of the finished checkpoints in a folder, in order."""
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    return sorted(int(n) for n in names if n.isdigit() and len(n) == STEP_DIGITS)


def step_folder(folder: pathlib.Path, step: int) -> pathlib.Path:
    """The folder of a step."""
    return folder / f"{step:0{STEP_DIGITS}d}"


def read(path: pathlib.Path) -> Checkpoint:
    """Reads a checkpoint and compares it with its digest.

    Args:
      path: folder of one step.

    Returns:
      Its content, on the host.

    Raises:
      CheckpointError: if it cannot be read whole, or its bytes have changed.
    """
    items = ocp.args.Composite(
        state=ocp.args.PyTreeRestore(), metadata=ocp.args.JsonRestore()
    )
    try:
        restored = orbax_io.restore(path, items)
        arrays, metadata = restored[_STATE], restored[_METADATA]
        notes, expected = _notes_of(metadata), metadata["digest"]
        actual = digest_lib.digest(arrays, notes=notes)
    except Exception as error:
        raise CheckpointError(
            f"checkpoint {path} is damaged: {orbax_io.brief(error)}."
        ) from error
    if actual != expected:
        raise CheckpointError(
            f"checkpoint {path} is damaged: its digest is {actual[:12]}..., "
            f"{expected[:12]}... was saved."
        )
    return Checkpoint(path, notes, arrays)


def read_notes(path: pathlib.Path) -> dict[str, Any]:
    """Reads the notes of a checkpoint alone, which cannot be verified without arrays.

    Raises:
      CheckpointError: if there are none that can be read.
    """
    items = ocp.args.Composite(metadata=ocp.args.JsonRestore())
    try:
        return _notes_of(orbax_io.restore(path, items)[_METADATA])
    except Exception as error:
        raise CheckpointError(
            f"checkpoint {path} is damaged: {orbax_io.brief(error)}."
        ) from error


def check_notes(path: pathlib.Path, notes: Mapping[str, Any], *names: str) -> None:
    """Refuses a checkpoint of lvb that another command wrote for another purpose.

    Args:
      path: of the checkpoint.
      notes: of it.
      *names: what its notes must have.

    Raises:
      CheckpointError: naming the first that is missing.
    """
    missing = [name for name in names if name not in notes]
    if missing:
        raise CheckpointError(
            f"checkpoint {path} does not note its {missing[0]!r}, so that it cannot "
            "serve here; give one that a run of lvb.train has written."
        )


def read_newest(
    folder: pathlib.Path, *, report: Callable[[str], None], moves: bool = True
) -> Checkpoint | None:
    """Reads the newest checkpoint that is whole; puts aside newer damaged ones.

    Args:
      folder: of the checkpoints.
      report: gets a sentence about each damaged one.
      moves: whether this process puts them aside; only one of a pod does.

    Returns:
      The checkpoint, or None if there is not a single one, damaged or not.

    Raises:
      CheckpointError: if all are damaged.
    """
    steps = steps_on_disk(folder)
    for step in reversed(steps):
        path = step_folder(folder, step)
        try:
            return read(path)
        except CheckpointError as error:
            report(f"{error} It is kept in {_put_aside(path, moves=moves)}.")
    if steps:
        raise CheckpointError(
            f"all {len(steps)} checkpoints of {folder} were damaged and are kept in "
            f"{folder.parent / DAMAGED}; choose another --workdir to start anew."
        )
    return None


def restore_state(checkpoint: Checkpoint, shapes: Any, *, shardings: Any) -> Any:
    """Puts a saved state on the devices, however many it was saved from.

    Args:
      checkpoint: from `read`.
      shapes: the state as `jax.ShapeDtypeStruct`s.
      shardings: of each leaf, in the same tree.

    Returns:
      The state, in the tree of `shapes`.

    Raises:
      CheckpointError: naming the first leaf that is missing, extra or different.
    """
    wanted = traverse_util.flatten_dict(
        serialization.to_state_dict(shapes), keep_empty_nodes=True
    )
    found = traverse_util.flatten_dict(checkpoint.arrays)
    merged = dict(wanted)
    for path, leaf in wanted.items():
        if leaf is traverse_util.empty_node:
            continue
        value = found.pop(path, None)
        if value is None or (value.shape, value.dtype) != (leaf.shape, leaf.dtype):
            has = f"{value.shape} {value.dtype}" if value is not None else "nothing"
            raise CheckpointError(
                f"checkpoint {checkpoint.path} does not fit the model: "
                f"{'/'.join(path)} is {has}, not {leaf.shape} {leaf.dtype}."
            )
        merged[path] = value
    if found:
        raise CheckpointError(
            f"checkpoint {checkpoint.path} does not fit the model, which has no "
            f"{'/'.join(next(iter(found)))}."
        )
    tree = traverse_util.unflatten_dict(merged)
    return sharding.put_state(serialization.from_state_dict(shapes, tree), shardings)


def _notes_of(metadata: Any) -> dict[str, Any]:
    """The notes, which any writer of Orbax checkpoints but ours would lack."""
    notes = metadata.get("notes") if isinstance(metadata, dict) else None
    if not isinstance(notes, dict) or not isinstance(metadata.get("digest"), str):
        raise ValueError("its metadata is not of lvb: notes and digest are missing")
    return notes


def _clear_half_written(folder: pathlib.Path) -> None:
    """Deletes what a process that was killed left behind.

    Orbax can do so too, but in the background, at a moment nobody knows.
    """
    if jax.process_index() == 0:
        for path in folder.glob(f"*{_HALF_WRITTEN}*"):
            shutil.rmtree(path)


def _put_aside(path: pathlib.Path, *, moves: bool) -> pathlib.Path:
    folder = path.parent.parent / DAMAGED
    if not moves:
        return folder
    folder.mkdir(exist_ok=True)
    target, number = folder / path.name, 1
    while target.exists():
        target, number = folder / f"{path.name}_{number}", number + 1
    return path.rename(target)


def _drop_empty(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Without empty dictionaries, which Orbax does not keep apart from nothing."""
    return traverse_util.unflatten_dict(traverse_util.flatten_dict(tree))
