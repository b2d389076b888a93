"""The watch over the hosts of a job: none of them waits for another for ever.

Each host posts a sign of life and how far it has come, and reads those of the others.
The hosts make the same ticks in the same order, so the one with the fewest is the one
that the others wait for. A host that is dead, stuck or has failed ends the job on all
hosts; each says which one it was and dumps the Python stacks of its threads.
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import jax

from lvb.training import peers, process, roll_call

_TOPIC = "lvb/watchdog"
# Before its first step a host lists files and compiles, which takes minutes.
START_PATIENCE = 10.0
# Signs of life within the timeout; few enough for the store of a large pod.
_SIGNS, _LONGEST_INTERVAL = 20, 5.0
# Share of the timeout within which a host must have given a sign to pass for alive.
_FRESH = 0.25

RUNNING, DONE, LEFT, FAILED = "running", "done", "left", "failed"


class Sign(NamedTuple):
    """What a host posts.

    Attributes:
      name: of the machine and the process.
      beats: signs posted so far; it rises while the process lives.
      ticks: how far the host has come.
      doing: what it does since its last tick.
      patience: how many timeouts that may take.
      status: RUNNING, DONE, LEFT on a signal, or FAILED.
      message: why it left or failed.
    """

    name: str
    beats: int = 0
    ticks: int = 0
    doing: str = "starting"
    patience: float = START_PATIENCE
    status: str = RUNNING
    message: str = ""


class Sighting(NamedTuple):
    """A host as another one sees it.

    Attributes:
      sign: the last one; None when there was none yet.
      silent: seconds since its beats rose.
      still: seconds since its ticks rose.
    """

    sign: Sign | None
    silent: float
    still: float


class Verdict(NamedTuple):
    """Why the job must end, and the exit code that says so."""

    reason: str
    code: int


def judge(sightings: Sequence[Sighting], *, timeout: float) -> Verdict | None:
    """Finds the host that must end the job, if there is one.

    Args:
      sightings: of all hosts, by number.
      timeout: seconds.

    Returns:
      The verdict, or None while all is well.
    """
    for index, (sign, silent, _) in enumerate(sightings):
        if sign is not None and sign.status in (LEFT, FAILED):
            code = process.STOPPED if sign.status == LEFT else process.FAILED
            return Verdict(f"{_host(index, sign)} ended: {sign.message}", code)
        if silent > timeout and (sign is None or sign.status == RUNNING):
            last = f"; its last word was from {sign.doing}" if sign else ""
            return Verdict(
                f"{_host(index, sign)} has given no sign of life for {silent:.0f} s"
                f"{last}; it is dead, frozen or cut off. Mend or replace it, then run "
                "the same command again on all hosts to continue.",
                process.LOST,
            )
    return _find_stuck(sightings, timeout=timeout)


def _find_stuck(sightings: Sequence[Sighting], *, timeout: float) -> Verdict | None:
    running = {
        index: seen
        for index, seen in enumerate(sightings)
        if seen.sign is not None and seen.sign.status == RUNNING
    }
    if not running:
        return None
    fewest = min(seen.sign.ticks for seen in running.values())
    behind = {i: seen for i, seen in running.items() if seen.sign.ticks == fewest}
    still = min(seen.still for seen in behind.values())
    first = next(iter(behind.values())).sign
    if still <= timeout * first.patience:
        return None
    if max(seen.silent for seen in behind.values()) > timeout * _FRESH:
        return None  # Stuck or dead? Its silence will have lasted long enough soon.
    names = " and ".join(_host(index, seen.sign) for index, seen in behind.items())
    where = (
        f"alive but stuck in {first.doing} for {still:.0f} s, and the others wait"
        if len(behind) < len(sightings)
        else f"all in {first.doing} for {still:.0f} s, waiting for one another"
    )
    return Verdict(
        f"{names} {'is' if len(behind) == 1 else 'are'} {where}. The stacks on its "
        "stderr show where; then run the same command again on all hosts to continue.",
        process.LOST,
    )


def _host(index: int, sign: Sign | None) -> str:
    return f"host {index} ({sign.name})" if sign else f"host {index}"


class Watchdog:
    """Watches all hosts from a thread, inside a `with` block.

    The block's end tells the others how it ended; an error ends the process there.

    Attributes:
      timeout: seconds without a sign of life, or without a tick, that end the job.
    """

    def __init__(
        self,
        board: peers.Store,
        *,
        index: int,
        count: int,
        timeout: float,
        leave: Callable[[int], Any] = os._exit,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepares the watch.

        Args:
          board: where signs are posted.
          index: of this host.
          count: number of hosts.
          timeout: see the class.
          leave: ends the process with an exit code.
          clock: seconds, rising.
        """
        self._board, self._index, self._count = board, index, count
        self.timeout, self._leave, self._clock = timeout, leave, clock
        self._interval = min(timeout / _SIGNS, _LONGEST_INTERVAL)
        self._sign = Sign(roll_call.own_name())
        start = clock()
        self._seen: dict[int, tuple[Sign | None, float, float]] = {
            host: (None, start, start) for host in range(count)
        }
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="watchdog")
        self._thread.daemon = True

    def tick(self, doing: str, *, patience: float = 1.0) -> None:
        """Notes that this host has come one thing further.

        Args:
          doing: what it does now, for the message: "step 5".
          patience: how many timeouts that may take.
        """
        with self._lock:
            self._sign = self._sign._replace(
                ticks=self._sign.ticks + 1, doing=doing, patience=patience
            )

    def __enter__(self) -> Self:
        self._post(RUNNING)
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self.on_error(kind, error, trace)
        self._stop.set()
        faulthandler.cancel_dump_traceback_later()
        self._post(DONE)

    def on_error(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Tells the others of an error and leaves, before anything waits for them.

        It has the form of `__exit__`, for `ExitStack.push`. An end that all hosts have
        agreed on, after a signal, is none of its business.
        """
        del kind, trace
        together = isinstance(error, process.Stopped) and not error.blocked
        if error is None or together or self._stop.is_set():
            return
        if isinstance(error, jax.errors.JaxRuntimeError):
            # Most often another host's end, seen by a device first. The thread finds
            # out which, and leaves.
            self._stop.wait(self.timeout + 3 * self._interval)
        self._stop.set()
        left = isinstance(error, process.Stopped | KeyboardInterrupt)
        self._post(LEFT if left else FAILED, message=str(error) or repr(error))
        code = process.tell(error, name=f"host {self._index}")
        self._linger()
        sys.stdout.flush()
        self._leave(code)

    def look(self) -> list[Sighting]:
        """Reads the board: all hosts as seen now, by number."""
        now = self._clock()
        posted = {i: Sign(**x) for i, x in peers.read(self._board, _TOPIC).items()}
        for host, (old, alive, moved) in self._seen.items():
            new = posted.get(host, old)
            if new is not None and (old is None or new.beats > old.beats):
                alive = now
            if new is not None and (old is None or new.ticks > old.ticks):
                moved = now
            self._seen[host] = (new, alive, moved)
        return [
            Sighting(sign, now - alive, now - moved)
            for sign, alive, moved in self._seen.values()
        ]

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            # Should Python itself be stuck, so that this thread is too.
            faulthandler.dump_traceback_later(self.timeout + 10.0, exit=True)
            try:
                self._post(RUNNING)
                verdict = judge(self.look(), timeout=self.timeout)
            except jax.errors.JaxRuntimeError:
                verdict = Verdict(
                    "host 0, which coordinates the hosts, does not answer; look at its "
                    "output, then run the same command again on all hosts to continue.",
                    process.LOST,
                )
            if verdict is not None and not self._stop.is_set():
                self._end(verdict)
                return

    def _end(self, verdict: Verdict) -> None:
        print(
            f"host {self._index}, in {self._sign.doing}: error: {verdict.reason}",
            file=sys.stderr,
            flush=True,
        )
        if verdict.code == process.LOST:
            peers.dump_stacks()
        self._linger()
        sys.stdout.flush()
        self._leave(verdict.code)

    def _post(self, status: str, *, message: str = "") -> None:
        with self._lock:
            self._sign = self._sign._replace(
                beats=self._sign.beats + 1, status=status, message=message
            )
            sign: Mapping[str, Any] = self._sign._asdict()
        try:
            peers.post(self._board, _TOPIC, sign, index=self._index)
        except jax.errors.JaxRuntimeError:
            if status == RUNNING:
                raise

    def _linger(self) -> None:
        """Host 0 runs the store; the others read it before it goes."""
        if self._index == 0 and self._count > 1:
            time.sleep(4 * self._interval)
