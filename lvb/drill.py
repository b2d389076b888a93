r"""Rehearses disasters with your own config, at toy size: can this run be lost?

    python -m lvb.drill --config configs/quickstart.py
    python -m lvb.drill --config configs/lsnet_t.py --data_dir /data --devices 8
    python -m lvb.drill --config configs/quickstart.py --kills 20
    python -m lvb.drill --inspect runs/quickstart

The first two kill and stop a run in compilation, step, save and evaluation, damage its
checkpoints and fill its disk, one after another, and compare its end with that of a run
that nothing happened to. --kills N deals N SIGKILLs at random moments instead.
--inspect tells what a checkpoint holds, and whether its digest confirms it, without
building the model.

Toy size: a few dozen steps on small images and batches; a data set with more than a few
hundred pictures is replaced by generated ones. Network, optimiser and all else are the
config's. A full disk is played by a limit on the size of files.

Exit codes: 0 all passed; 1 something failed.
"""

import argparse
import math
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from ml_collections import config_dict

from lvb import inputs
from lvb.config import flags, limits, names
from lvb.training import (
    checkpoint,
    fault_matrix,
    faults,
    kill_campaign,
    outcome,
    process,
    report,
    weights,
)

# Ours. The steps of all rows fit; several saves and evaluations fall into each.
TOTAL_STEPS, SAVE_EVERY, EVAL_EVERY = 60, 2, 3
_MAX_PICTURES = 2000
_MAX_IMAGE_SIZE = 64
_EVAL_BATCHES = 8  # Long enough to be hit.


