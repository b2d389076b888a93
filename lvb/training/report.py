"""What the operator sees: a run's start, its progress and its end."""

import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from lvb.training import compilation, history
from lvb.training.progress import duration


class Summary(NamedTuple):
    """How a session ended.

    Attributes:
      step: steps made, all sessions together.
      scores: of the evaluations, the last and the best.
      seconds: wall time of this session.
      compile_seconds: part of it that went into compilation.
      data_wait: share of training time spent waiting for data.
    """

    step: int
    scores: history.History
    seconds: float = 0.0
    compile_seconds: float = 0.0
    data_wait: float = 0.0


def say(text: str = "") -> None:
    """Prints a line, on the first host only.

    Characters that the terminal's encoding lacks are escaped: names of files and
    classes need not be text.
    """
    if jax.process_index() == 0:
        encoding = sys.stdout.encoding or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def devices(mesh: jax.sharding.Mesh) -> str:
    """One line: "8 x cpu on 1 host, mesh data=8 model=1"."""
    axes = " ".join(f"{name}={size}" for name, size in mesh.shape.items())
    kind = mesh.devices.flat[0].device_kind
    hosts = jax.process_count()
    plural = "" if hosts == 1 else "s"
    return f"{mesh.devices.size} x {kind} on {hosts} host{plural}, mesh {axes}"


def table(rows: Sequence[tuple[str, Any]]) -> str:
    """Two columns: a name and what there is to say, integers with separators."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {_shown(value)}" for name, value in rows)


def compiled(programs: compilation.Programs) -> str:
    """A line per program: how long tracing and compiling took."""
    return "\n".join(
        f"{name} step: traced in {program.trace_seconds:.1f} s, "
        f"{'from the cache' if program.cached else 'compiled'} in "
        f"{program.compile_seconds:.1f} s"
        for name, program in programs._asdict().items()
        if program is not None
    )


def progress_line(
    step: int, *, total_steps: int, metrics: Mapping[str, float], speed: Mapping
) -> str:
    """One line about the steps since the last.

    Args:
      step: steps made.
      total_steps: length of the run.
      metrics: "loss", "learning_rate".
      speed: from `Progress.window`.

    Returns:
      For example "step 100/440 (23%)  loss 0.7321  lr 2.9e-03  1,310 images/s ...".
    """
    return (
        f"step {step:,}/{total_steps:,} ({100 * step // total_steps}%)"
        f"  loss {metrics['loss']:.4f}"
        f"  lr {metrics['learning_rate']:.2e}"
        f"  {speed['images_per_sec']:,.0f} images/s"
        f"  data wait {speed['data_wait']:.0%}"
        f"  ETA {duration(speed['eta'])}"
    )


def evaluation_line(
    step: int,
    *,
    metrics: Mapping[str, float],
    count: int,
    best: float,
    beside: str = "",
) -> str:
    """One line about an evaluation: "step 88  val top1 95.28 %  ... best 95.28 %".

    Args:
      step: steps made.
      metrics: "loss", "top1" and so on.
      count: number of images.
      best: highest top-1 so far.
      beside: what to compare with, at the end of the line.
    """
    accuracies = "  ".join(
        f"{name} {100 * value:.2f} %"
        for name, value in metrics.items()
        if name.startswith("top")
    )
    return (
        f"step {step:,}  val {accuracies}  loss {metrics['loss']:.4f}"
        f"  of {count:,} images  best {100 * best:.2f} %"
        f"{'  ' if beside else ''}{beside}"
    )


def end(summary: Summary, *, folder: pathlib.Path) -> Summary:
    """Prints a summary and returns it.

    Args:
      summary: of the session.
      folder: of the run.
    """
    rows = [
        (f"{name} accuracy", f"{100 * score.value:.2f} % at step {score.step:,}")
        for name, score in summary.scores._asdict().items()
        if score is not None
    ]
    if summary.seconds:
        rows += [
            ("wall time", duration(summary.seconds)),
            ("of it compilation", f"{summary.compile_seconds:.1f} s"),
            ("data wait", f"{summary.data_wait:.1%}"),
        ]
    say("Summary:")
    say(table([*rows, ("in", folder)]))
    return summary


def _shown(value: Any) -> str:
    is_count = isinstance(value, int) and not isinstance(value, bool)
    return f"{value:,}" if is_count else str(value)
