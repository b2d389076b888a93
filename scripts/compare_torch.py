r"""Times lvb beside PyTorch, titans-pytorch and ONNX Runtime, in turns, in one run.

    pip install -e '.[bench]'
    python scripts/compare_torch.py --what inference --out scripts/results
    python scripts/compare_torch.py --what train --models lsnet_t,fvnet_t,convneur_m1
    python scripts/compare_torch.py --what memory --tokens 784,3136,12544
    python scripts/compare_torch.py --what timm --peers repvit_m0_9,fastvit_t8
    python scripts/compare_torch.py --what onnx
    python scripts/compare_torch.py --what train --device cuda --dtype bfloat16

Each framework has a process and the same cores to itself; they work alternately (A, B,
A, B ...), while the others wait. lvb keeps the memory that its process frees, as its
commands do; `--allocators stock,keep` times each peer as it comes and with that
setting, which spares PyTorch page faults, too. Before it is timed, a twin must
reproduce lvb's numbers with lvb's weights: logits to 1e-4 of the largest, or, of a
training step, loss, norm of the gradient and the next loss to 1 %. titans-pytorch gets
our weights and settings, too, and must give our answers to 1e-4; its clip has another
formula and is left out of that proof, not of the timing, and so is the last token of a
chunk, which it answers after the chunk is written.
The peer of FVNet is a twin; that of ConvNeur is a twin of its local branches alone, and
so is what lvb runs beside it. On a GPU, bfloat16 is mixed precision on both sides, and
equality is asked for within what it leaves of it.
"""

import argparse
import contextlib
import pathlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import contests
import peer_process

from lvb.analysis import markdown, timing

WHAT = ("inference", "train", "memory", "timm", "onnx")
VARIANTS = "eager,channels_last,compile,compile_channels_last"
_SCRIPTS = pathlib.Path(__file__).resolve().parent
# Relative. Logits of two compilers; and the loss after a first step of AdamW, which
# moves a weight by the sign of its gradient, however small: 0.3 % between PyTorch's own
# float32 and float64.
_TOLERANCE = {"inference": 1e-4, "onnx": 1e-4, "memory": 1e-4, "train": 1e-2}
_MIXED = 0.3  # In bfloat16.
_TURN = 0.2  # Seconds: short calls are repeated within a turn.


