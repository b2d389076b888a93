"""`python -m lvb.benchmark --operators`: is the chosen form the fastest?"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from lvb import api
from lvb.analysis import machine, markdown, memory_forms, operator_forms
from lvb.models import lsnet
from lvb.training import compilation, process, provenance

OPERATORS = ("depthwise", "grouped", "pointwise", "stem", "aggregation", "memory")
_MODELS = "lsnet_t,fvnet_t,convneur_m1,fmvit_t"
_TOLERANCE = 1.05  # Of the chosen form's time over the best one's.


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `--operators`."""
    add = parser.add_argument
    add("--only", default="all", help=f"some of {', '.join(OPERATORS)}, with commas")
    add("--models", default=_MODELS, help="whose shapes to measure, with commas")
    add("--batch_sizes", default="1,16", help="images per call, with commas")
    add("--image_size", type=int, default=224, help="side in pixels")
    add("--rounds", type=int, default=20, help="measured turns of each form")
    add("--warmup", type=int, default=3, help="turns before the first measured one")
    add("--threads", type=int, default=0, help="cores to use; 0 is all")
    add("--cache", default="default", help="folder of compiled programs; '' is none")
    add("--out", help="folder for operators.json and operators.md")


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table and writes the files; returns the exit code."""
    only = OPERATORS if args.only == "all" else tuple(args.only.split(","))
    unknown = sorted(set(only) - set(OPERATORS))
    if unknown:
        raise ValueError(
            f"--only: {unknown[0]!r} is unknown; use some of {', '.join(OPERATORS)}."
        )
    machine.pin(args.threads)
    compilation.enable_cache(args.cache)
    batches = [int(size) for size in args.batch_sizes.split(",")]
    records = []
    for case in cases(
        args.models.split(","),
        batch_sizes=batches,
        image_size=args.image_size,
        only=only,
    ):
        found = operator_forms.measure(case, rounds=args.rounds, warmup=args.warmup)
        for record in found:
            print(_line(record), flush=True)
        records += found
    result = {
        "machine": machine.describe(),
        "commit": provenance.commit(),
        "rounds": args.rounds,
        "warmup": args.warmup,
        "rows": records,
    }
    text = report(result)
    print(text)
    if args.out:
        markdown.save(args.out, "operators", result=result, text=text)
    return process.DONE


def cases(
    models: Sequence[str],
    *,
    batch_sizes: Sequence[int],
    image_size: int,
    only: Sequence[str],
) -> Iterator[operator_forms.Case]:
    """The cases that networks consist of, each shape once.

    Args:
      models: names.
      batch_sizes: images per call; one image is none to train on, so has no gradients.
      image_size: side, in pixels.
      only: some of `OPERATORS`.
    """
    for batch in batch_sizes:
        for case in _cases(models, batch, image_size, only):
            yield case if batch > 1 else case._replace(gradient={})


def _cases(
    models: Sequence[str], batch: int, image_size: int, only: Sequence[str]
) -> Iterator[operator_forms.Case]:
    uses = {
        use: None  # A dict keeps their order.
        for name in models
        for use in convolutions(name, batch_size=batch, image_size=image_size)
    }
    for use in uses:
        if operator_forms.kind(use) in only:
            yield operator_forms.convolution_case(use)
    if "aggregation" in only:
        for shape, kernels in aggregations(models, batch, image_size):
            yield operator_forms.aggregation_case(shape, kernels)
    if "memory" in only:
        yield from memory_forms.cases(batch)


def convolutions(
    name: str, *, batch_size: int, image_size: int
) -> list[operator_forms.Convolution]:
    """The convolutions of a fused model that have several forms, from its jaxpr."""
    images = jax.ShapeDtypeStruct((batch_size, image_size, image_size, 3), jnp.float32)
    model = api.create_model(name, op_form="reference", deploy=True)
    shapes = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), images
    )
    jaxpr = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(shapes, images)
    uses = {}
    for equation in _equations(jaxpr.jaxpr):
        if equation.primitive.name != "conv_general_dilated":
            continue
        x, kernel = (variable.aval.shape for variable in equation.invars)
        groups = equation.params["feature_group_count"]
        padding = tuple(low for low, _ in equation.params["padding"])
        strides = equation.params["window_strides"][0]
        pointwise = kernel[:2] == (1, 1) and strides == 1 and padding == (0, 0)
        if groups > 1 or pointwise or x[-1] == images.shape[-1]:
            use = operator_forms.Convolution(x, kernel, strides, padding, groups)
            uses[use] = None
    return list(uses)


def aggregations(
    models: Sequence[str], batch_size: int, image_size: int
) -> list[tuple[tuple[int, ...], int]]:
    """Shapes of x and numbers of kernels of the LS convolutions of some models."""
    found = {}
    for name in models:
        if not name.startswith("lsnet_"):
            continue
        variant = lsnet.VARIANTS[name.removeprefix("lsnet_").upper()]
        for depth, stage in zip(
            variant.depths[:3], api.feature_info(name), strict=False
        ):
            if depth > 1:
                side = -(-image_size // stage.stride)
                shape = (batch_size, side, side, stage.channels)
                found[shape, stage.channels // lsnet.LSNet().group_width] = None
    return list(found)


def report(result: dict[str, Any]) -> str:
    """The tables on screen and in the README; every measurement is in the JSON file."""
    rows = result["rows"]
    slow = [row for row in rows if row["chosen_over_best"] > _TOLERANCE]
    slow.sort(key=lambda row: -row["chosen_over_best"])
    host = result["machine"]
    lines = [
        f"{host['processor']}, {host['device']}, {host['threads']} threads, "
        f"jax {host['versions']['jax']}, commit {result['commit'][:7]}; medians of "
        f"{result['rounds']} interleaved rounds.",
        "",
        f"The chosen form is within 5 % of the best in {len(rows) - len(slow)} of "
        f"{len(rows)} measurements.",
        "",
        _summary(rows),
    ]
    if slow:
        header = ("beyond 5 %", "direction", "chosen", "ms", "best", "chosen / best")
        cells = [
            (
                f"{row['operator']} {row['shape']}",
                row["direction"],
                row["chosen"],
                f"{1e3 * row['forms'][row['chosen']]['median_seconds']:.3f}",
                row["best"],
                f"{row['chosen_over_best']:.2f}",
            )
            for row in slow
        ]
        lines += ["", markdown.table(header, cells)]
    return "\n".join(lines)


def _summary(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each operator and direction.

    The first form of a row is the pure reference.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["operator"], row["direction"]), []).append(row)
    cells = []
    for (operator, direction), members in groups.items():
        ratios = [row["chosen_over_best"] for row in members]
        gains = [
            next(iter(row["forms"].values()))["median_seconds"]
            / row["forms"][row["chosen"]]["median_seconds"]
            for row in members
        ]
        cells.append(
            (
                operator,
                direction,
                str(len(members)),
                str(sum(ratio <= _TOLERANCE for ratio in ratios)),
                f"{max(ratios):.2f}",
                f"{statistics.median(gains):.1f}x",
            )
        )
    header = (
        "operator",
        "direction",
        "shapes",
        "within 5 %",
        "worst",
        "over reference",
    )
    return markdown.table(header, cells)


def _line(record: dict[str, Any]) -> str:
    times = ", ".join(
        f"{name} {1e3 * form['median_seconds']:.3f}"
        for name, form in record["forms"].items()
    )
    words = (record["operator"], record["shape"], record["direction"])
    return f"{' '.join(words)}: {times} ms; chosen {record['chosen']}"


def _equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """All equations, also of inner functions."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for item in value if isinstance(value, tuple | list) else (value,):
                if isinstance(item, core.ClosedJaxpr):
                    yield from _equations(item.jaxpr)
                elif isinstance(item, core.Jaxpr):
                    yield from _equations(item)
