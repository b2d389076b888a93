"""Reads the config that a command line names; failures are told in one sentence."""

import importlib.util
import pathlib
import re
import sys
import types
from collections.abc import Sequence

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
    return load_module(path).get_config(arg).lock()


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
    if not path.is_file():
        raise ValueError(
            f"--config={text} is no file; run from the repository or give its path, "
            "for example --config configs/quickstart.py."
        )
    for parent in path.resolve().parents:
        if parent.name == "configs" and str(parent.parent) not in sys.path:
            sys.path.append(str(parent.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--config={text} is no Python file; its name ends in .py.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise ValueError(f"--config={text} has no function get_config(arg).")
    return module


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
                f"--config.{name} is no name of a leaf; write for example "
                "--config.optimizer.lr=1e-3."
            )
        names.check(name, config)
