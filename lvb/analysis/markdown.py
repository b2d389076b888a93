"""Tables as Markdown, readable on a screen as well, and what they are made from."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; all but the first flush right.

    Args:
      header: the names of the columns.
      rows: cells, as many per row as there are columns.

    Returns:
      Lines joined by newlines, without one at the end.
    """
    widths = [
        max(3, *(len(row[column]) for row in (header, *rows)))
        for column in range(len(header))
    ]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = [
            cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)
        ]
        return f"| {' | '.join([first, *rest])} |"

    rule = [
        ":" + "-" * (widths[0] - 1),
        *("-" * (width - 1) + ":" for width in widths[1:]),
    ]
    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])


def save(folder: str, name: str, *, result: Any, text: str) -> None:
    """Writes a measurement twice: NAME.json to compute with, NAME.md to read.

    Args:
      folder: where to; made if there is none.
      name: of both files.
      result: what JSON can hold.
      text: its report.
    """
    path = pathlib.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (path / f"{name}.md").write_text(text + "\n")
