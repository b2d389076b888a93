"""The results of `lvb.evaluate` as tables, for the screen and as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from lvb.analysis import markdown

_HEADER = (
    *("benchmark", "classes", "weights", "images", "top-1 %", "95 %", "top-5 %"),
    *("ECE %", "mCE", "95 %", "rel. mCE"),
)


def results_table(results: Sequence[Mapping[str, Any]]) -> str:
    """One line for each benchmark, view and row of weights.

    Args:
      results: as in the JSON file: "benchmark", "view", "weights", "images", "top1",
        "top5", "ece", and for ImageNet-C "corruption_error".
    """
    return markdown.table(_HEADER, [_line(result) for result in results])


def protocol_list(results: Sequence[Mapping[str, Any]]) -> str:
    """The protocol of every benchmark, once each: what makes figures comparable."""
    lines = {
        f"- **{result['benchmark']}**: {result['protocol']}": None for result in results
    }
    return "\n".join(lines)


def corruption_table(result: Mapping[str, Any]) -> str:
    """Accuracy of ImageNet-C by corruption and severity, and CE.

    Args:
      result: one of ImageNet-C.
    """
    corruptions = result["corruption_error"]["corruptions"]
    severities = sorted({s for row in corruptions.values() for s in row["accuracy"]})
    rows = [
        [
            name,
            *(_number(row["accuracy"].get(severity)) for severity in severities),
            _number(row["mean_accuracy"]),
            _number(row["ce"]),
        ]
        for name, row in corruptions.items()
    ]
    header = ["top-1 % at severity", *severities, "mean", "CE"]
    return markdown.table(header, rows)


def report(document: Mapping[str, Any]) -> str:
    """The whole Markdown file.

    Args:
      document: what the JSON file holds: "checkpoint", "results" and "missing".
    """
    results = document["results"]
    parts = [
        "# Evaluation",
        f"Checkpoint `{document['checkpoint']}`; lvb commit {document['commit']}.",
    ]
    if results:
        parts += [results_table(results), "## Protocols", protocol_list(results)]
    for result in results:
        if result.get("corruption_error"):
            title = f"## {result['benchmark']}, {result['weights']}"
            parts += [title, corruption_table(result)]
    if document["missing"]:
        parts += ["## Not evaluated", missing_list(document["missing"])]
    return "\n\n".join(parts) + "\n"


def missing_list(missing: Sequence[Mapping[str, str]]) -> str:
    """What was not evaluated and what to run."""
    lines = {f"- {item['benchmark']}: {item['advice']}": None for item in missing}
    return "\n".join(lines)


def _line(result: Mapping[str, Any]) -> list[str]:
    corruption = result.get("corruption_error") or {}
    mce = corruption.get("mce") or {}
    top5 = result["top5"] or {}
    return [
        result["benchmark"],
        result["view"],
        result["weights"],
        f"{result['images']:,}",
        _number(result["top1"]["percent"]),
        _interval(result["top1"]),
        _number(top5.get("percent")),
        _number(result["ece"]["percent"]),
        _number(mce.get("value")),
        _interval(mce),
        _number(corruption.get("relative_mce")),
    ]


def _interval(figure: Mapping[str, Any]) -> str:
    if figure.get("low") is None:
        return "-"
    return f"{figure['low']:.2f}..{figure['high']:.2f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
