r"""Prints the runs of a config's `get_hyper`, or runs them one after another.

    python scripts/sweep.py --config configs/ablations/convneur_table5.py
    python scripts/sweep.py --config configs/ablations/convneur_table5.py:smoke --run
    python scripts/sweep.py --config configs/ablations/lsnet_table7.py --run \
        --data_dir /data --config.batch_size=1024

Flags of `lvb.train`, such as the last two, go to every run. With --run, finished runs
are skipped and broken ones continued, so the same command goes on after any
interruption. Either way the finished runs are collected in a table: mean, spread, and
the paired difference from a baseline over seeds, with its t-interval.

Exit codes: 0 all done; 1 some run failed; 75 stopped by a signal, with the run under
way saved.
"""

import argparse
import json
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

from lvb.analysis import paired
from lvb.config import flags, runs
from lvb.training import metric_writer, process, workdir

MARK = "sweep_run.json"  # In a run's workdir once it is finished.
_NEW, _STARTED, _FINISHED = "new", "started", "finished"


def command(run: runs.Run, *, folder: pathlib.Path, extra: Sequence[str]) -> list[str]:
    """The words of a run's command line, without the interpreter."""
    where = ["--workdir", str(folder / run.folder)]
    return ["-m", "lvb.train", "--config", run.config, *where, *run.overrides, *extra]


def status(words: Sequence[str], path: pathlib.Path) -> str:
    """Whether the run in a workdir is new, started or finished by this command."""
    if not (path / workdir.CONFIG).is_file():
        return _NEW
    try:
        finished = json.loads((path / MARK).read_text())["command"] == list(words)
    except (OSError, ValueError, KeyError):
        finished = False
    return _FINISHED if finished else _STARTED


def execute(words: Sequence[str], path: pathlib.Path) -> int:
    """Runs one command to its end; a signal is handed on. Returns its exit code."""
    with process.StopSignals() as signals:
        # In a session of its own, so that Ctrl-C reaches it once and from here.
        child = subprocess.Popen([sys.executable, *words], start_new_session=True)
        sent = False
        while child.poll() is None:
            if signals.received is not None and not sent:
                child.send_signal(signals.received)
                sent = True
            time.sleep(0.1)
    if child.returncode == process.DONE and not sent:
        (path / MARK).write_text(json.dumps({"command": list(words)}) + "\n")
    return process.STOPPED if sent else child.returncode


def collect(
    sweep: runs.Sweep, *, folder: pathlib.Path, metric: str, extra: Sequence[str]
) -> dict[str, dict[int, float]]:
    """The last value of a metric by setting and seed, of finished runs; top-k in %."""
    results: dict[str, dict[int, float]] = {run.setting: {} for run in sweep.runs}
    for run in sweep.runs:
        path = folder / run.folder
        if status(command(run, folder=folder, extra=extra), path) != _FINISHED:
            continue
        lines = metric_writer.read_metrics(path / workdir.METRICS)
        values = [line[metric] for line in lines if line.get(metric) is not None]
        if values:
            scale = 100 if metric.rpartition("/")[2].startswith("top") else 1
            results[run.setting][run.seed] = scale * values[-1]
    return results


def report(
    sweep: runs.Sweep,
    results: dict[str, dict[int, float]],
    *,
    metric: str,
    baseline: str,
) -> str:
    """The table of a sweep, as Markdown."""
    table = paired.comparison_table(
        results, baseline=baseline, published=sweep.published
    )
    count = sum(map(len, results.values()))
    return f"{metric} of {count} of {len(sweep.runs)} runs, {sweep.name}\n\n{table}\n"


def run_all(sweep: runs.Sweep, *, folder: pathlib.Path, extra: Sequence[str]) -> int:
    """Runs what is not finished, in order. Returns an exit code."""
    failed = []
    for number, run in enumerate(sweep.runs, start=1):
        words = command(run, folder=folder, extra=extra)
        path = folder / run.folder
        state = status(words, path)
        print(f"[{number}/{len(sweep.runs)}] {run.folder}: {state}", flush=True)
        if state == _FINISHED:
            continue
        code = execute(words, path)
        if code == process.STOPPED:
            print("stopped; run the same command again to continue.", flush=True)
            return code
        if code != process.DONE:
            failed.append(run.folder)
            print(f"{run.folder} failed with exit code {code}.", flush=True)
    if failed:
        print(f"{len(failed)} runs failed: {', '.join(failed)}.", flush=True)
    return process.FAILED if failed else process.DONE


def main(argv: Sequence[str]) -> int:
    """Prints or runs a sweep; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="config file, with :arg")
    parser.add_argument("--run", action="store_true", help="run what is not finished")
    parser.add_argument(
        "--workdir", help="folder of the sweep; runs/<config> if not set"
    )
    parser.add_argument("--metric", default="val/top1", help="what the table compares")
    parser.add_argument("--baseline", help="setting that the others are compared with")
    args, extra = parser.parse_known_args(argv)
    sweep = runs.plan(args.config)
    for run in sweep.runs:
        flags.check_argv(["sweep", "--config", run.config, *run.overrides, *extra])
    folder = pathlib.Path(args.workdir or pathlib.Path("runs", sweep.name))
    baseline = args.baseline or sweep.baseline
    if baseline not in {run.setting for run in sweep.runs}:
        raise ValueError(
            f"--baseline={baseline} is none of the settings "
            f"{', '.join(dict.fromkeys(run.setting for run in sweep.runs))}."
        )
    code = process.DONE
    if args.run:
        code = run_all(sweep, folder=folder, extra=extra)
    else:
        for run in sweep.runs:
            words = command(run, folder=folder, extra=extra)
            line = shlex.join(["python", *words])
            print(f"{line}  # {status(words, folder / run.folder)}")
    results = collect(sweep, folder=folder, metric=args.metric, extra=extra)
    if any(results.values()):
        text = report(sweep, results, metric=args.metric, baseline=baseline)
        print(f"\n{text}")
        (folder / "results.md").write_text(text)
        (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(process.run(lambda: main(sys.argv[1:]), name="sweep"))
