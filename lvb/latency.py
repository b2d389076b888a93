"""`python -m lvb.benchmark --latency`: flags, the interleaved run, JSON and table."""

import argparse
import collections
import gc
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from lvb import api, contenders
from lvb.analysis import latency_report, machine, markdown, roofline, timing
from lvb.training import compilation, process, provenance

_TURN = 0.1  # Seconds: short calls are repeated, so that the clock does not matter.
# Of the pieces of memory that a process may map. A training step of LSNet-T has 3,400
# of the 65,530 that Linux allows, one of FMViT's several times as many.
_FULL = 0.5


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `--latency`."""
    add = parser.add_argument
    add("--models", default="all", help="names with commas, or all")
    add("--batch_sizes", default="1,16", help="images per call, with commas")
    add("--image_size", default="224", help="sides in pixels, with commas")
    add("--dtypes", default="float32", help="float32, bfloat16, float16, with commas")
    add("--fused", action="store_true", help="measure the fused form (the default)")
    add("--unfused", action="store_true", help="measure the training form")
    add("--mode", default="inference", choices=contenders.MODES)
    add("--op_forms", default="auto", help="auto, reference, shift, with commas")
    add("--rounds", type=int, default=20, help="measured turns of each contender")
    add("--warmup", type=int, default=3, help="turns before the first measured one")
    add("--threads", type=int, default=0, help="cores to use; 0 is all")
    add(
        "--compare",
        default="",
        help="pairs A:B, with commas: how many times faster A is than B; each names "
        "one contender by parts of its label, such as lsnet_t/b1:fvnet_t/b1",
    )
    add("--roofline", action="store_true", help="attainable speed on this machine")
    add("--cache", default="default", help="folder of compiled programs; '' is none")
    add("--out", help="folder for latency.json and latency.md")
    add("--name", default="latency", help="of the two files")


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table and writes the files; returns the exit code."""
    machine.pin(args.threads)
    compilation.enable_cache(args.cache)
    setups = _setups(args)
    pairs = [compared(pair, setups) for pair in _words(args.compare)]
    first = set(itertools.chain(*pairs))
    setups.sort(key=lambda setup: setup.label not in first)
    rows: list[dict[str, Any]] = []
    seconds: dict[str, list[float]] = collections.defaultdict(list)
    for number, group in enumerate(groups(setups, _build, machine.mapped_share)):
        timed = measure(
            {label: contender.call for label, contender in group.items()},
            rounds=args.rounds,
            warmup=args.warmup,
            with_limits=args.roofline,
        )
        for name, contender in group.items():
            rows.append({**contenders.row(contender, timed[name]), "group": number})
        for name, values in timed.items():
            seconds[name] += values
    result = {
        "machine": machine.describe(),
        "commit": provenance.commit(),
        "warmup": args.warmup,
        "rows": rows,
        "ratios": ratios(_in_one_group(pairs, rows), seconds),
    }
    if args.roofline:
        add_roofline(result, seconds)
    text = latency_report.report(result)
    print(text)
    if args.out:
        markdown.save(args.out, args.name, result=result, text=text)
    return process.DONE


def groups(
    setups: Sequence[contenders.Setup],
    build: Callable[[contenders.Setup], contenders.Contender],
    mapped_share: Callable[[], float],
) -> Iterator[dict[str, contenders.Contender]]:
    """Builds as many contenders as a process has room for, again and again.

    Compiled programs are mapped into memory in thousands of pieces, whose number is
    limited; beyond, LLVM ends the process. Those of a group are dropped when the next
    one is asked for.

    Args:
      setups: of all contenders, in order.
      build: makes one.
      mapped_share: the used share of what may be mapped, see `machine.mapped_share`.

    Yields:
      Contenders by label, at least one.
    """
    group: dict[str, contenders.Contender] = {}
    for setup in setups:
        if group and mapped_share() > _FULL:
            print("this process is full: these are timed first", file=sys.stderr)
            yield group
            group.clear()
            jax.clear_caches()
            gc.collect()
        group[setup.label] = build(setup)
    yield group


def _build(setup: contenders.Setup) -> contenders.Contender:
    contender = contenders.build(setup)
    program = contender.program
    source = "from cache" if program.cached else "compiled"
    print(f"{setup.label}: {source} in {program.seconds:.1f} s", file=sys.stderr)
    return contender


