"""The drill's faults, one after another on one run, which must not notice.

Every fault is a row of the table. The run goes on from what the fault left; at its end
it is compared with a run that nothing happened to.
"""

import contextlib
import pathlib
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from lvb.training import checkpoint, faults, outcome, process, workdir

# Of one session, compilation included; a hang ends here.
_TIMEOUT = 900.0
_LONGEST = 400  # Characters of a message in the table: a path and what went wrong.
_MOMENTS: dict[str, Callable[[faults.Session], bool]] = {
    "compilation": faults.is_compiling,
    "step": faults.has_made(5),  # With something saved before.
    "save": faults.is_saving,
    "evaluation": faults.is_evaluating,
}


class Row(NamedTuple):
    """A line of the table.

    Attributes:
      fault: what was done.
      passed: whether the run behaved.
      detail: what was seen.
    """

    fault: str
    passed: bool
    detail: str


class Matrix:
    """Runs the rows; see `rows`."""

    def __init__(
        self, launcher: faults.Launcher, folder: pathlib.Path, *, evaluates_every: int
    ) -> None:
        """Prepares the drill.

        Args:
          launcher: of a run that tells every step, and saves between evaluations.
          folder: for its workdirs.
          evaluates_every: steps between evaluations.
        """
        self._launcher = launcher
        self._unbroken = folder / "unbroken"
        self._run = folder / "run"
        self._every = evaluates_every
        self._expected: outcome.Outcome | None = None

    def rows(self) -> Iterator[Row]:
        """All rows, as they are done."""
        yield self._row("none: the unbroken run", self._finish_unbroken)
        for phase in _MOMENTS:
            yield self._row(f"SIGKILL in {phase}", lambda p=phase: self._kill(p))
        for phase in _MOMENTS:
            yield self._row(f"SIGTERM in {phase}", lambda p=phase: self._stop(p))
        yield self._row("SIGINT, then again", self._stop_twice)
        for name, damage in faults.DAMAGES.items():
            yield self._row(name, lambda d=damage: self._damage(d))
        yield self._row("disk full in a save", self._fill_disk)
        yield self._row("every checkpoint damaged", self._damage_all)
        yield self._row("all of these: same final state", self._finish)

    def _row(self, fault: str, act: Callable[[], str]) -> Row:
        """Does one row; what it raises is a failure with a reason."""
        try:
            return Row(fault, True, act())
        except (_Failure, TimeoutError, checkpoint.CheckpointError) as failure:
            return Row(fault, False, str(failure))

    def _finish_unbroken(self) -> str:
        with self._session(self._unbroken) as session:
            _expect_code(session, process.DONE)
        self._expected = outcome.read(self._unbroken)
        return f"{self._expected.step} steps, SHA-256 {self._expected.state[:12]}..."

    def _kill(self, phase: str) -> str:
        # The moment is judged again from what the dead process left; a blow that came
        # too late to hit it is tried again.
        for _ in range(5):
            with self._at(phase) as session:
                session.send(signal.SIGKILL)
                _expect_code(session, -signal.SIGKILL)
                hit = _MOMENTS[phase](session)
            if hit:
                return f"{self._left()} left whole"
        raise _Failure("the blow came too late, five times")

    def _stop(self, phase: str) -> str:
        with self._at(phase) as session:
            session.send(signal.SIGTERM)
            code = session.wait(_TIMEOUT)
            told, step = session.output, session.last_step()
        if code != process.STOPPED:
            raise _Failure(f"exit code {code}, not {process.STOPPED}: {_end(told)}")
        whole = faults.newest_whole(self._run)
        if phase != "compilation" and (whole is None or whole.notes["step"] != step):
            raise _Failure(f"step {step} is not saved; {self._left()} is")
        return f"exit code {code}, {self._left()} left whole: {_end(told)!r}"

    def _stop_twice(self) -> str:
        with self._at("evaluation") as session:
            session.send(signal.SIGINT)
            # The handler notes the first before the second comes.
            session.wait_until(lambda s: "a second signal leaves" in s.output, 60.0)
            session.send(signal.SIGINT)
            code = session.wait(60.0)
        if code not in (128 + signal.SIGINT, process.STOPPED):
            raise _Failure(f"exit code {code}: {_end(session.output)}")
        return f"exit code {code}, {self._left()} left whole"

    def _damage(self, damage: Callable[[pathlib.Path], str]) -> str:
        newest = self._newest_of_two()
        done = damage(newest)
        with self._session(self._run) as session:
            self._go_on(session)  # To where the next row begins.
        named = [line for line in session.lines if "is damaged" in line]
        if not named or str(newest) not in named[0]:
            raise _Failure(f"{done}; not named: {_end(session.output)}")
        aside = self._run / checkpoint.DAMAGED / newest.name
        if not aside.is_dir() or session.first_step() >= int(newest.name):
            raise _Failure(f"{done}; started at step {session.first_step()}")
        shutil.rmtree(aside)
        return f"{done}; {_brief(named[0])!r}; continued at {session.first_step()}"

    def _fill_disk(self) -> str:
        newest = self._newest_of_two()
        limit = faults.half_largest_file(newest)
        session = self._launcher.start(self._run, max_file_bytes=limit)
        with session:
            code = session.wait(_TIMEOUT)
        if code != process.FAILED or "saving step" not in session.output:
            raise _Failure(f"exit code {code}: {_end(session.output)}")
        return f"exit code {code}: {_brief(_end(session.output))!r}; {self._left()}"

    def _damage_all(self) -> str:
        """On a copy, since nothing is left to continue from."""
        self._newest_of_two()
        with tempfile.TemporaryDirectory(dir=self._run.parent) as name:
            copy = pathlib.Path(name, "run")
            shutil.copytree(self._run, copy)
            checkpoints = copy / workdir.CHECKPOINTS
            steps = checkpoint.steps_on_disk(checkpoints)
            for step in steps:
                faults.flip_byte(checkpoint.step_folder(checkpoints, step))
            with self._session(copy) as session:
                code = session.wait(_TIMEOUT)
            kept = len(list((copy / checkpoint.DAMAGED).iterdir()))
        if code != process.FAILED or kept != len(steps):
            raise _Failure(f"exit code {code}, {kept} kept: {_end(session.output)}")
        return f"exit code {code}, {kept} kept aside: {_brief(_end(session.output))!r}"

    def _finish(self) -> str:
        with self._session(self._run) as session:
            _expect_code(session, process.DONE)
        found = outcome.read(self._run)
        different = outcome.differences(self._expected, found)
        if different:
            raise _Failure(f"differs in {', '.join(different)}")
        return f"SHA-256 {found.state[:12]}..., scores and metrics equal too"

    def _newest_of_two(self) -> pathlib.Path:
        """Lets the run go on if it has not two checkpoints; returns the newest."""
        checkpoints = self._run / workdir.CHECKPOINTS
        if len(checkpoint.steps_on_disk(checkpoints)) < 2:
            with self._session(self._run) as session:
                self._go_on(session)
        newest = checkpoint.steps_on_disk(checkpoints)[-1]
        return checkpoint.step_folder(checkpoints, newest)

    def _go_on(self, session: faults.Session) -> None:
        """Waits for two checkpoints of this session, and kills it between saves."""
        folder = self._run / workdir.CHECKPOINTS

        def saved_two(session: faults.Session) -> bool:
            first = session.first_step()
            if first is None or faults.is_saving(session):
                return False
            return sum(step > first for step in checkpoint.steps_on_disk(folder)) >= 2

        session.wait_until(saved_two, _TIMEOUT)
        session.send(signal.SIGKILL)
        session.wait(_TIMEOUT)

    @contextlib.contextmanager
    def _at(self, phase: str) -> Iterator[faults.Session]:
        """A session at a moment."""
        changes = {}
        with contextlib.ExitStack() as stack:
            if phase == "compilation":  # From the cache it would be over too soon.
                empty = tempfile.TemporaryDirectory(dir=self._run.parent)
                changes["JAX_COMPILATION_CACHE_DIR"] = stack.enter_context(empty)
            session = stack.enter_context(self._session(self._run, **changes))
            if not session.wait_until(_MOMENTS[phase], _TIMEOUT):
                raise _Failure(f"ended before: {_end(session.output)}")
            if phase == "compilation":
                time.sleep(0.3)  # Well inside.
            yield session

    def _session(self, folder: pathlib.Path, **changes: str) -> faults.Session:
        session = self._launcher.start(folder, **changes)
        session.evaluates_every = self._every
        return session

    def _left(self) -> str:
        whole = faults.newest_whole(self._run)
        return "no checkpoint" if whole is None else f"step {whole.notes['step']}"


class _Failure(Exception):
    """A row that did not go as it should."""


def _expect_code(session: faults.Session, code: int) -> None:
    actual = session.wait(_TIMEOUT)
    if actual != code:
        raise _Failure(f"exit code {actual}, not {code}: {_end(session.output)}")


def _end(output: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"


def _brief(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
