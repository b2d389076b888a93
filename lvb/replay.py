r"""Replays a run to the step whose loss was not finite, and says where it came from.

    python -m lvb.replay --workdir runs/lsnet_t
    python -m lvb.replay --workdir runs/lsnet_t --step 1234

The newest whole checkpoint before the step is loaded, the steps after it are made
again, and the bad one is looked at module by module. Nothing in the workdir is changed
but `nonfinite_step_<step>.json`, which holds what is printed.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from absl import logging
from ml_collections import config_dict

from lvb import assembly, inputs, transfer
from lvb.training import (
    checkpoint,
    compilation,
    process,
    replay,
    report,
    sharding,
    state,
)
from lvb.training import workdir as workdir_lib

# Without --step: steps made after the checkpoint, in the hope to meet the bad one.
_SEARCHED = 10_000
_SHOWN = 8  # Examples named on the screen; the file has them all.


class Replayed(NamedTuple):
    """What a replay found.

    Attributes:
      step: the bad one; None if all were finite.
      words: the finding.
      examples: of its batch: indices.
    """

    step: int | None
    words: str
    examples: list[int]


def replay_run(
    workdir: str, *, data_dir: str | None = None, step: int | None = None
) -> Replayed:
    """Replays from the newest checkpoint to the first loss that is not finite.

    Args:
      workdir: folder of the run.
      data_dir: where prepared data sets are.
      step: look at this one, whatever its loss; None for the first bad one.

    Returns:
      What was found; it has been printed and written to the workdir.

    Raises:
      ValueError: if there is no such run.
    """
    folder = workdir_lib.Workdir(workdir, writes=False)
    if not folder.continued:
        raise ValueError(f"{workdir} holds no run; give the --workdir of one.")
    config = config_dict.ConfigDict(_with_tuples(folder.saved_config()))
    compilation.enable_cache(config.compilation_cache)
    mesh = sharding.make_mesh(model_axis=config.sharding.model_axis)
    data = inputs.open_data(config, data_dir=data_dir)
    classes = data.train.class_names
    run = assembly.assemble(
        config,
        num_classes=len(classes),
        num_train=len(data.train),
        mesh=mesh,
        teacher=transfer.open_teacher(config, class_names=classes, mesh=mesh),
    )
    seed_key = sharding.put_key(config.seed, mesh)
    start, now = _start(config, run, folder, classes, seed_key=seed_key, before=step)
    report.say(f"Replaying from step {start:,}.")
    found = _replay(
        config, run, data, now, mesh=mesh, seed_key=seed_key, start=start, step=step
    )
    _tell(found, data, folder=folder.path, data_dir=data_dir)
    return found


def _start(
    config: config_dict.ConfigDict,
    run: assembly.Run,
    folder: workdir_lib.Workdir,
    classes: tuple[str, ...],
    *,
    seed_key: jax.Array,
    before: int | None,
) -> tuple[int, state.TrainState]:
    """The newest whole checkpoint that is not after a step; the seed without one."""
    for number in reversed(checkpoint.steps_on_disk(folder.checkpoints)):
        if before is not None and number > before:
            continue
        try:
            found = checkpoint.read(checkpoint.step_folder(folder.checkpoints, number))
        except checkpoint.CheckpointError as error:
            report.say(f"{error}")
            continue
        return number, checkpoint.restore_state(
            found, run.state, shardings=run.shardings
        )
    return 0, transfer.first_state(
        config,
        run.init,
        shardings=run.shardings,
        class_names=classes,
        seed_key=seed_key,
    )


def _replay(
    config: config_dict.ConfigDict,
    run: assembly.Run,
    data: inputs.Data,
    now: state.TrainState,
    *,
    mesh: jax.sharding.Mesh,
    seed_key: jax.Array,
    start: int,
    step: int | None,
) -> Replayed:
    constants = sharding.put_replicated(run.constants, mesh)
    # The state is not donated: the one before the bad step is looked at.
    make_step = jax.jit(run.train_step, out_shardings=(run.shardings, None))
    complete = transfer.completion(config, run.task, data, mesh=mesh)
    task = replay.without_remat(run.task)
    if hasattr(task, "bind"):
        task = task.bind(constants)
    look = dict(task=task, seed_key=seed_key)
    last = min(start + _SEARCHED if step is None else step, run.plan.total_steps - 1)
    with inputs.train_batches(config, data, start_step=start) as batches:
        for number in range(start, last + 1):
            rows = complete(next(batches))
            batch = sharding.put_batch(rows, mesh, names=tuple(run.train_batch))
            after, _ = make_step(now, batch, seed_key, constants)
            if number == step or int(after.nonfinite_step) == number:
                found = replay.inspect_step(
                    now, batch, grad_accum=config.grad_accum, **look
                )
                if found.where == "nothing":
                    found = replay.inspect_gradient(now, batch, **look)
                words = f"step {number:,}: {replay.describe(found)}"
                return Replayed(number, words, rows["index"].tolist())
            now = after
    return Replayed(
        None,
        f"the losses of steps {start:,} to {last:,} are all finite in the replay; what "
        "happened did not come from the data or the numbers, look at the hardware",
        [],
    )


def _tell(
    found: Replayed, data: inputs.Data, *, folder: pathlib.Path, data_dir: str | None
) -> None:
    report.say(f"Replay: {found.words}.")
    if found.step is None:
        return
    names = [data.train.describe(index) for index in found.examples]
    shown = ", ".join(names[:_SHOWN])
    report.say(f"Its batch: {shown}{', ...' if len(names) > _SHOWN else ''}")
    option = f" --data_dir {data_dir}" if data_dir else ""
    command = f"python -m lvb.replay --workdir {folder} --step {found.step}{option}"
    report.say(f"To see it again: {command}")
    if jax.process_index() == 0:
        path = folder / f"nonfinite_step_{found.step}.json"
        held = {**found._asdict(), "names": names, "command": command}
        path.write_text(json.dumps(held, indent=2) + "\n")
        report.say(f"All of it is in {path}.")


def _with_tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lvb.replay",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--data_dir", help="where prepared data sets are")
    parser.add_argument("--step", type=int, help="look at this step")
    args = parser.parse_args(argv)
    logging.set_verbosity(logging.WARNING)
    replay_run(args.workdir, data_dir=args.data_dir, step=args.step)
    return process.DONE


if __name__ == "__main__":
    sys.exit(process.run(lambda: _main(sys.argv[1:]), name="lvb.replay"))
