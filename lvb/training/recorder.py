"""A run's metrics, to the screen and to disk."""

import contextlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import jax
import optax

from lvb.training import evaluation, history, metric_writer, report


class Recorder(contextlib.ExitStack):
    """Prints and writes what a run measures; on other hosts than the first, nothing.

    Metrics are named `train/loss`, `val/top1`, `perf/images_per_sec`,
    `health/tau_max`, `data/broken_images`.
    """

    def __init__(
        self,
        path: pathlib.Path,
        *,
        first_step: int,
        total_steps: int,
        schedule: optax.Schedule,
        beside: Callable[[int], str] = lambda step: "",
    ) -> None:
        """Opens the metrics file.

        Args:
          path: of the JSON lines.
          first_step: where this session starts; later lines are dropped.
          total_steps: length of the run.
          schedule: step to learning rate.
          beside: step to what an evaluation is compared with on the screen.
        """
        super().__init__()
        self._total_steps = total_steps
        self._schedule = schedule
        self._beside = beside
        self._writer = None
        if jax.process_index() == 0:
            self._writer = metric_writer.MetricWriter(path, last_step=first_step)

    def __enter__(self) -> Self:
        super().__enter__()
        if self._writer is not None:
            self.enter_context(self._writer)
        return self

    def training(
        self,
        step: int,
        *,
        metrics: Mapping[str, Any],
        speed: Mapping[str, float],
        broken: int,
        health: Mapping[str, float] | None = None,
        warnings: Sequence[str] = (),
    ) -> None:
        """Reports the window of steps that ends here.

        Args:
          step: steps made.
          metrics: from the training step, on the devices.
          speed: from `progress.Progress.window`.
          broken: unreadable images so far.
          health: of the network's inner dynamics, if it has any.
          warnings: sentences about it.
        """
        pairs = {k: v for k, v in metrics.items() if k != "nonfinite_step"}
        means = {
            name: float(pair.total / pair.count)
            for name, pair in jax.device_get(pairs).items()
        }
        means["learning_rate"] = float(self._schedule(step - 1))
        report.say(
            report.progress_line(
                step, total_steps=self._total_steps, metrics=means, speed=speed
            )
        )
        for sentence in warnings:
            report.say(sentence)
        if self._writer is not None:
            scalars = {f"train/{name}": value for name, value in means.items()}
            scalars |= {f"perf/{name}": value for name, value in speed.items()}
            scalars |= {f"health/{name}": x for name, x in (health or {}).items()}
            self._writer.write(step, {**scalars, "data/broken_images": broken})

    def evaluation(
        self, step: int, *, result: evaluation.Evaluation, scores: history.History
    ) -> None:
        """Reports an evaluation, which is the last of `scores`."""
        report.say(
            report.evaluation_line(
                step,
                metrics=result.means,
                count=result.count,
                best=scores.best.value,
                beside=self._beside(step),
            )
        )
        if self._writer is not None:
            scalars = {f"val/{name}": value for name, value in result.means.items()}
            self._writer.write(step, {**scalars, "val/count": result.count})
