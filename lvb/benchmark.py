r"""Measures models: how large they are, and how fast.

    python -m lvb.benchmark --table               # the 15 models beside the papers
    python -m lvb.benchmark --table --rows all    # and every ablation row
    python -m lvb.benchmark --latency --models lsnet_t,fvnet_t --batch_sizes 1,16
    python -m lvb.benchmark --latency --models lsnet_t --mode train --batch_sizes 16
    python -m lvb.benchmark --latency --roofline  # beside what the machine can do
    python -m lvb.benchmark --operators           # forms of the operators
    python -m lvb.benchmark --input               # images per second of the input
    python -m lvb.benchmark --loop                # what a run adds to its bare steps

Each kind has flags of its own: `--latency --help` lists those of `--latency`. `--out D`
writes a JSON and a Markdown file. Beside PyTorch: `scripts/compare_torch.py`.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from lvb import api
from lvb.analysis import markdown, paper_tables
from lvb.training import process

# What can be measured: a module of `add_flags(parser)` and `run(args)` for each kind.
_KINDS = {
    "table": __name__,
    "latency": "lvb.latency",
    "operators": "lvb.operators",
    "input": "lvb.input_speed",
    "loop": "lvb.loop_speed",
}
_ROW_SETS = {
    "variants": paper_tables.VARIANTS,
    "large": paper_tables.LARGE_IMAGES,
    "ablations": paper_tables.ABLATIONS,
    "all": paper_tables.VARIANTS + paper_tables.LARGE_IMAGES + paper_tables.ABLATIONS,
}
_HEADER = (
    "row",
    "model",
    "px",
    "params",
    "deployed",
    "paper M",
    "error",
    "paper's MACs",
    "paper G",
    "error",
    "all MACs",
)


def count_row(row: paper_tables.Row) -> dict[str, Any]:
    """Our counts of one published row, beside it.

    Args:
      row: a row whose operator lvb has (`row.options` is not None).

    Returns:
      The fields of `counts.json`: exact counts, published strings, relative errors
      (None without a published figure) and the reason of a deviation.
    """
    profile = api.profile_model(row.model, image_size=row.image_size, **row.options)
    millions = profile.paper_params / 1e6
    giga = profile.paper_macs / 1e9
    return {
        "source": row.source,
        "label": row.label,
        "model": row.model,
        "options": dict(row.options),
        "image_size": row.image_size,
        **profile._asdict(),
        "published_params": row.params,
        "params_error": _error(millions, row.params),
        "params_agree": row.params is None
        or paper_tables.within_rounding(millions, row.params),
        "published_gmacs": row.gmacs,
        "macs_error": _error(giga, row.gmacs),
        "macs_agree": row.gmacs is None
        or paper_tables.within_rounding(giga, row.gmacs),
        "reason": row.reason,
    }


def counts_markdown(counts: Sequence[dict[str, Any]]) -> str:
    """The table that is printed, and the reason of every deviation below it."""
    rows = [
        (
            f"{count['source']}: {count['label']}",
            count["model"],
            str(count["image_size"]),
            f"{count['params']:,}",
            f"{count['deploy_params']:,}",
            count["published_params"] or "",
            _percent(count["params_error"]),
            f"{count['paper_macs'] / 1e9:.3f} G",
            count["published_gmacs"] or "",
            _percent(count["macs_error"]),
            f"{count['macs'] / 1e9:.3f} G",
        )
        for count in counts
    ]
    notes = [
        f"- {count['source']}, {count['label']}: {count['reason']}."
        for count in counts
        if not (count["params_agree"] and count["macs_agree"])
    ]
    lines = [markdown.table(_HEADER, rows)]
    if notes:
        lines += ["", "Beyond the papers' rounding:", "", *notes]
    return "\n".join(lines)


def print_table(rows: Sequence[paper_tables.Row], out: str | None) -> None:
    """Prints the counts and, with `out`, writes them as JSON and Markdown."""
    counts = [count_row(row) for row in rows if row.options is not None]
    text = counts_markdown(counts)
    print(text)
    missing = [f"{row.source} {row.label}" for row in rows if row.options is None]
    if missing:
        print(f"\nNot built yet: {', '.join(missing)}.")
    if out:
        markdown.save(out, "counts", result=counts, text=text)


def _error(value: float, printed: str | None) -> float | None:
    return None if printed is None else value / float(printed) - 1


def _percent(error: float | None) -> str:
    return "" if error is None else f"{100 * error:+.1f} %"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `--table`."""
    add = parser.add_argument
    add("--rows", default="variants", choices=tuple(_ROW_SETS), help="of the table")
    add("--out", help="folder for counts.json and counts.md")


def run(args: argparse.Namespace) -> int:
    """Prints the table; returns the exit code."""
    print_table(_ROW_SETS[args.rows], args.out)
    return process.DONE


def make_parser(kind: str | None) -> argparse.ArgumentParser:
    """The flags of the command.

    Args:
      kind: a key of `_KINDS`, whose own flags are added, or None.
    """
    parser = argparse.ArgumentParser(
        prog="python -m lvb.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    kinds = parser.add_argument_group("what to measure")
    for name in _KINDS:
        kinds.add_argument(f"--{name}", action="store_true")
    if kind is not None:
        _module(kind).add_flags(parser)
    return parser


def _chosen(argv: Sequence[str]) -> str | None:
    """The kind that a command line names.

    Raises:
      ValueError: if it names several, or none and does not ask for help.
    """
    kinds = [name for name in _KINDS if f"--{name}" in argv]
    if len(kinds) == 1:
        return kinds[0]
    if not kinds and {"-h", "--help"} & set(argv):
        return None
    words = ", ".join(f"--{name}" for name in _KINDS)
    raise ValueError(f"say what to measure, one of {words}; this names {len(kinds)}.")


def _module(kind: str) -> ModuleType:
    """What measures a kind; only that is imported."""
    if kind == "table":  # This file, whether imported or run.
        return sys.modules[__name__]
    return importlib.import_module(_KINDS[kind])


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, runs the command and returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv

    def work() -> int:
        kind = _chosen(argv)
        args = make_parser(kind).parse_args(argv)
        return _module(kind).run(args)

    return process.run(work, name="lvb.benchmark")


if __name__ == "__main__":
    sys.exit(main())