def toy_overrides(
    config: config_dict.ConfigDict,
    *,
    num_train: int,
    num_val: int,
    num_classes: int,
    devices: int,
) -> dict[str, Any]:
    """Leaves that make a run short without changing its nature.

    Args:
      config: of the run.
      num_train: its training pictures.
      num_val: its held-out pictures.
      num_classes: of them.
      devices: a CPU appears as so many; 0 for the devices there are.

    Returns:
      Dotted name to value, only of leaves that the config has.
    """
    # A multiple of 8, because here nobody knows yet how many accelerators there are.
    per_micro_batch = math.lcm(8, devices or 1)
    batch_size = math.lcm(per_micro_batch * config.grad_accum, config.mixup.num_groups)
    changes: dict[str, Any] = {}
    if max(num_train, num_val) > _MAX_PICTURES:
        changes |= {
            "data.source": "synthetic",
            "data.synthetic_length": 24 * batch_size,
            "model.num_classes": num_classes,
        }
        num_train = num_val = 24 * batch_size
    eval_batch = math.ceil(num_val / _EVAL_BATCHES)
    wanted = changes | {
        "batch_size": batch_size,
        "log_every": 1,
        "log_health": False,
        "compilation_cache": "default",
        "data.image_size": min(config.data.image_size, _MAX_IMAGE_SIZE),
        "data.num_workers": min(config.data.num_workers, 1),
        "schedule.steps": TOTAL_STEPS,
        "schedule.warmup_steps": 2,
        "eval.every_epochs": EVAL_EVERY / max(num_train // batch_size, 1),
        "eval.batch_size": eval_batch,
        "checkpoint.every_steps": SAVE_EVERY,
        "checkpoint.keep_last": 2,
        "checkpoint.keep_every": 0,
    }
    known = names.flatten(config.to_dict())
    return {name: value for name, value in wanted.items() if name in known}


def make_launcher(
    config: str,
    *,
    overrides: Sequence[str] = (),
    data_dir: str | None = None,
    devices: int = 0,
    folder: pathlib.Path,
) -> faults.Launcher:
    """How the drill's runs are started.

    Args:
      config: as for --config.
      overrides: words such as "--config.optimizer.lr=0.1"; they come last.
      data_dir: where prepared data sets are.
      devices: a CPU appears as so many; 0 for the devices there are.
      folder: compiled programs are kept there.

    Raises:
      ValueError: if the config or the data cannot be opened.
    """
    loaded = flags.load(config)
    loaded.update_from_flattened_dict(_given(loaded, overrides))
    limits.check(loaded.to_dict())
    data = inputs.open_data(loaded, data_dir=data_dir)
    toy = toy_overrides(
        loaded,
        num_train=len(data.train),
        num_val=len(data.val),
        num_classes=len(data.train.class_names),
        devices=devices,
    )
    report.say("Toy size:")
    report.say(report.table(list(toy.items())))
    command = [sys.executable, "-m", "lvb.train", f"--config={config}"]
    command += [f"--config.{name}={value}" for name, value in toy.items()]
    command += overrides
    if data_dir:
        command.append(f"--data_dir={data_dir}")
    return faults.Launcher(tuple(command), _environment(folder, devices=devices))


def inspect(path: pathlib.Path) -> bool:
    """Prints what the checkpoints under a path hold; returns whether all are whole.

    Args:
      path: a workdir, its folder of checkpoints, or one checkpoint.

    Raises:
      ValueError: if there is none.
    """
    newest = weights.find_checkpoint(path, which="latest")
    steps = checkpoint.steps_on_disk(newest.parent)
    folders = [checkpoint.step_folder(newest.parent, step) for step in steps]
    if newest == path:
        folders = [path]
    all_whole = True
    for folder in folders:
        text, whole = outcome.describe(folder)
        all_whole &= whole
        # Of those that are whole, the newest is told in full.
        report.say(text if folder == newest else text.splitlines()[0])
    return all_whole


def _given(
    config: config_dict.ConfigDict, overrides: Sequence[str]
) -> Mapping[str, Any]:
    """The values of overrides, typed as the config's leaves."""
    known = names.flatten(config.to_dict())
    given = {}
    for word in overrides:
        name, _, text = word.removeprefix("--config.").partition("=")
        names.check(name, config)
        kind = type(known[name])
        if kind in (int, float, str):
            given[name] = kind(text)
    return given


def _environment(folder: pathlib.Path, *, devices: int) -> dict[str, str]:
    """Of the runs: a cache of their own; see `make_launcher`."""
    environment = dict(os.environ)
    environment["JAX_COMPILATION_CACHE_DIR"] = str(folder / "xla")
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    if devices:
        environment["JAX_PLATFORMS"] = "cpu"
        environment["XLA_FLAGS"] = (
            f"{os.environ.get('XLA_FLAGS', '')} "
            f"--xla_force_host_platform_device_count={devices}"
        )
    return environment


def _run_matrix(launcher: faults.Launcher, folder: pathlib.Path) -> bool:
    rows = []
    matrix = fault_matrix.Matrix(launcher, folder, evaluates_every=EVAL_EVERY)
    for row in matrix.rows():
        rows.append(row)
        report.say(f"{'pass' if row.passed else 'FAIL'}  {row.fault:<32}  {row.detail}")
    failed = sum(not row.passed for row in rows)
    report.say(f"{len(rows) - failed} of {len(rows)} rows passed.")
    return not failed


def _run_campaign(
    launcher: faults.Launcher, folder: pathlib.Path, *, kills: int, seed: int
) -> bool:
    campaign = kill_campaign.run(
        launcher,
        folder,
        kills=kills,
        seed=seed,
        evaluates_every=EVAL_EVERY,
        report=report.say,
    )
    rows = [(f"killed in {p}", campaign.phases.get(p, 0)) for p in faults.PHASES]
    equal = sum(not r.differences for r in campaign.rounds)
    rows += [
        ("kills", sum(campaign.phases.values())),
        ("runs that came to their end", len(campaign.rounds)),
        ("equal to the unbroken run", equal),
        ("SHA-256 of the final state", campaign.expected.state),
    ]
    report.say(report.table(rows))
    return campaign.passed


def _main(argv: Sequence[str]) -> int:
    # This process only reads: the devices are for the runs it starts.
    jax.config.update("jax_platforms", "cpu")
    parser = argparse.ArgumentParser(
        prog="python -m lvb.drill",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", help="config file, with :arg")
    parser.add_argument("--workdir", help="folder for the drill; default a new one")
    parser.add_argument("--data_dir", help="where prepared data sets are")
    parser.add_argument("--devices", type=int, default=0, help="let a CPU appear as N")
    parser.add_argument("--kills", type=int, default=0, help="random SIGKILLs")
    parser.add_argument("--seed", type=int, default=0, help="of --kills")
    parser.add_argument("--inspect", type=pathlib.Path, metavar="WORKDIR")
    args, overrides = parser.parse_known_args(argv)
    for word in overrides:
        if not word.startswith("--config."):
            raise ValueError(f"{word!r} is unknown; see python -m lvb.drill --help.")
    if args.inspect is not None:
        whole = inspect(args.inspect.absolute())
        return process.DONE if whole else process.FAILED
    if args.config is None:
        raise ValueError("--config or --inspect is needed.")
    run: Callable[..., bool] = _run_matrix
    options = {}
    if args.kills:
        run, options = _run_campaign, dict(kills=args.kills, seed=args.seed)
    with tempfile.TemporaryDirectory(prefix="lvb_drill_") as temporary:
        folder = pathlib.Path(args.workdir or temporary).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ValueError(f"--workdir={folder} is not empty; choose a new folder.")
        launcher = make_launcher(
            args.config,
            overrides=overrides,
            data_dir=args.data_dir,
            devices=args.devices,
            folder=folder,
        )
        passed = run(launcher, folder, **options)
    return process.DONE if passed else process.FAILED


if __name__ == "__main__":
    sys.exit(process.run(lambda: _main(sys.argv[1:]), name="lvb.drill"))
