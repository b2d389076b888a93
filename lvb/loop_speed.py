"""`python -m lvb.benchmark --loop`: what a training run adds to its bare steps.

The trainer itself runs in a temporary workdir, from data decoded into memory, and its
own log tells how fast it was between two lines; in turns with it, the same compiled
step runs over one batch that is on the device already. Evaluations and checkpoints
stand outside: the log's clock rests, or there are none in the measured windows.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from ml_collections import config_dict

from lvb import assembly, inputs, train, transfer
from lvb.analysis import machine, markdown, timing
from lvb.config import flags
from lvb.training import (
    allocator,
    compilation,
    metric_writer,
    process,
    provenance,
    sharding,
)
from lvb.training import workdir as workdir_lib

_NEVER = 1e6  # Epochs between evaluations.


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `--loop`."""
    add = parser.add_argument
    add("--config", default="configs/quickstart.py", help="of the run")
    add("--data_dir", help="where prepared data sets are")
    add("--batch_size", type=int, help="images per step; the config's if not given")
    add("--image_size", type=int, help="side in pixels; the config's if not given")
    add("--steps", type=int, default=100, help="in a window, between two log lines")
    add("--windows", type=int, default=3, help="of a turn, after one to warm up")
    add("--rounds", type=int, default=4, help="turns of each contender")
    add("--out", help="folder for NAME.json and NAME.md")
    add("--name", default="loop", help="of the files")


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table and writes the files; returns the exit code."""
    for name in ("steps", "windows", "rounds"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name}={getattr(args, name)} must be at least 1.")
    config = prepare(flags.load(args.config), steps=args.steps, windows=args.windows)
    config.batch_size = args.batch_size or config.batch_size
    config.data.image_size = args.image_size or config.data.image_size
    allocator.overlap_short_steps(config.batch_size * config.data.image_size**2)
    bare = bare_steps(config, data_dir=args.data_dir)
    bare(args.steps)
    seconds: dict[str, list[float]] = {"bare step": [], "training run": []}
    waits = []
    batch_work = batch_seconds(config, data_dir=args.data_dir, batches=args.steps)
    for _ in range(args.rounds):
        for _ in range(args.windows):
            seconds["bare step"].append(bare(args.steps))
        found = training_windows(config, data_dir=args.data_dir)
        seconds["training run"] += [s for s, _ in found]
        waits += [wait for _, wait in found]
    result = {
        "config": args.config,
        "model": config.model.name,
        "batch_size": config.batch_size,
        "image_size": config.data.image_size,
        "steps": args.steps,
        "rounds": args.rounds,
        "seconds_per_step": {
            name: timing.summarise(values)._asdict() for name, values in seconds.items()
        },
        "overhead": timing.ratio(seconds["bare step"], seconds["training run"]).median
        - 1,
        "batch_cpu_seconds": batch_work,
        "data_wait": sum(waits) / len(waits),
        "commit": provenance.commit(),
        "machine": machine.describe(),
    }
    text = report(result)
    print(text)
    if args.out:
        markdown.save(args.out, args.name, result=result, text=text)
    return process.DONE


def prepare(
    config: config_dict.ConfigDict, *, steps: int, windows: int
) -> config_dict.ConfigDict:
    """The config of a run of equal windows without anything in between.

    Args:
      config: of the user's run.
      steps: in a window.
      windows: that are measured; one more comes before them.
    """
    config.schedule.steps = steps * (windows + 1)
    config.schedule.warmup_steps = steps
    config.log_every = steps
    config.eval.every_epochs = _NEVER
    config.checkpoint.every_steps = config.schedule.steps
    config.data.in_memory = True
    return config


def bare_steps(
    config: config_dict.ConfigDict, *, data_dir: str | None
) -> Callable[[int], float]:
    """The compiled training step on a batch that is there already.

    Args:
      config: of the run.
      data_dir: where prepared data sets are.

    Returns:
      A function that makes so many steps, and returns seconds per step.
    """
    compilation.enable_cache(config.compilation_cache)
    mesh = sharding.make_mesh(model_axis=config.sharding.model_axis)
    data = inputs.open_data(config, data_dir=data_dir)
    classes = data.train.class_names
    assembled = assembly.assemble(
        config,
        num_classes=len(classes),
        num_train=len(data.train),
        mesh=mesh,
        teacher=transfer.open_teacher(config, class_names=classes, mesh=mesh),
    )
    key = sharding.put_key(config.seed, mesh)
    constants = sharding.put_replicated(assembled.constants, mesh)
    program = compilation.compile_programs(assembled, mesh=mesh).train
    complete = transfer.completion(config, assembled.task, data, mesh=mesh)
    with inputs.train_batches(config, data, start_step=0) as batches:
        rows = complete(next(batches))
    batch = sharding.put_batch(rows, mesh, names=tuple(assembled.train_batch))
    # A step takes the memory of the state it is given, so there is only ever one.
    current = [
        compilation.run_once(assembled.init, key, out_shardings=assembled.shardings)
    ]

    def make(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            current[0], metrics = program.call(current[0], batch, key, constants)
        jax.block_until_ready(metrics)
        return (time.perf_counter() - start) / steps

    return make


def batch_seconds(
    config: config_dict.ConfigDict, *, data_dir: str | None, batches: int
) -> float:
    """CPU time that a batch costs this process to make, as the mean of so many."""
    data = inputs.open_data(config, data_dir=data_dir)
    with inputs.train_batches(config, data, start_step=0) as made:
        next(made)
        start = time.process_time()
        for _ in range(batches):
            next(made)
        return (time.process_time() - start) / batches


def training_windows(
    config: config_dict.ConfigDict, *, data_dir: str | None
) -> list[tuple[float, float]]:
    """Runs the trainer; (seconds per step, share of data wait) of each window."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(sys.stderr),
    ):
        train.train_and_evaluate(config, workdir=folder, data_dir=data_dir)
        path = workdir_lib.Workdir(folder, writes=False).metrics
        rows = metric_writer.read_metrics(path)
    speeds = [row for row in rows if "perf/images_per_sec" in row]
    return [
        (config.batch_size / row["perf/images_per_sec"], row["perf/data_wait"])
        for row in speeds[1:]
    ]


def report(result: Mapping[str, Any]) -> str:
    """The table on screen and in the file."""
    host = result["machine"]
    rows: Sequence[Sequence[str]] = [
        (name, *(f"{1e3 * spread[key]:.2f}" for key in ("median", "p5", "p95")))
        for name, spread in result["seconds_per_step"].items()
    ]
    return "\n".join(
        [
            f"{result['config']}: {result['model']}, {result['image_size']} px, batch "
            f"{result['batch_size']}; {host['processor']}, {host['device']}, "
            f"{host['threads']} threads; commit {result['commit'][:7]}; windows of "
            f"{result['steps']} steps, {result['rounds']} interleaved rounds.",
            "",
            markdown.table(("ms per step", "median", "p5", "p95"), rows),
            "",
            f"A run takes {100 * result['overhead']:+.1f} % of the bare step longer; "
            f"it waits for data {100 * result['data_wait']:.1f} % of its time. To make "
            f"a batch costs {1e3 * result['batch_cpu_seconds']:.2f} ms of one core, "
            f"which on a CPU the step shares.",
        ]
    )
