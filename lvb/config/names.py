"""Names of config leaves: listed, compared and corrected."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns " (did you mean 'x'?)" for the closest known word, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def one_line(text: str, *, longest: int = 300) -> str:
    """Makes text from outside fit for a message.

    Args:
      text: such as a value of a command line.
      longest: characters that are shown; of a longer text the middle is left out.

    Returns:
      The text with its control characters escaped.
    """
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    if len(shown) <= longest:
        return shown
    half = longest // 2
    return f"{shown[:half]} ... {shown[-half:]}"


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested mappings: {"optimizer": {"lr": 1}} -> {"optimizer.lr": 1}.

    Tuples become lists, as in JSON, so that a saved config equals a fresh one. An
    empty mapping is a leaf.
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if hasattr(value, "items") and value:
            flat.update(flatten(value, prefix=f"{name}."))
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def lines(config: Mapping[str, Any]) -> list[str]:
    """One line per leaf, `optimizer.lr = 0.004`, sorted by name."""
    return [f"{name} = {value!r}" for name, value in sorted(flatten(config).items())]


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line per leaf that differs: `seed: 0 -> 1`; `absent` where there is none."""
    a, b = flatten(old), flatten(new)
    return [
        f"{name}: {_shown(a, name)} -> {_shown(b, name)}"
        for name in sorted({*a, *b})
        if _shown(a, name) != _shown(b, name)
    ]


def check(name: str, config: Mapping[str, Any]) -> None:
    """Raises ValueError unless `name` is a leaf of the config."""
    known = flatten(config)
    if name in known:
        return
    inside = [leaf for leaf in known if leaf.startswith(f"{name}.")]
    if inside:
        raise ValueError(
            f"--config.{name} is a group; set one of its leaves, for example "
            f"--config.{inside[0]}={known[inside[0]]}."
        )
    raise ValueError(
        f"--config.{name} is unknown{nearest(name, known)}; the config has "
        f"{', '.join(sorted({leaf.split('.')[0] for leaf in known}))}."
    )


def _shown(flat: Mapping[str, Any], name: str) -> str:
    return repr(flat[name]) if name in flat else "absent"
