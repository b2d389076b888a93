"""The `:arg` string of a config file, such as `lsnet_t.py:smoke,res=160`."""

import types
from typing import Any

from lvb.config import names

Value = bool | int | float | str

_BOOLS = {"true": True, "1": True, "false": False, "0": False}


def parse(arg: str, **defaults: Value) -> types.SimpleNamespace:
    """Reads a config argument; nothing in it is evaluated.

    Args:
      arg: comma-separated `key=value`; a bare `key` switches a bool on. The value ends
        at the next comma.
      **defaults: the known keys; each value has the type of its default.

    Returns:
      A namespace with the attributes of `defaults`.

    Raises:
      ValueError: for an unknown or repeated key, or a value of another type.
    """
    values: dict[str, Any] = dict(defaults)
    seen = set()
    for item in filter(None, (part.strip() for part in arg.split(","))):
        key, equals, text = item.partition("=")
        if key not in defaults:
            raise ValueError(
                f"config argument {key!r} is unknown{names.nearest(key, defaults)}; "
                f"this config knows {', '.join(defaults) or 'none'}."
            )
        if key in seen:
            raise ValueError(f"config argument {key!r} is given twice; keep one.")
        seen.add(key)
        values[key] = _read(key, text if equals else None, default=defaults[key])
    return types.SimpleNamespace(**values)


def _read(key: str, text: str | None, *, default: Value) -> Value:
    kind = type(default)
    if kind is bool:
        if text is None:
            return True
        if text.lower() not in _BOOLS:
            raise ValueError(
                f"config argument {key}={text!r} is not a bool; write {key} or "
                f"{key}=false."
            )
        return _BOOLS[text.lower()]
    if not text:
        raise ValueError(
            f"config argument {key!r} needs a value: {key}=<{kind.__name__}>, for "
            f"example {key}={default}."
        )
    try:
        return kind(text)
    except ValueError:
        raise ValueError(
            f"config argument {key}={text!r} is not of type {kind.__name__}; for "
            f"example {key}={default}."
        ) from None
