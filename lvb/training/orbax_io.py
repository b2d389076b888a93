"""Orbax on this host alone, and without its noise.

Every host holds the whole arrays that it saves or has read, so no host needs another:
host 0 writes, each host reads for itself. Nothing waits in a barrier for a host that
has died. What goes wrong is told by one sentence of ours, not by Orbax's pages.
"""

import functools
import logging
import pathlib
import sys
from typing import Any

import jax
import orbax.checkpoint as ocp

_LONGEST = 240  # Characters of a reason.


def open_manager(folder: pathlib.Path, *, step_digits: int) -> ocp.CheckpointManager:
    """A manager that saves in the background and deletes nothing by itself.

    Args:
      folder: made if it is not there.
      step_digits: length of the names of its folders.
    """
    _hush()
    folder.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        create=False,
        step_format_fixed_length=step_digits,
        multiprocessing_options=_this_host(),
    )
    return ocp.CheckpointManager(folder, options=options)


def restore(path: pathlib.Path, items: ocp.args.Composite) -> Any:
    """Reads items of a checkpoint on this host."""
    _hush()
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=_this_host())
    )
    with ocp.Checkpointer(
        handler, multiprocessing_options=_this_host()
    ) as checkpointer:
        return checkpointer.restore(path.absolute(), args=items)


def brief(error: BaseException) -> str:
    """What went wrong, in a line: of TensorStore's nested reasons first and last."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = lines[0].partition(" [source locations")[0]
    outer, nested, inner = text.partition(" in OCDBT database")
    if nested:
        text = f"{outer}: {inner.rsplit(': ', 1)[-1]}"
    return text[:_LONGEST].rstrip(". ")


def _this_host() -> ocp.options.MultiprocessingOptions:
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index,
        active_processes={index},
        barrier_sync_key_prefix=f"host{index}",
    )


@functools.cache
def _hush() -> None:
    """Drops tracebacks of what is told otherwise; once per process."""
    logging.getLogger("absl").addFilter(_is_not_orbax)
    # When a read fails, others are still under way; each would print that the event
    # loop they report to is gone.
    previous = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            previous(unraisable)

    sys.unraisablehook = hook


def _is_not_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname
