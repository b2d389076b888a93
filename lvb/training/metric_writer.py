"""Where metrics go: JSON lines always, TensorBoard when it is installed."""

import importlib.util
import json
import math
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any, Self

_DAMAGED = ".damaged"


class MetricWriter:
    """Appends metrics to `metrics.jsonl` and, with `lvb[tf]`, to TensorBoard.

    Each line is one JSON object: {"step": 100, "train/loss": 0.5, ...}. A run that
    continues drops the lines after the step it continues from, so that no step comes
    twice. NaN and infinity are written as null, which JSON can hold.
    """

    def __init__(
        self, path: pathlib.Path, *, last_step: int = 0, tensorboard: bool = True
    ) -> None:
        """Opens the file.

        Args:
          path: of the JSON lines; event files go to `tensorboard` beside it.
          last_step: lines of later steps are dropped.
          tensorboard: whether to write event files, if that can be done.
        """
        _drop_after(path, last_step)
        self._file = path.open("a")
        folder = path.parent / "tensorboard"
        self._events = _open_events(folder) if tensorboard else None

    @property
    def has_tensorboard(self) -> bool:
        """Whether event files are written."""
        return self._events is not None

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the metrics of a step; the line is on its way to disk at return."""
        finite = {
            name: value if math.isfinite(value) else None
            for name, value in scalars.items()
        }
        print(json.dumps({"step": step, **finite}), file=self._file, flush=True)
        if self._events is not None:
            self._events.write_scalars(step, dict(scalars))

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the lines of a metrics file.

    What is no line of ours is left out, such as a last one half written.
    """
    if not path.is_file():
        return []
    texts = path.read_text(errors="replace").splitlines()
    return [line for line in map(_read_line, texts) if line is not None]


def _read_line(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    step = line.get("step") if isinstance(line, dict) else None
    return line if type(step) is int else None


def _drop_after(path: pathlib.Path, last_step: int) -> None:
    """Drops later lines; a file with lines that are not ours is kept aside whole."""
    lines = read_metrics(path)
    if path.is_file():
        found = path.read_text(errors="replace").splitlines()
        if len(found) > len(lines) + 1:  # More than a last one half written.
            shutil.copyfile(path, path.with_name(f"{path.name}{_DAMAGED}"))
    kept = [line for line in lines if line["step"] <= last_step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
    temporary.replace(path)


def _open_events(folder: pathlib.Path) -> Any:
    """A clu writer of event files, or None without TensorFlow and TensorBoard."""
    if not all(importlib.util.find_spec(n) for n in ("tensorflow", "tensorboard")):
        return None
    # Here and not above: both are optional and slow to import. TensorFlow would take
    # the accelerator's memory; hiding the devices keeps it on the CPU.
    import tensorflow as tf
    from clu import metric_writers

    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)
    return metric_writers.SummaryWriter(str(folder))
