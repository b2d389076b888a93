"""The hosts of one job: how they join, and short messages between them.

Messages travel through the key-value store of JAX's coordinator, which host 0 runs, and
not through the devices: they arrive also while a device waits for another host.
"""

import faulthandler
import json
import os
import sys
import threading
import time
from typing import Any, Protocol

import jax

# The store has no public door; Orbax uses the same.
from jax._src import distributed

from lvb.training import process, roll_call

_POLL_SECONDS = 0.05


class Store(Protocol):
    """A key-value store that all hosts share."""

    def key_value_set(
        self, key: str, value: str, allow_overwrite: bool = False
    ) -> None:
        """Writes a value."""

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]:
        """Returns all keys under a prefix with their values."""


def join(
    *, address: str | None, count: int | None, index: int | None, timeout: float
) -> None:
    """Makes this process one of the job's hosts.

    Args:
      address: "name:port" of host 0; None for what the cluster (TPU pod, SLURM, Open
        MPI) or the environment variable JAX_COORDINATOR_ADDRESS says.
      count: number of hosts; None as above.
      index: of this host; None as above.
      timeout: seconds that hosts may wait for one another.

    Raises:
      ValueError: if the numbers do not fit together.
      PeerLost: naming hosts that have not come.
    """
    given = (address, count, index)
    if any(x is not None for x in given):
        if None in given:
            raise ValueError(
                "--coordinator, --num_hosts and --host_index belong together; give all "
                "three, or none where the cluster tells them."
            )
        roll_call.call_roll(address, count=count, index=index, timeout=timeout)
    seconds = max(int(timeout), 1)
    with _Guard(2 * timeout):
        jax.distributed.initialize(
            coordinator_address=address,
            num_processes=count,
            process_id=index,
            # JAX aborts without a name: our watchdog shall be first.
            initialization_timeout=4 * seconds,
            heartbeat_timeout_seconds=max(4 * seconds, 10),
            shutdown_timeout_seconds=seconds,
        )


def store() -> Store:
    """The store of the job that this process has joined."""
    return distributed.global_state.client


def post(board: Store, topic: str, value: Any, *, index: int) -> None:
    """Writes this host's value, anything JSON can hold, over the one before."""
    board.key_value_set(f"{topic}/{index}", json.dumps(value), allow_overwrite=True)


def read(board: Store, topic: str) -> dict[int, Any]:
    """The values of all hosts that have posted one, by number."""
    found = board.key_value_dir_get(topic)
    return {int(key.rpartition("/")[2]): json.loads(value) for key, value in found}


def exchange(
    board: Store, topic: str, value: Any, *, index: int, count: int, timeout: float
) -> list[Any]:
    """Posts a value and waits for those of all hosts.

    Args:
      board: the store.
      topic: of the values; used once in a job.
      value: of this host, anything JSON can hold.
      index: of this host.
      count: number of hosts.
      timeout: seconds to wait.

    Returns:
      The values, by number of the host.

    Raises:
      PeerLost: naming the hosts that posted nothing.
    """
    post(board, topic, value, index=index)
    deadline = time.monotonic() + timeout
    while True:
        found = read(board, topic)
        if len(found) == count:
            return [found[i] for i in range(count)]
        if time.monotonic() > deadline:
            absent = ", ".join(str(i) for i in range(count) if i not in found)
            raise process.PeerLost(
                f"host {absent} of {count} has not told its {topic.split('/')[-1]} "
                f"within {timeout:g} s; look at its output."
            )
        time.sleep(_POLL_SECONDS)


def dump_stacks() -> None:
    """Writes the Python stack of every thread to stderr."""
    sys.stderr.flush()
    faulthandler.dump_traceback(all_threads=True)


class _Guard:
    """Ends the process if a `with` block takes too long, before JAX aborts it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *exception: object) -> None:
        self._timer.cancel()

    def _end(self) -> None:
        print(
            f"error: not all hosts have joined within {self._seconds:g} s; see which "
            "of them printed nothing.",
            file=sys.stderr,
            flush=True,
        )
        dump_stacks()
        os._exit(process.LOST)
