"""What can happen to a run: it is killed at some moment, its files are damaged.

Nothing here is part of a run. A run is a child process, watched through what it prints
and what lies in its workdir, and ended from outside.
"""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, NamedTuple, Self

from lvb.training import checkpoint, workdir

_POLL_SECONDS = 0.001
_POSIX_BLOCK = 512  # Bytes; the unit of `ulimit -f` in sh.
_TEMPORARY = "orbax-checkpoint-tmp"  # In the name of what is being written.

# What a run prints, see `report` and `bookends`.
_HAS_STARTED = re.compile(r"^Starting at step ([\d,]+) of")
_HAS_PLAN = re.compile(r"^ +compilation cache")
_STEP = re.compile(r"^step ([\d,]+)/")
_EVALUATED = re.compile(r"^step ([\d,]+)  val ")

PHASES = ("start", "compilation", "step", "save", "evaluation")


class Launcher(NamedTuple):
    """How a run is started.

    Attributes:
      command: without the workdir.
      environment: of the child.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]

    def start(
        self, folder: pathlib.Path, *, max_file_bytes: int | None = None, **changes: str
    ) -> "Session":
        """Starts the run.

        Args:
          folder: its workdir.
          max_file_bytes: no file may grow beyond; stands for a disk that is full.
          **changes: of the environment.
        """
        return Session(
            [*self.command, f"--workdir={folder}"],
            folder=folder,
            environment={**self.environment, **changes},
            max_file_bytes=max_file_bytes,
        )


class Session:
    """A run as a child process, and what it has printed so far.

    Attributes:
      lines: its output, stderr included.
      folder: its workdir.
      evaluates_every: steps between evaluations; 0 where the caller does not know.
    """

    evaluates_every: int = 0

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: pathlib.Path,
        environment: Mapping[str, str],
        max_file_bytes: int | None = None,
    ) -> None:
        """Starts the process; see `Launcher.start`."""
        self.lines: list[str] = []
        self.folder = folder
        if max_file_bytes is not None:
            blocks = str(max_file_bytes // _POSIX_BLOCK)
            limited = 'ulimit -f "$0" && exec "$@"'
            command = ["sh", "-c", limited, blocks, *command]
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=dict(environment),
        )
        self._reader = threading.Thread(
            target=self._read, args=(self._process.stdout,), daemon=True
        )
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.running:
            self._process.kill()
        self.wait()

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    @property
    def output(self) -> str:
        """All it has printed."""
        return "\n".join(self.lines)

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end; returns the exit code, -9 after SIGKILL.

        Raises:
          TimeoutError: if it does not end in time; it is then killed.
        """
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise TimeoutError(f"it did not end within {timeout:g} s") from None
        self._reader.join(timeout=10)
        return code

    def wait_until(self, reached: Callable[["Session"], bool], timeout: float) -> bool:
        """Waits for a moment; false if the process ended before it.

        Raises:
          TimeoutError: if it does not come in time; the process is then killed.
        """
        deadline = time.monotonic() + timeout
        while not reached(self):
            if not self.running:
                self._reader.join(timeout=10)
                return reached(self)
            if time.monotonic() > deadline:
                self._process.kill()
                raise TimeoutError(f"the moment did not come within {timeout:g} s")
            time.sleep(_POLL_SECONDS)
        return True

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def first_step(self) -> int | None:
        """The step the session started from, once it has said so."""
        return _last(_HAS_STARTED, self.lines)

    def last_step(self) -> int | None:
        """The last step it has told."""
        return _last(_STEP, self.lines)

    def phase(self) -> str:
        """One of `PHASES`: what the process does, or did when it ended.

        A save goes on in the background; it counts unless there is an evaluation.
        """
        if self.first_step() is None:
            return "compilation" if is_compiling(self) else "start"
        if is_evaluating(self):
            return "evaluation"
        return "save" if is_saving(self) else "step"

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self.lines.append(line.rstrip("\n"))


