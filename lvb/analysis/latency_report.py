"""The table of measured times, on a screen and in the README."""

from collections.abc import Mapping, Sequence
from typing import Any

from lvb.analysis import markdown


def report(result: Mapping[str, Any]) -> str:
    """The table, the ratios and the limits of the machine.

    Args:
      result: what `python -m lvb.benchmark --latency` writes as JSON.

    Returns:
      Markdown.
    """
    host = result["machine"]
    lines = [
        f"{host['processor']}, {host['device']}, {host['threads']} threads, "
        f"jax {host['versions']['jax']}, commit {result['commit'][:7]}; medians of "
        f"{result['rows'][0]['rounds']} interleaved rounds after {result['warmup']}.",
        "",
        _table(result["rows"]),
    ]
    if result["ratios"]:
        cells = [
            (r["contender"], r["peer"], f"{r['median']:.2f}x", f"{r['of_minima']:.2f}x")
            for r in result["ratios"]
        ]
        header = ("faster by", "than", "median", "of minima")
        lines += ["", markdown.table(header, cells)]
    if "limits" in result:
        limits = result["limits"]
        lines += [
            "",
            f"Limits: {limits['flops'] / 1e9:.0f} GFLOP/s in a matrix product, "
            f"{limits['bandwidth'] / 1e9:.1f} GB/s elementwise.",
        ]
    return "\n".join(lines)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    header = ["contender", "median ms", "p5", "p95", "images/s", "peak MB", "compile s"]
    if "roofline" in rows[0]:
        header += ["GFLOP", "MB moved", "attainable ms", "of attainable", "bound"]
    cells = []
    for row in rows:
        ready = row["trace_seconds"] + row["lower_seconds"] + row["compile_seconds"]
        cached = " (cache)" if row["compiled_from_cache"] else ""
        line = [
            row["label"],
            *(f"{1e3 * row[f'{key}_seconds']:.2f}" for key in ("median", "p5", "p95")),
            f"{row['images_per_second']:.1f}",
            f"{row['peak_bytes'] / 1e6:.0f}",
            f"{ready:.1f}{cached}",
        ]
        if "roofline" in row:
            roof = row["roofline"]
            line += [
                f"{row['roofline_flops'] / 1e9:.2f}",
                f"{row['bytes_accessed'] / 1e6:.0f}",
                f"{1e3 * roof['attainable_seconds']:.2f}",
                f"{100 * roof['fraction']:.0f} %",
                roof["bound"],
            ]
        cells.append(line)
    return markdown.table(header, cells)
