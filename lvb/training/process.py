"""The process around a run: its exit codes, its signals and its errors."""

import os
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable
from typing import Any, Self, TypeVar

from lvb.training import allocator

T = TypeVar("T")

# Exit codes. 75 is EX_TEMPFAIL of sysexits.h: run the same command again.
DONE = 0
FAILED = 1
STOPPED = 75
LOST = 76  # Another host of the job is missing, dead or stuck.

_TRACEBACK = "LVB_TRACEBACK"
# What a user can mend; anything else is a bug, and shows its traceback.
_TOLD = (ValueError, OSError, RuntimeError, ArithmeticError, MemoryError)
_NO_MEMORY = "this machine's memory is full; use smaller batches or images"
_LONGEST = 4000  # Characters of a message.


class Stopped(BaseException):
    """Ends a run early on request; not an error.

    Attributes:
      blocked: whether a thread is left that nothing can end, so that the process must
        not wait for its threads.
    """

    def __init__(self, message: str, *, blocked: bool = False) -> None:
        super().__init__(message)
        self.blocked = blocked


class PeerLost(RuntimeError):
    """Another host of the job is missing, dead or stuck."""


def run(main: Callable[[], int], *, name: str) -> int:
    """Calls a command and turns what it raises into an exit code.

    Before, it has the process keep the memory it frees, see `allocator`; JAX must not
    have been used yet.

    An error a user can mend is a ValueError, an OSError, a RuntimeError, an
    ArithmeticError or a MemoryError with a sentence; it goes to stderr without its
    traceback, unless LVB_TRACEBACK is set.

    Args:
      main: the command, without arguments; returns an exit code.
      name: of the command, for the message.

    Returns:
      The exit code: 0 done, 1 failed, 75 stopped by a signal (run again to continue),
      76 another host is lost.
    """
    allocator.keep_freed_memory()
    try:
        return main()
    except (Stopped, KeyboardInterrupt, *_TOLD) as error:
        code = tell(error, name=name)
        if isinstance(error, Stopped) and error.blocked:
            sys.stdout.flush()
            os._exit(code)
        return code


def tell(error: BaseException, *, name: str) -> int:
    """Writes what ended a command to stderr, in a sentence; returns the exit code."""
    if isinstance(error, Stopped):
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        return STOPPED
    if isinstance(error, KeyboardInterrupt):
        print(f"{name}: interrupted.", file=sys.stderr, flush=True)
        return STOPPED
    if os.environ.get(_TRACEBACK) or not isinstance(error, _TOLD):
        traceback.print_exception(error)
    print(f"{name}: error: {_sentence(error)}", file=sys.stderr, flush=True)
    return LOST if isinstance(error, PeerLost) else FAILED


def _sentence(error: BaseException) -> str:
    """What a terminal can show of a message, which may quote any file or argument."""
    text = str(error) or type(error).__name__
    if isinstance(error, MemoryError):
        text = _NO_MEMORY + (f" ({error})." if str(error) else ".")
    text = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    if len(text) > _LONGEST:
        half = _LONGEST // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return text


class StopSignals:
    """Notes SIGTERM and Ctrl-C; the run asks at the end of each step.

    A second signal leaves at once. Used as a context manager, which puts the previous
    handlers back; outside the main thread it notes nothing.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def name(self) -> str:
        """The signal's name, such as "SIGTERM"; empty when there was none."""
        return signal.Signals(self.received).name if self.received else ""

    def stopped_after(self, step: int) -> Stopped:
        """The exception that ends a run whose state is saved."""
        return Stopped(
            f"stopped by {self.name or 'another host'} with step {step:,} saved; run "
            "the same command again to continue."
        )

    def check(self) -> None:
        """Raises Stopped after a signal."""
        if self.received is not None:
            raise Stopped(f"stopped by {self.name}.")

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        if self.received is not None:
            os._exit(128 + number)
        self.received = number
        # No print: a handler may run inside another print.
        message = f"\n{self.name}: stopping; a second signal leaves at once.\n"
        os.write(sys.stderr.fileno(), message.encode())


def call_interruptibly(
    function: Callable[[], T], *, signals: StopSignals, during: str
) -> T:
    """Calls a function that may block for minutes, such as a compilation.

    It runs in a thread, so that a signal is seen while it runs. Nothing can end that
    thread: on a signal the process leaves without waiting for it.

    Args:
      function: without arguments.
      signals: where a signal is noted.
      during: what is going on, for the message.

    Returns:
      What the function returns.

    Raises:
      Stopped: if a signal came before the function returned.
    """
    outcome: dict[str, Any] = {}

    def work() -> None:
        try:
            outcome["value"] = function()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=work, name=during, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(timeout=0.05)
        if signals.received is not None:
            raise Stopped(
                f"stopped by {signals.name} during {during}; nothing was lost, run the "
                "same command again to continue.",
                blocked=True,
            )
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]
