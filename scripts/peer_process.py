"""One process per framework, driven over a pipe, so that none disturbs another.

A peer reads requests, one JSON object per line, on its standard input and answers each
with one line: {"ask": "time", ...} -> {"ok": {...}} or {"error": "..."}. Answers have a
pipe of their own, since libraries print. While one peer works the others wait.
"""

import contextlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

_ANSWERS = "LVB_PEER_ANSWERS"  # Environment variable: the file descriptor to write to.
Handler = Callable[..., dict[str, Any]]


class PeerError(RuntimeError):
    """A peer could not do what it was asked, or is gone."""


class Peer:
    """The asking side; a context manager that ends the process.

    Attributes:
      name: for messages and records.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        reading, writing = os.pipe()
        self._answers = os.fdopen(reading)
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=2,
            text=True,
            env={**os.environ, **(environment or {}), _ANSWERS: str(writing)},
            pass_fds=(writing,),
        )
        os.close(writing)  # The peer holds the only one: if it ends, so do the answers.

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """Asks and waits for the answer.

        Args:
          what: name of a handler.
          **arguments: JSON values for it.

        Raises:
          PeerError: if the peer failed or ended.
        """
        request = json.dumps({"ask": what, **arguments})
        try:
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
            answer = self._answers.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            code = self._process.wait()
            raise PeerError(f"peer {self.name} ended with code {code} at {what!r}.")
        reply = json.loads(answer)
        if "error" in reply:
            raise PeerError(f"peer {self.name}, {what}: {reply['error']}")
        return reply["ok"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # It reads the end of its input, and ends.
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()


def serve(handlers: Mapping[str, Handler]) -> None:
    """The answering side: answers requests until the input ends.

    Args:
      handlers: functions by name, of keyword arguments, that return JSON objects.
    """
    answers = os.fdopen(int(os.environ[_ANSWERS]), "w", buffering=1)
    for line in sys.stdin:
        request = json.loads(line)
        what = request.pop("ask")
        try:
            if what not in handlers:
                known = ", ".join(handlers)
                raise ValueError(f"{what!r} is unknown; ask for one of {known}.")
            reply = {"ok": handlers[what](**request)}
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        answers.write(json.dumps(reply) + "\n")


class Contenders:
    """The programs of a peer, with the requests that are the same in every framework.

    `handlers()` serves: `build` (by the function given), `time`, `growth` (of resident
    memory during a call) and `drop`.
    """

    def __init__(
        self,
        build: Callable[..., tuple[Callable[[], Any], dict[str, Any]]],
        *,
        wait: Callable[[Any], Any],
        clock: Callable[[], float],
    ) -> None:
        """Keeps how to build, to wait for a result and to tell the time.

        Args:
          build: specification -> a function without arguments, and facts about it.
          wait: blocks until a result is there.
          clock: seconds.
        """
        self._build, self._wait, self._clock = build, wait, clock
        self._calls: dict[str, Callable[[], Any]] = {}

    def handlers(self) -> dict[str, Handler]:
        """The requests by name, for `serve`."""
        return {
            "build": self.build,
            "time": self.time,
            "growth": self.growth,
            "drop": self.drop,
        }

    def build(self, name: str, **specification: Any) -> dict[str, Any]:
        """Builds a contender and calls it once.

        Returns:
          "ready_seconds", until the first result is there, and the facts.
        """
        start = self._clock()
        call, facts = self._build(**specification)
        self._wait(call())
        self._calls[name] = call
        return {"ready_seconds": self._clock() - start, **facts}

    def time(self, name: str, calls: int) -> dict[str, Any]:
        """Seconds per call of so many calls in a row."""
        call = self._calls[name]
        start = self._clock()
        for _ in range(calls):
            result = call()
        self._wait(result)
        return {"seconds": (self._clock() - start) / calls}

    def growth(self, name: str) -> dict[str, Any]:
        """Bytes by which one call raises the resident memory; 0 off Linux."""
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # Resets the high-water mark.
        except OSError:
            return {"bytes": 0}
        before = _status("VmRSS")
        self._wait(self._calls[name]())
        return {"bytes": max(0, _status("VmHWM") - before)}

    def drop(self) -> dict[str, Any]:
        """Forgets all contenders and what they hold."""
        self._calls.clear()
        return {}


def relative_error(ours: ArrayLike, theirs: ArrayLike) -> float:
    """The largest difference, relative to the largest of their numbers."""
    difference = np.abs(np.subtract(ours, theirs))
    return float(difference.max() / np.abs(theirs).max())


def _status(field: str) -> int:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field))
    return int(line.split()[1]) * 1024
