"""SIGKILL at random moments, over and over: the final state must not notice.

A round is one run. It is started, killed, started again, killed again, until it comes
to its end; then its outcome is compared with that of a run nobody disturbed, and the
next round starts in a new workdir, until all blows have been dealt.
"""

import collections
import pathlib
import random
import signal
import time
from collections.abc import Callable
from typing import NamedTuple

from lvb.training import faults, outcome, process

_TIMEOUT = 900.0
# Share of the blows that may fall before the first step: starting takes longest, and
# there is least to lose. Ours.
_EARLY = 0.2


class Round(NamedTuple):
    """A run that came to its end.

    Attributes:
      kills: blows it took.
      differences: from the unbroken run, see `outcome.differences`.
    """

    kills: int
    differences: tuple[str, ...]


class Campaign(NamedTuple):
    """All rounds, and where the blows fell.

    Attributes:
      expected: of the unbroken run.
      rounds: in order.
      phases: number of blows by phase, see `faults.PHASES`.
    """

    expected: outcome.Outcome
    rounds: tuple[Round, ...]
    phases: dict[str, int]

    @property
    def passed(self) -> bool:
        """Whether every round ended like the unbroken run."""
        return all(not r.differences for r in self.rounds)


def run(
    launcher: faults.Launcher,
    folder: pathlib.Path,
    *,
    kills: int,
    seed: int,
    evaluates_every: int,
    report: Callable[[str], None],
) -> Campaign:
    """Deals so many blows.

    Args:
      launcher: of a run that tells every step.
      folder: for the workdirs.
      kills: number of blows.
      seed: of their moments.
      evaluates_every: steps between evaluations.
      report: gets a line per blow and per round.

    Returns:
      What came out.

    Raises:
      RuntimeError: if the unbroken run fails, or a run ends by itself in an error.
    """
    rng = random.Random(seed)
    unbroken = folder / "unbroken"
    early, late = _durations(launcher, unbroken)
    expected = outcome.read(unbroken)
    report(f"unbroken run: {late:.1f} s of steps, SHA-256 {expected.state}")
    rounds: list[Round] = []
    phases: collections.Counter[str] = collections.Counter()
    while sum(phases.values()) < kills:
        workdir = folder / f"round{len(rounds)}"
        taken = 0
        while True:
            left = kills - sum(phases.values())
            delay = (rng.random() < _EARLY, rng.random()) if left else None
            with launcher.start(workdir) as session:
                session.evaluates_every = evaluates_every
                phase = _strike(session, delay, early=early, late=late)
            if phase is None:
                break
            phases[phase] += 1
            taken += 1
            report(f"kill {sum(phases.values())}/{kills}: in {phase}")
        different = outcome.differences(expected, outcome.read(workdir))
        rounds.append(Round(taken, tuple(different)))
        verdict = f"differs in {', '.join(different)}" if different else "equal"
        report(f"round {len(rounds)}: {taken} kills, {verdict}")
    return Campaign(expected, tuple(rounds), dict(phases))


def _durations(launcher: faults.Launcher, folder: pathlib.Path) -> tuple[float, float]:
    """Seconds to the first step with a warm cache, and from there to the end."""
    with launcher.start(folder) as session:
        session.wait_until(lambda s: s.first_step() is not None, _TIMEOUT)
        begun = time.monotonic()
        _expect_done(session)
        late = time.monotonic() - begun
    warm = folder.with_name("warm")
    with launcher.start(warm) as session:
        begun = time.monotonic()
        session.wait_until(lambda s: s.first_step() is not None, _TIMEOUT)
        early = time.monotonic() - begun
        session.send(signal.SIGKILL)
        session.wait()
    return early, late


def _strike(
    session: faults.Session,
    delay: tuple[bool, float] | None,
    *,
    early: float,
    late: float,
) -> str | None:
    """Kills a session at its moment; returns the phase, or None if it came to its end.

    Args:
      session: just started.
      delay: whether to count from the start or from the first step, and the share of
        that time; None lets it run.
      early: seconds to the first step.
      late: seconds from there to the end of a whole run.
    """
    if delay is not None:
        from_start, share = delay
        if not from_start:
            session.wait_until(lambda s: s.first_step() is not None, _TIMEOUT)
        deadline = time.monotonic() + share * (early if from_start else late)
        while session.running and time.monotonic() < deadline:
            time.sleep(0.002)
        session.send(signal.SIGKILL)
        if session.wait(_TIMEOUT) == -signal.SIGKILL:
            return session.phase()
    _expect_done(session)
    return None


def _expect_done(session: faults.Session) -> None:
    code = session.wait(_TIMEOUT)
    if code != process.DONE:
        raise RuntimeError(
            f"a run ended with exit code {code} by itself:\n{session.output[-2000:]}"
        )
