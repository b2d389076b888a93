"""What the files in configs/ablations/ share: rows of a paper's table, one run each."""

import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lvb.config import names

SEEDS = (0, 1, 2)


class Row(NamedTuple):
    """One row of a published ablation.

    Attributes:
      options: leaves of `config.model` that make the row, over the table's base.
      top1: ImageNet top-1 as printed, in percent.
    """

    options: Mapping[str, Any]
    top1: str


Rows = Mapping[str, Row]


def find_row(rows: Rows, row: str) -> Row:
    """Looks a row up.

    Args:
      rows: of the table, by id.
      row: id of one of them.

    Raises:
      ValueError: if there is no such row.
    """
    if row not in rows:
        raise ValueError(
            f"config argument row={row!r} is unknown{names.nearest(row, rows)}; the "
            f"table has {', '.join(rows)}."
        )
    return rows[row]


def row_runs(
    hyper: types.ModuleType, rows: Rows, *, seeds: Sequence[int] = SEEDS
) -> list[dict[str, Any]]:
    """All rows with all seeds, for `get_hyper`.

    Papers print their own model once in every block of a table; here rows with equal
    options run once, under the first of their names.

    Args:
      hyper: the module of that name, as `get_hyper` gets it.
      rows: of the table, by id.
      seeds: values of `config.seed`.

    Returns:
      The overrides of each run, the seeds of a row together.
    """
    options = [row.options for row in rows.values()]
    first = [
        name for index, name in enumerate(rows) if options[index] not in options[:index]
    ]
    return hyper.product([hyper.sweep("row", first), hyper.sweep("config.seed", seeds)])
