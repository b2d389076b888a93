"""The folder of a run: where things go, who may write there, which config it holds."""

import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Callable, Mapping
from typing import Any, Self

CONFIG = "config.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
LOCK = "lock"


class Workdir:
    """An open workdir, locked against other processes until it is closed.

    Attributes:
      path: the folder, absolute.
      continued: whether a run had started here before.
    """

    def __init__(self, path: str | os.PathLike[str], *, writes: bool = True) -> None:
        """Creates and locks the folder.

        Args:
          path: the folder; parents are made too.
          writes: whether this process writes; only one of a pod does.

        Raises:
          ValueError: if the folder cannot be written or another process uses it.
        """
        self.path = pathlib.Path(path).absolute()
        self._lock: int | None = None
        if writes:
            self._make()
            self._lock = _lock(self.path / LOCK)
        self.continued = (self.path / CONFIG).is_file()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Releases the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def checkpoints(self) -> pathlib.Path:
        """The folder of the checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def metrics(self) -> pathlib.Path:
        """The file of the metrics, one JSON object per line."""
        return self.path / METRICS

    def saved_config(self) -> dict[str, Any]:
        """The config of the run that started here.

        Raises:
          ValueError: if the file does not hold a config as JSON.
        """
        path = self.path / CONFIG
        try:
            config = json.loads(path.read_text())
            if not isinstance(config, dict):
                raise ValueError(f"it holds a {type(config).__name__}, not a config")
            return config
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"workdir: {path} is damaged ({error}); delete it to let the current "
                "config take its place, or choose another --workdir."
            ) from None

    def save_config(self, config: Mapping[str, Any]) -> None:
        """Writes the config, whole or not at all."""
        temporary = self.path / f"{CONFIG}.tmp"
        temporary.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        temporary.replace(self.path / CONFIG)

    def check_config(
        self,
        config: Mapping[str, Any],
        *,
        diff: Callable[[Mapping[str, Any], Mapping[str, Any]], list[str]],
        may_differ: tuple[str, ...] = (),
    ) -> list[str]:
        """Refuses a config that would change what the run computes.

        Args:
          config: the config now, as plain nested dictionaries.
          diff: compares two configs, one line "name: old -> new" per leaf.
          may_differ: groups and leaves that sessions of one run need not share.

        Returns:
          The lines of leaves that differ and may.

        Raises:
          ValueError: with all other lines, if there are any.
        """
        lines = diff(self.saved_config(), json.loads(json.dumps(config)))
        allowed = [line for line in lines if _within(line.split(":")[0], may_differ)]
        refused = [line for line in lines if line not in allowed]
        if refused:
            raise ValueError(
                f"workdir {self.path} holds a run with another config; choose another "
                "--workdir, or undo these changes:\n  " + "\n  ".join(refused)
            )
        return allowed

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".write_test_{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ValueError(
                f"workdir {self.path} cannot be written ({error.strerror}); choose "
                "another --workdir or mend its permissions."
            ) from None


def _within(name: str, groups: tuple[str, ...]) -> bool:
    return any(name == group or name.startswith(f"{group}.") for group in groups)


def _lock(path: pathlib.Path) -> int:
    """Takes the lock, which the kernel releases however the process ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(descriptor, 200).decode(errors="replace").strip()
        os.close(descriptor)
        raise ValueError(
            f"workdir {path.parent} is in use by {holder or 'another process'}; wait "
            "for it, stop it, or choose another --workdir."
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return descriptor
