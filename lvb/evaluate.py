r"""Evaluates a classifier under named protocols.

    python -m lvb.evaluate --benchmark list
    python -m lvb.evaluate --checkpoint runs/lsnet_t --data_dir ~/data \
        --benchmark imagenet_val,imagenet_real,imagenet_a,imagenet_c

The checkpoint is the workdir of a run, one of its checkpoints, a converted checkpoint,
or an exported .stablehlo or .onnx file. Last and best, raw and averaged weights are
separate rows. Every image counts once, on any number of devices.

The workdir gets evaluation.json, evaluation.md and records/, which hold what was
predicted for every image. Benchmarks, and parts of ImageNet-C, that are finished there
with the same weights and protocol are read back. Benchmarks whose images are missing
are reported with what to run, and the others go on.

Exit codes: 0 when something was evaluated; 1 when nothing was, or after an error, told
on stderr; 75 after Ctrl-C: run the same command again to continue.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from lvb import protocol as protocol_lib
from lvb import restore
from lvb.analysis import evaluation_report
from lvb.config import names as name_lib
from lvb.data import benchmarks, corruptions, corruptions_weather, resampling
from lvb.training import compilation, process, provenance, report, sharding
from lvb.training import workdir as workdir_lib

_OWN = protocol_lib.OWN
_SOURCES = ("digits", "fashion_mnist", "folder", "synthetic", "tfds")


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m lvb.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    lists = {"metavar": "A,B,...", "type": _words}
    add("--checkpoint", help="workdir, checkpoint folder, .stablehlo or .onnx file")
    add(
        "--benchmark",
        required=True,
        help="names; 'list' prints them; or data sources such as digits, folder:/path"
        " and tfds:name, whose held-out split is evaluated",
        **lists,
    )
    add("--data_dir", help="where the benchmarks lie, in folders or as TFDS sets")
    add("--workdir", help="for the results; default: CHECKPOINT/evaluation")
    add("--batch_size", type=int, default=256, help="images per step, all devices")
    add("--num_workers", type=int, default=0, help="decoding processes; 0: threads")
    rows = ", ".join(restore.ROWS)
    add("--rows", default=[], help=f"which of {rows}; default: all there are", **lists)
    add("--fuse", action="store_true", help="fuse the model for inference first")
    add("--image_size", type=int, help="test resolution; default: the checkpoint's")
    add("--crop_ratio", type=float, help="in place of the protocol's; not ImageNet-C")
    add("--crops", type=int, default=1, choices=(1, 5, 10), help="averaged per image")
    methods = ", ".join((_OWN, *resampling.METHODS))
    add(
        "--resampling",
        default=[_OWN],
        help=f"a row for each, to see what preprocessing changes: {methods}",
        **lists,
    )
    add("--corruptions", default=[], help="ImageNet-C: only these", **lists)
    add("--severities", default=["1", "2", "3", "4", "5"], **lists, help="likewise")
    add("--extra_corruptions", action="store_true", help="ImageNet-C: the 4 extra too")
    add("--frost_dir", help="photographs for the frost of imagenet_c_generated")
    add("--seed", type=int, default=0, help="of corruptions and of the bootstrap")
    add("--distributed", action="store_true", help="this is one of several hosts")
    return parser


def evaluate(args: argparse.Namespace) -> int:
    """Runs the evaluation that the flags ask for; returns the exit code."""
    if args.benchmark == ["list"]:
        print(list_benchmarks())
        return process.DONE
    chosen = [find_benchmark(name) for name in args.benchmark]
    options = make_options(args)
    if not args.checkpoint:
        raise ValueError("--checkpoint is missing; give a workdir or an exported file.")
    if args.distributed:
        jax.distributed.initialize()
    path = pathlib.Path(args.checkpoint).expanduser()
    models = restore.restore(path, rows=args.rows, fuse=args.fuse)
    is_writer = jax.process_index() == 0
    with workdir_lib.Workdir(_workdir(args, path), writes=is_writer) as folder:
        mesh = sharding.make_mesh()
        compilation.enable_cache("default")
        report.say(f"{report.devices(mesh)}; results go to {folder.path}")
        document: dict[str, Any] = {"results": [], "missing": []}
        for model in models:
            predictor = model.make_predictor(mesh)
            for method, benchmark in ((m, b) for m in args.resampling for b in chosen):
                try:
                    protocol = protocol_lib.make_protocol(
                        benchmark, model, options, method=method
                    )
                    found = protocol_lib.evaluate_benchmark(
                        protocol,
                        predictor,
                        options=options,
                        folder=folder.path,
                        mesh=mesh,
                    )
                except ValueError as error:  # The other benchmarks go on.
                    advice = str(error).removeprefix(f"{benchmark.name}: ")
                    failure = {"benchmark": benchmark.name, "weights": model.row}
                    document["missing"].append({**failure, "advice": advice})
                    report.say(f"{benchmark.name} is not evaluated: {advice}")
                    continue
                if found:
                    clean = _clean_error(document["results"], protocol.row)
                    document["results"] += protocol_lib.results(
                        protocol, found, seed=args.seed, clean_error=clean
                    )
                    _save(folder.path, path, document)
        if is_writer:
            print(evaluation_report.report(_save(folder.path, path, document)))
    return process.DONE if document["results"] or not is_writer else process.FAILED


def make_options(args: argparse.Namespace) -> protocol_lib.Options:
    """Checks the flags as far as that is possible before anything is read.

    Raises:
      ValueError: when a word is unknown.
    """
    known = (*corruptions.BENCHMARK, *corruptions.EXTRA)
    number = len(known if args.extra_corruptions else corruptions.BENCHMARK)
    _check(args.resampling, (_OWN, *resampling.METHODS), "--resampling")
    _check(args.corruptions, known, "--corruptions")
    _check(args.severities, "12345", "--severities")
    if args.frost_dir:
        corruptions_weather.load_frost(args.frost_dir)
    if args.batch_size < 1:
        raise ValueError(f"--batch_size={args.batch_size}; give 1 or more.")
    return protocol_lib.Options(
        data_dir=args.data_dir,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        image_size=args.image_size,
        crop_ratio=args.crop_ratio,
        crops=args.crops,
        corruption_names=tuple(args.corruptions) or known[:number],
        severities=tuple(int(word) for word in args.severities),
        frost_dir=args.frost_dir,
        seed=args.seed,
    )


def _clean_error(results: Sequence[Mapping[str, Any]], row: str) -> float | None:
    """Error on ImageNet's validation set, if it was evaluated with this row."""
    for result in results:
        if (result["benchmark"], result["weights"]) == ("imagenet_val", row):
            return 1 - result["top1"]["percent"] / 100
    return None


