"""The evaluations of a run so far: the last and the best."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Self


class Score(NamedTuple):
    """An evaluation: its step, and the value of the metric that ranks, in [0, 1]."""

    step: int
    value: float


class History(NamedTuple):
    """What is left of past evaluations.

    Attributes:
      last: the newest, or None before the first.
      best: the one with the largest value, the earlier of two equal ones.
    """

    last: Score | None = None
    best: Score | None = None

    def add(self, step: int, value: float) -> Self:
        """Returns the history with one more evaluation."""
        score = Score(step, value)
        better = self.best is None or value > self.best.value
        return self._replace(last=score, best=score if better else self.best)

    def evaluated(self, step: int) -> bool:
        """Whether the newest evaluation is that of a step."""
        return self.last is not None and self.last.step == step

    def is_best(self, step: int) -> bool:
        """Whether a step has the best evaluation so far."""
        return self.best is not None and self.best.step == step

    @property
    def best_step(self) -> int | None:
        """The step of the best evaluation, None before the first."""
        return self.best.step if self.best else None

    def to_notes(self) -> dict[str, Any]:
        """As JSON values: {"last": {"step": ..., "value": ...}, "best": ...}."""
        return {
            name: score._asdict()
            for name, score in self._asdict().items()
            if score is not None
        }

    @classmethod
    def from_notes(cls, notes: Mapping[str, Any]) -> Self:
        """The inverse of `to_notes`."""
        return cls(**{name: Score(**score) for name, score in notes.items()})

    def catch_up(
        self, lines: Iterable[Mapping[str, Any]], *, metric: str, until: int
    ) -> Self:
        """Adds evaluations that the metrics file knows and a checkpoint does not.

        An evaluation comes before the checkpoint of its step; but if a signal ended
        it, the checkpoint is there first and the evaluation follows in the next
        session.

        Args:
          lines: of the metrics file, in order.
          metric: name of the ranking metric there.
          until: step of the checkpoint.

        Returns:
          The history up to that step.
        """
        history = self
        for line in lines:
            known = history.last.step if history.last else -1
            value = line.get(metric)
            if isinstance(value, int | float) and known < line["step"] <= until:
                history = history.add(line["step"], value)
        return history