def is_compiling(session: Session) -> bool:
    """A moment: the plan is printed, the first step is not made."""
    has_plan = any(_HAS_PLAN.match(line) for line in list(session.lines))
    return has_plan and session.first_step() is None


def is_saving(session: Session) -> bool:
    """A moment: a checkpoint is partly written, by this session."""
    if session.last_step() is None:
        return False  # What lies there was left by another, and is yet to be cleared.
    folder = session.folder / workdir.CHECKPOINTS
    try:
        return any(_TEMPORARY in name for name in os.listdir(folder))
    except OSError:
        return False


def has_made(steps: int) -> Callable[[Session], bool]:
    """A moment: so many steps of this session are made."""

    def reached(session: Session) -> bool:
        first, last = session.first_step(), session.last_step()
        return first is not None and last is not None and last >= first + steps

    return reached


def is_evaluating(session: Session) -> bool:
    """A moment: an evaluation is due or under way; needs `evaluates_every`."""
    every, step = session.evaluates_every, session.last_step()
    evaluated = _last(_EVALUATED, session.lines)
    return bool(every and step and step % every == 0 and evaluated != step)


def flip_byte(path: pathlib.Path) -> str:
    """Changes one bit in the middle of a checkpoint's shard; tells which."""

    def flip(content: bytes) -> bytes:
        middle = len(content) // 2
        changed = bytes([content[middle] ^ 0x10])
        return content[:middle] + changed + content[middle + 1 :]

    return f"a bit of {_spoil(path, flip)}"


def truncate_shard(path: pathlib.Path) -> str:
    """Cuts a checkpoint's shard in half; tells which."""
    return f"half of {_spoil(path, lambda content: content[: len(content) // 2])}"


def delete_commit_marker(path: pathlib.Path) -> str:
    """Removes what says that a checkpoint is whole: its digest, Orbax's marks."""
    shutil.rmtree(path / "metadata")
    for mark in path.rglob("commit_success.txt"):
        mark.unlink()
    return f"{path.name}/metadata, which holds the digest"


DAMAGES: dict[str, Callable[[pathlib.Path], str]] = {
    "shard truncated": truncate_shard,
    "byte flipped": flip_byte,
    "commit marker deleted": delete_commit_marker,
}


def newest_whole(folder: pathlib.Path) -> checkpoint.Checkpoint | None:
    """The newest checkpoint of a workdir that its digest confirms; moves nothing."""
    checkpoints = folder / workdir.CHECKPOINTS
    for step in reversed(checkpoint.steps_on_disk(checkpoints)):
        try:
            return checkpoint.read(checkpoint.step_folder(checkpoints, step))
        except checkpoint.CheckpointError:
            continue
    return None


def half_largest_file(path: pathlib.Path) -> int:
    """A limit that small files keep and a checkpoint does not, in bytes."""
    return _shards(path)[0].stat().st_size // 2


def _spoil(path: pathlib.Path, change: Callable[[bytes], bytes]) -> str:
    """Changes the largest shard that matters; some hold what later ones replaced."""
    for shard in _shards(path):
        content = shard.read_bytes()
        shard.write_bytes(change(content))
        try:
            checkpoint.read(path)
        except checkpoint.CheckpointError:
            return str(shard.relative_to(path.parent))
        shard.write_bytes(content)
    raise ValueError(f"no shard of {path} matters to its arrays.")


def _shards(path: pathlib.Path) -> list[pathlib.Path]:
    """The files that hold arrays, the largest first."""
    shards = [p for p in (path / "state").rglob("d/*") if p.is_file()]
    return sorted(shards, key=lambda p: (-p.stat().st_size, p.name))


def _last(pattern: re.Pattern[str], lines: list[str]) -> Any:
    """The number of the last line that matches, or None."""
    for line in reversed(list(lines)):
        match = pattern.match(line)
        if match:
            return int(match[1].replace(",", ""))
    return None
