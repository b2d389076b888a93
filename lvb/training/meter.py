"""Shows how far an evaluation is, and when it will be done."""

import sys
import time
from collections.abc import Callable

import jax

from lvb.training import progress


class Meter:
    """Shows how far an evaluation is: "fog/3 12,800 of 50,000  812 images/s  ETA 4m".

    On a terminal one line is rewritten twice a second; elsewhere a line is written
    every half minute. Only the first host shows anything.
    """

    def __init__(
        self,
        title: str,
        num_parts: int,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Starts the clock.

        Args:
          title: in front of every line.
          num_parts: of the same size, about; the ETA is for all that are left.
          clock: seconds, rising.
        """
        self._title, self._parts_left, self._clock = title, num_parts, clock
        self._terminal = sys.stderr.isatty()
        self._shown = self._begin = clock()
        self._part, self._size = "", 0
        self._images = self._in_part = 0

    def start(self, part: str, size: int, *, known: bool) -> None:
        """Begins a part.

        Args:
          part: its name.
          size: number of its images.
          known: whether it is read back.
        """
        self._part, self._size, self._in_part = part, size, 0
        self._parts_left -= 1
        if known:
            self._show(f"{size:,} images, finished before", now=self._clock())

    def add(self, images: int) -> None:
        """Counts images of this part."""
        self._images += images
        self._in_part += images
        now = self._clock()
        if now - self._shown < (0.5 if self._terminal else 30.0):
            return
        rate = self._images / max(now - self._begin, 1e-9)
        left = self._size - self._in_part + self._parts_left * self._size
        eta = progress.duration(left / rate)
        done = f"{self._in_part:,} of {self._size:,}"
        self._show(f"{done}  {rate:,.0f} images/s  ETA {eta}", now=now)

    def finish(self) -> None:
        """Ends the line."""
        seconds = progress.duration(self._clock() - self._begin)
        self._part = ""
        self._show(f"{self._images:,} images in {seconds}", now=self._clock())
        if self._terminal and jax.process_index() == 0:
            print(file=sys.stderr, flush=True)

    def _show(self, text: str, *, now: float) -> None:
        self._shown = now
        if jax.process_index() == 0:
            line = " ".join(filter(None, (self._title, self._part, text)))
            begin, end = ("\r\x1b[K", "") if self._terminal else ("", "\n")
            print(f"{begin}{line}", end=end, file=sys.stderr, flush=True)