def hold(
    contest: contests.Contest,
    peers: Mapping[str, peer_process.Peer],
    *,
    rounds: int,
    warmup: int,
) -> dict[str, Any]:
    """Builds, proves and times the contenders of a contest.

    Args:
      contest: what to time.
      peers: processes by name.
      rounds: measured turns of each contender.
      warmup: turns before.

    Returns:
      A JSON record: the facts and seconds of each contender, and how many times faster
      the first is than each of the others, round by round.

    Raises:
      ValueError: if a twin does not compute what lvb does.
    """
    if contest.exports:
        model, path = contest.exports
        peers["lvb"].ask("export", model=model, path=path)
    rows, repeats = {}, {}
    for entry in contest.entries:
        peer = peers[entry.peer]
        facts = peer.ask("build", name=entry.name, **entry.specification)
        check(contest, entry, facts)
        facts["resident_growth_bytes"] = peer.ask("growth", name=entry.name)["bytes"]
        once = peer.ask("time", name=entry.name, calls=1)["seconds"]
        repeats[entry.name] = max(1, int(_TURN / once))
        rows[entry.name] = {"name": entry.name, **entry.specification, **facts}
        rows[entry.name].pop("sample", None)
        rows[entry.name].pop("path", None)
        print(f"{contest.title}: {entry.name} is ready", file=sys.stderr, flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(-warmup, rounds):
        first = turn % len(contest.entries)
        for entry in (*contest.entries[first:], *contest.entries[:first]):
            asked = dict(name=entry.name, calls=repeats[entry.name])
            answer = peers[entry.peer].ask("time", **asked)
            if turn >= 0:
                seconds[entry.name].append(answer["seconds"])
    for peer in peers.values():
        peer.ask("drop")
    return record(contest, rows, seconds)


def check(
    contest: contests.Contest, entry: contests.Entry, facts: Mapping[str, Any]
) -> None:
    """Refuses a contender that does not compute what the first one does."""
    error = facts.get("error", 0.0)
    limit = _TOLERANCE.get(entry.specification["kind"], 0.0)
    if entry.specification.get("dtype", "float32") != "float32":
        limit = _MIXED
    if not error <= limit:  # Also true of NaN.
        raise ValueError(
            f"{contest.title}: {entry.name} differs from lvb by {error:.2g}, more than "
            f"{limit:g}; it is no fair peer."
        )


def record(
    contest: contests.Contest,
    rows: Mapping[str, dict[str, Any]],
    seconds: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """The JSON record of a contest."""
    names = list(rows)
    for name in names:
        summary = timing.summarise(seconds[name])
        rows[name].update(
            median_seconds=summary.median,
            min_seconds=summary.minimum,
            p5_seconds=summary.p5,
            p95_seconds=summary.p95,
            items_per_second=contest.items / summary.median,
            seconds=list(seconds[name]),
        )
    ours = names[0]
    return {
        "title": contest.title,
        "items": contest.items,
        "rows": list(rows.values()),
        "ratios": {
            name: {
                "median": timing.ratio(seconds[ours], seconds[name]).median,
                "of_minima": min(seconds[name]) / min(seconds[ours]),
            }
            for name in names[1:]
        },
    }


def report(result: Mapping[str, Any]) -> str:
    """Markdown of all contests."""
    host = result["machine"]
    versions = {**host["versions"], **result["peer_versions"]}
    words = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [
        f"{host['processor']}, {host['device']}, {host['threads']} threads, "
        f"{result['dtype']}; {words}; commit "
        f"{host['commit'][:7]}; medians of {result['rounds']} interleaved rounds. The "
        "ratio is the peer's time over ours, median (of minima). Matrix products reach "
        f"{result['limits']['flops'] / 1e9:.0f} GFLOP/s here, elementwise passes "
        f"{result['limits']['bandwidth'] / 1e9:.0f} GB/s.",
        "",
    ]
    header = ["", "contender", "ms", "per second", "MB", "error", "lvb is faster by"]
    rows = [row for contest in result["contests"] for row in contest["rows"]]
    with_products = any("product_flops" in row for row in rows)
    if with_products:
        header.append("products alone, ms")
    cells = []
    for contest in result["contests"]:
        for number, row in enumerate(contest["rows"]):
            ratio = contest["ratios"].get(row["name"])
            error = row.get("error")
            memory = row.get("peak_bytes") or row["resident_growth_bytes"]
            cells.append(
                [
                    contest["title"] if number == 0 else "",
                    row["name"],
                    f"{1e3 * row['median_seconds']:.2f}",
                    f"{row['items_per_second']:,.0f}",
                    f"{memory / 1e6:,.0f}",
                    "" if error is None else f"{error:.0e}",
                    f"{ratio['median']:.2f}x ({ratio['of_minima']:.2f})"
                    if ratio
                    else "",
                ]
            )
            if with_products:
                least = row.get("product_flops", 0) / result["limits"]["flops"]
                cells[-1].append(f"{1e3 * least:.1f}" if least else "")
    return "\n".join([*lines, markdown.table(header, cells)])


def make_parser() -> argparse.ArgumentParser:
    """The flags of the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--what", default="inference", choices=WHAT)
    add("--models", default="", help="names with commas")
    add("--batch_sizes", default="", help="with commas")
    add("--image_size", type=int, default=224, help="side in pixels; twins take 224")
    add("--variants", default=VARIANTS, help="of PyTorch, with commas")
    add(
        "--peers",
        default="repvit_m0_9,fastvit_t8,efficientvit_m2,shvit_s2,convnext_atto",
        help="names of timm, with commas",
    )
    add("--tokens", default="784,3136,12544", help="square numbers, with commas")
    add("--rounds", type=int, default=20, help="measured turns of each contender")
    add("--warmup", type=int, default=3, help="turns before")
    add("--dtype", default="float32", choices=("float32", "bfloat16"))
    add("--device", default="cpu", choices=("cpu", "cuda"), help="of both sides")
    add("--threads", type=int, default=0, help="cores of every process; 0 is all")
    add(
        "--allocators",
        default="stock",
        choices=("stock", "keep", "stock,keep"),
        help="memory of the peers: as they come, kept, or both in turns",
    )
    add("--out", help="folder for compare_WHAT.json and .md")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Holds the contests and writes the results."""
    args = make_parser().parse_args(argv)
    environment = {
        "PYTHONPATH": f"{_SCRIPTS.parent}:{_SCRIPTS}",
        "JAX_PLATFORMS": args.device,
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # Two processes share a card.
    }
    other = "onnx" if args.what == "onnx" else "torch"
    with tempfile.TemporaryDirectory() as folder:
        wanted = contests.contests(args, pathlib.Path(folder))
        processes = [("lvb", "lvb", "keep")] + [
            (contests.peer_of(other, allocator), other, allocator)
            for allocator in args.allocators.split(",")
        ]
        with contextlib.ExitStack() as stack:
            peers = {}
            for name, script, allocator in processes:
                path = str(_SCRIPTS / f"peer_{script}.py")
                command = [sys.executable, path, str(args.threads), args.device]
                peers[name] = stack.enter_context(
                    peer_process.Peer(
                        name, [*command, allocator], environment=environment
                    )
                )
            result = {
                "machine": peers["lvb"].ask("describe"),
                "peer_versions": peers[processes[-1][0]].ask("describe")["versions"],
                "allocators": args.allocators,
                "dtype": args.dtype,
                "rounds": args.rounds,
                "warmup": args.warmup,
                "contests": [
                    hold(contest, peers, rounds=args.rounds, warmup=args.warmup)
                    for contest in wanted
                ],
                "limits": peers["lvb"].ask("limits"),
            }
    text = report(result)
    print(text)
    if args.out:
        markdown.save(args.out, f"compare_{args.what}", result=result, text=text)


if __name__ == "__main__":
    main()
