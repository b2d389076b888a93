"""Reads the config that a command line names; failures are told in one sentence."""

import contextlib
import importlib.util
import os
import pathlib
import re
import sys
import types
from collections.abc import Iterator, Sequence

from absl import flags as absl_flags
from ml_collections import config_dict

from lvb.config import names

_OVERRIDE = re.compile(r"--?(?:no)?config\.(?P<name>[^=]*)(?:=.*)?", re.DOTALL)
_LEAF = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def load(path_and_arg: str) -> config_dict.ConfigDict:
    """Runs `get_config` of a config file.

    Args:
      path_and_arg: "configs/lsnet_t.py" or "configs/lsnet_t.py:smoke,res=160".

    Returns:
      The config, locked.

    Raises:
      ValueError: if there is no such file, or it has no `get_config`.
    """
    path, _, arg = path_and_arg.partition(":")
    get_config = load_module(path).get_config
    with _told(path):
        return get_config(arg).lock()


def load_module(text: str) -> types.ModuleType:
    """Imports a config file.

    The folder that holds `configs/` joins the import path, so that a config finds its
    recipe from whatever directory the command was started in.

    Args:
      text: its path, without an argument.

    Returns:
      The module; it has a function `get_config`.

    Raises:
      ValueError: if there is no such file, or it has no `get_config`.
    """
    path = pathlib.Path(text)
    if not os.path.isfile(path):  # False too for what the system takes for no path.
        raise ValueError(
            f"--config={names.one_line(text)} is no file; run from the repository or "
            "give its path, for example --config configs/quickstart.py."
        )
    for parent in path.resolve().parents:
        if parent.name == "configs" and str(parent.parent) not in sys.path:
            sys.path.append(str(parent.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--config={text} is no Python file; its name ends in .py.")
    module = importlib.util.module_from_spec(spec)
    with _told(text):
        spec.loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise ValueError(f"--config={text} has no function get_config(arg).")
    return module


def parse(argv: Sequence[str]) -> None:
    """Gives the flags that a command has defined their values.

    Args:
      argv: the command line, program name first.

    Raises:
      ValueError: if the command line does not fit, with the first slip.
    """
    check_argv(argv)
    try:
        rest = absl_flags.FLAGS(argv)
    except Exception as error:
        # Values are read by Python's parser, which meets them with nearly any exception
        # there is: nested too deeply, they are a MemoryError.
        reason = str(error) or "a value is nested too deeply"
        raise ValueError(f"{names.one_line(reason)} (--help lists the flags)") from None
    if rest[1:]:
        raise ValueError(
            f"the argument {names.one_line(rest[1])!r} belongs to no flag; write "
            "--flag=value (--help lists the flags)"
        )


def check_argv(argv: Sequence[str]) -> None:
    """Checks --config and its overrides before absl parses them.

    Args:
      argv: the command line, program name first.

    Raises:
      ValueError: if the config does not load, or an override names no leaf of it.
    """
    path, overrides = "", []
    for index, word in enumerate(argv[1:], start=1):
        if word in ("--config", "-config") and index + 1 < len(argv):
            path = argv[index + 1]
        elif word.startswith(("--config=", "-config=")):
            path = word.split("=", 1)[1]
        elif match := _OVERRIDE.fullmatch(word):
            overrides.append(match["name"])
    if not path:
        return
    config = load(path)
    for name in overrides:
        if not _LEAF.fullmatch(name):
            raise ValueError(
                f"--config.{names.one_line(name)} is no name of a leaf; write for "
                "example --config.optimizer.lr=1e-3."
            )
        names.check(name, config)


@contextlib.contextmanager
def _told(path: str) -> Iterator[None]:
    """Turns what the code of a config file raises into one sentence."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f"--config={path} cannot be used: {type(error).__name__}: "
            f"{names.one_line(str(error))}."
        ) from error
