"""How fast a run goes, and how much of its time it waits for data."""

import collections
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax

T = TypeVar("T")

_STEPS_IN_FLIGHT = 2


class Progress:
    """Times the steps of one session.

    Waiting for data counts only while the devices have nothing left to do: time that
    the next batch takes while they still work on the last step costs nothing.
    """

    def __init__(
        self,
        *,
        first_step: int,
        total_steps: int,
        batch_size: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Starts the clock.

        Args:
          first_step: where this session starts.
          total_steps: where the run ends.
          batch_size: images per step.
          clock: seconds, rising.
        """
        self._clock = clock
        self._total_steps = total_steps
        self._batch_size = batch_size
        self._start = self._mark = clock()
        self._mark_step = first_step
        self._waited = self._waited_at_mark = 0.0
        self._paused = 0.0
        self._running: collections.deque[Any] = collections.deque()

    def next_batch(self, batches: Iterator[T]) -> T:
        """Takes the next batch and counts the wait for it."""
        start = self._clock()
        batch = next(batches)
        if all(is_ready(results) for results in self._running):
            self._waited += self._clock() - start
        return batch

    def dispatched(self, results: Any) -> None:
        """Notes a step that was handed to the devices.

        Waits for the step before the last, so that neither steps nor their batches
        pile up.

        Args:
          results: small arrays that are ready when the step is done.
        """
        self._running.append(results)
        if len(self._running) > _STEPS_IN_FLIGHT:
            jax.block_until_ready(self._running.popleft())

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Takes a `with` block, such as an evaluation, out of the speed."""
        start = self._clock()
        try:
            yield
        finally:
            seconds = self._clock() - start
            self._paused += seconds
            self._mark += seconds

    def window(self, step: int) -> dict[str, float]:
        """Speed since the last call.

        Args:
          step: steps made so far.

        Returns:
          "images_per_sec", "data_wait" (share of time, in [0, 1]) and "eta" (seconds).
        """
        now = self._clock()
        seconds = max(now - self._mark, 1e-9)
        steps = step - self._mark_step
        waited = self._waited - self._waited_at_mark
        self._mark, self._mark_step, self._waited_at_mark = now, step, self._waited
        return {
            "images_per_sec": steps * self._batch_size / seconds,
            "data_wait": min(waited / seconds, 1.0),
            "eta": seconds / max(steps, 1) * (self._total_steps - step),
        }

    @property
    def data_wait(self) -> float:
        """Share of the session's training time spent waiting for data, in [0, 1]."""
        seconds = self._clock() - self._start - self._paused
        return min(self._waited / max(seconds, 1e-9), 1.0)


def is_ready(tree: Any) -> bool:
    """Whether all arrays of a pytree are computed; true if there are none."""
    return all(x.is_ready() for x in jax.tree.leaves(tree) if isinstance(x, jax.Array))


def duration(seconds: float) -> str:
    """Writes a time span: "8s", "2m05s", "3h12m", "2d04h"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes}m{seconds:02d}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minutes:02d}m"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours:02d}h"