def _in_one_group(
    pairs: Sequence[tuple[str, str]], rows: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """The pairs that were timed in turns; of the others it says that they were not."""
    number = {row["label"]: row["group"] for row in rows}
    together = [pair for pair in pairs if number[pair[0]] == number[pair[1]]]
    for ours, peer in set(pairs) - set(together):
        print(
            f"--compare: {ours} and {peer} did not fit into one process and were not "
            "timed in turns; name fewer models to compare them.",
            file=sys.stderr,
        )
    return together


def measure(
    calls: Mapping[str, Any], *, rounds: int, warmup: int, with_limits: bool
) -> dict[str, list[float]]:
    """Times contenders in turns, and the limits of the machine among them.

    Args:
      calls: functions without arguments by name.
      rounds: measured turns of each, 1 or more.
      warmup: turns before.
      with_limits: whether to measure those, too.

    Returns:
      Seconds per call of every turn, by name.
    """
    if rounds < 1 or warmup < 0:
        raise ValueError(
            f"--rounds={rounds} --warmup={warmup}: measure at least one round after "
            "zero or more."
        )
    calls = dict(calls)
    if with_limits:
        calls |= roofline.limit_contenders()
    return timing.interleave(
        calls,
        rounds=rounds,
        warmup=warmup,
        calls=timing.calls_per_turn(calls, seconds=_TURN),
    )


def compared(pair: str, setups: Sequence[contenders.Setup]) -> tuple[str, str]:
    """The labels of the two contenders that `A:B` names.

    Args:
      pair: two sets of parts of labels, such as "lsnet_t/b1:fvnet_t/b1".
      setups: of all contenders.

    Raises:
      ValueError: if a side fits none or several.
    """
    sides = pair.split(":")
    if len(sides) != 2:
        raise ValueError(f"--compare={pair} is no pair; write A:B.")
    labels = []
    for side in sides:
        parts = set(side.split("/"))
        fitting = [s.label for s in setups if parts <= set(s.label.split("/"))]
        if len(fitting) != 1:
            raise ValueError(
                f"--compare: {side!r} fits {len(fitting)} contenders; name one by "
                f"parts of its label, such as {setups[0].label}."
            )
        labels += fitting
    return labels[0], labels[1]


def ratios(
    pairs: Sequence[tuple[str, str]], seconds: Mapping[str, Sequence[float]]
) -> list[dict[str, Any]]:
    """How many times faster the first of each pair is, over the rounds."""
    return [
        {
            "contender": ours,
            "peer": peer,
            **timing.ratio(seconds[ours], seconds[peer])._asdict(),
            "of_minima": min(seconds[peer]) / min(seconds[ours]),
        }
        for ours, peer in pairs
    ]


def add_roofline(
    result: dict[str, Any], seconds: Mapping[str, Sequence[float]]
) -> None:
    """Adds the machine's limits, and to each row how near to them it comes."""
    limits = roofline.limits(seconds)
    result["limits"] = limits._asdict()
    for row in result["rows"]:
        # The compiler counts a loop's body once; the network's products count all.
        needed = row["flops"]
        if row["mode"] == "inference":
            needed = max(needed, 2.0 * row["batch_size"] * _macs(row))
        row["roofline_flops"] = needed
        row["roofline"] = roofline.roof(
            row["median_seconds"],
            flops=needed,
            bytes_accessed=row["bytes_accessed"],
            limits=limits,
        )._asdict()


def _macs(row: Mapping[str, Any]) -> int:
    return api.profile_model(row["model"], image_size=row["image_size"]).macs


def _setups(args: argparse.Namespace) -> list[contenders.Setup]:
    models = api.list_models() if args.models == "all" else _words(args.models)
    if args.fused or args.unfused:
        fused = [True] * args.fused + [False] * args.unfused
    else:
        fused = [args.mode == "inference"]
    return contenders.setups(
        models,
        fused=fused,
        dtypes=_words(args.dtypes),
        batch_sizes=_numbers("batch_sizes", args.batch_sizes),
        image_sizes=_numbers("image_size", args.image_size),
        mode=args.mode,
        op_forms=_words(args.op_forms),
    )


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _numbers(flag: str, text: str) -> list[int]:
    try:
        numbers = [int(word) for word in _words(text)]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise ValueError(f"--{flag}={text}: give positive numbers with commas.")
    return numbers