def _save(
    folder: pathlib.Path, checkpoint: pathlib.Path, new: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes both files; results of earlier commands in the same folder stay."""
    path = folder / "evaluation.json"

    def key(result: Mapping[str, Any]) -> tuple[str, ...]:
        return (result["weights"], result["benchmark"], result["view"])

    replaced = {key(result) for result in new["results"]}
    digests = {result["weights"]: result["digest"] for result in new["results"]}
    earlier = json.loads(path.read_text())["results"] if path.is_file() else []
    kept = [
        result
        for result in earlier
        if key(result) not in replaced
        and digests.get(result["weights"], result["digest"]) == result["digest"]
    ]
    document = {
        "checkpoint": str(checkpoint),
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "results": [*kept, *new["results"]],
        "missing": new["missing"],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    (folder / "evaluation.md").write_text(evaluation_report.report(document))
    return document


def list_benchmarks() -> str:
    """What --benchmark takes, in words."""
    lines = ["--benchmark takes these names, several with commas between:", ""]
    for benchmark in benchmarks.BENCHMARKS.values():
        views = " and ".join(view.name for view in benchmark.views)
        lines += [
            f"  {benchmark.name}",
            f"      {benchmark.title} ({benchmark.paper}), {benchmark.images:,} images",
            f"      scored over {views}; crop: {benchmark.crop}",
            f"      in DATA_DIR/{benchmark.folders[0]} or as tfds:{benchmark.tfds}",
        ]
    lines += ["", f"and data sources: {', '.join(_SOURCES)} (folder:/path, tfds:name)."]
    return "\n".join(lines)


def find_benchmark(name: str) -> benchmarks.Benchmark:
    """The benchmark of a name.

    Raises:
      ValueError: for an unknown name, with the nearest one.
    """
    if name in benchmarks.BENCHMARKS:
        return benchmarks.BENCHMARKS[name]
    if name.partition(":")[0] in _SOURCES:
        return benchmarks.custom(name)
    near = name_lib.nearest(name, benchmarks.BENCHMARKS)
    raise ValueError(f"benchmark {name!r} is unknown{near}; see --benchmark list.")


def _workdir(args: argparse.Namespace, path: pathlib.Path) -> pathlib.Path:
    if args.workdir:
        return pathlib.Path(args.workdir).expanduser()
    if path.is_dir():
        return path / "evaluation"
    return path.with_name(f"{path.name}.evaluation")


def _check(words: Sequence[str], known: Sequence[str], flag: str) -> None:
    if unknown := [word for word in words if word not in known]:
        raise ValueError(f"{flag} has {unknown[0]!r}; use {', '.join(known)}.")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, evaluates and returns the exit code."""
    args = make_parser().parse_args(argv)
    return process.run(lambda: evaluate(args), name="evaluate")


if __name__ == "__main__":
    sys.exit(main())
