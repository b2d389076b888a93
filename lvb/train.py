r"""Trains a classifier: one command from a config to a verified checkpoint.

    python -m lvb.train --config configs/quickstart.py --workdir runs/quickstart
    python -m lvb.train --config configs/lsnet_t.py:res=160 --workdir runs/lsnet_t \
        --data_dir /data --config.optimizer.lr=1e-3

The same command continues a run that was stopped, and says so if it is finished.
Exit codes: 0 finished; 1 an error, told on stderr; 75 stopped by SIGTERM or Ctrl-C
with the state saved, run again to continue; 76 another host is missing, dead or stuck,
run again on all hosts. A second signal leaves at once.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from ml_collections import config_dict, config_flags

from lvb import assembly, bookends, inputs, pod, transfer
from lvb.analysis import health
from lvb.config import flags as config_arguments
from lvb.config import limits, names
from lvb.training import (
    allocator,
    checkpoint,
    compilation,
    evaluation,
    history,
    metric_writer,
    peers,
    process,
    progress,
    report,
    sharding,
    state,
)
from lvb.training import recorder as recorder_lib
from lvb.training import workdir as workdir_lib

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with :arg.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where prepared data sets are.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the hosts of a pod.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Address name:port of host 0, where no cluster tells it."
)
_NUM_HOSTS = flags.DEFINE_integer("num_hosts", None, "With --coordinator.")
_HOST_INDEX = flags.DEFINE_integer("host_index", None, "With --coordinator; from 0.")
_PEER_TIMEOUT = flags.DEFINE_float(
    "peer_timeout", pod.PEER_TIMEOUT, "Seconds that hosts wait for one another."
)

RANKING = "top1"  # The metric that decides which checkpoint is the best.
# Leaves that may change when a run continues: they do not change what it computes.
OPERATIONAL = (
    *("checkpoint", "compilation_cache", "log_health", "sharding"),
    *("data.num_workers", "data.in_memory"),
)


def train_and_evaluate(
    config: config_dict.ConfigDict,
    *,
    workdir: str,
    data_dir: str | None = None,
    signals: process.StopSignals | None = None,
    watch: pod.Watch | None = None,
) -> report.Summary:
    """Trains from the workdir's newest checkpoint, or from scratch, to the end.

    Args:
      config: see `lvb.config.schema`.
      workdir: folder of the run.
      data_dir: where prepared data sets are.
      signals: asked after every step whether to stop.
      watch: over the other hosts, from `pod.open_watch`.

    Returns:
      How the session ended.

    Raises:
      ValueError: if the config does not fit the data, the devices or the workdir.
      CheckpointError: if no checkpoint can be read, or one cannot be saved.
      FloatingPointError: at a loss that is not finite.
      Stopped: after a signal, with the state saved.
    """
    start = time.perf_counter()
    allocator.overlap_short_steps(config.batch_size * config.data.image_size**2)
    signals, watch = signals or process.StopSignals(), watch or pod.Alone()
    is_writer = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        # The workdir is this run's alone, and has this config or none.
        folder = stack.enter_context(workdir_lib.Workdir(workdir, writes=is_writer))
        config, plain_config = _settle_config(config, folder)
        found, step, scores = _past(folder, moves=is_writer)
        if found and step >= found.notes["total_steps"] and scores.evaluated(step):
            report.say(f"The run in {folder.path} is finished; there is nothing to do.")
            return report.end(report.Summary(step, scores), folder=folder.path)

        # Devices, data, and the functions to be computed.
        cache = compilation.enable_cache(config.compilation_cache)
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
        plan = run.plan
        pod.agree_on_plan(config, run, data, found=found, watch=watch)
        if is_writer:
            folder.save_config(plain_config)

        # The state: from the newest whole checkpoint, from another run, or the seed.
        seed_key = sharding.put_key(config.seed, mesh)
        train_state = _first_state(config, run, found, classes, seed_key=seed_key)
        fixed = seed_key, sharding.put_replicated(run.constants, mesh)
        bookends.say_start(
            config, run, data, mesh=mesh, folder=folder.path, cache=cache
        )

        # Both programs are compiled, once each, while the first batches are made.
        batches = stack.enter_context(
            inputs.train_batches(config, data, start_step=step)
        )
        programs = process.call_interruptibly(
            lambda: compilation.compile_programs(run, mesh=mesh),
            signals=signals,
            during="compilation",
        )
        report.say(report.compiled(programs))
        complete = transfer.completion(config, run.task, data, mesh=mesh)
        report.say(f"Starting at step {step:,} of {plan.total_steps:,}.")

        # What the run leaves behind.
        recorder = stack.enter_context(_recorder(config, run, folder, first_step=step))
        saver = stack.enter_context(_saver(config, folder, writes=is_writer))
        stack.push(watch.on_error)  # Above all that would wait for another host.
        notes = bookends.notes(config, plain_config, data=data, plan=plan)
        timer = progress.Progress(
            first_step=step, total_steps=plan.total_steps, batch_size=config.batch_size
        )
        # Each turn is at rest between two steps: evaluate, save, stop, or go on.
        while True:
            if _due(step, plan.eval_every, plan) and not scores.evaluated(step):
                with timer.pause():
                    if step >= plan.total_steps:
                        train_state = bookends.recalibrate_averages(
                            config, run, data, train_state=train_state, mesh=mesh
                        )
                    result = _evaluate(
                        config,
                        run,
                        data,
                        train_state=train_state,
                        eval_step=programs.eval.call,
                        mesh=mesh,
                        between=pod.between_batches(signals, watch),
                    )
                if result is not None:
                    scores = scores.add(step, result.means[RANKING])
                    recorder.evaluation(step, result=result, scores=scores)

            stop = sharding.any_host(
                signals.received is not None, when=step % config.log_every == 0
            )
            is_best = config.checkpoint.keep_best and scores.is_best(step)
            due = stop or is_best or _due(step, plan.save_every, plan)
            if due and saver.newest != step:
                state.check_finite(train_state, schedule=run.schedule)
                saver.save(
                    train_state,
                    step=step,
                    notes={**notes, "step": step, "progress": scores.to_notes()},
                    best_step=scores.best_step if config.checkpoint.keep_best else None,
                )
            if step >= plan.total_steps and scores.evaluated(step):
                break
            if stop:
                saver.wait()
                raise signals.stopped_after(step)

            watch.tick(f"step {step:,}")
            rows = complete(timer.next_batch(batches))
            batch = sharding.put_batch(rows, mesh, names=tuple(run.train_batch))
            train_state, metrics = programs.train.call(train_state, batch, *fixed)
            step += 1
            timer.dispatched(metrics)
            saver.check()
            if _due(step, config.log_every, plan):
                state.check_finite(train_state, schedule=run.schedule)
                recorder.training(
                    step,
                    metrics=metrics,
                    speed=timer.window(step),
                    broken=batches.num_broken,
                    **_health(programs.health, train_state, batch),
                )
        saver.wait()
        bookends.say_confusion(config, run, data, train_state=train_state, mesh=mesh)
        summary = report.Summary(
            step,
            scores,
            seconds=time.perf_counter() - start,
            compile_seconds=programs.train.seconds + programs.eval.seconds,
            data_wait=timer.data_wait,
        )
        return report.end(summary, folder=folder.path)


def _settle_config(
    config: config_dict.ConfigDict, folder: workdir_lib.Workdir
) -> tuple[config_dict.ConfigDict, dict[str, Any]]:
    """The config with its network filled in, also as JSON has it; checks it."""
    saved = folder.saved_config() if folder.continued else None
    config = transfer.resolve_model(config, saved=saved)
    limits.check(config.to_dict())
    plain_config = json.loads(json.dumps(config.to_dict()))
    if folder.continued:
        for change in folder.check_config(
            plain_config, diff=names.diff, may_differ=OPERATIONAL
        ):
            report.say(f"changed since the run began: {change}")
    return config, plain_config


def _past(
    folder: workdir_lib.Workdir, *, moves: bool
) -> tuple[checkpoint.Checkpoint | None, int, history.History]:
    """The newest whole checkpoint, its step and the evaluations up to it."""
    found = checkpoint.read_newest(folder.checkpoints, report=report.say, moves=moves)
    if found is None:
        return None, 0, history.History()
    checkpoint.check_notes(
        found.path, found.notes, "step", "total_steps", "progress", "model"
    )
    step = found.notes["step"]
    scores = history.History.from_notes(found.notes["progress"]).catch_up(
        metric_writer.read_metrics(folder.metrics), metric=f"val/{RANKING}", until=step
    )
    return found, step, scores


def _first_state(
    config: config_dict.ConfigDict,
    run: assembly.Run,
    found: checkpoint.Checkpoint | None,
    class_names: tuple[str, ...],
    *,
    seed_key: jax.Array,
) -> state.TrainState:
    """The state of a checkpoint, or that of step 0, on the devices."""
    if found is not None:
        return checkpoint.restore_state(found, run.state, shardings=run.shardings)
    return transfer.first_state(
        config,
        run.init,
        shardings=run.shardings,
        class_names=class_names,
        seed_key=seed_key,
    )


def _recorder(
    config: config_dict.ConfigDict,
    run: assembly.Run,
    folder: workdir_lib.Workdir,
    *,
    first_step: int,
) -> recorder_lib.Recorder:
    return recorder_lib.Recorder(
        folder.metrics,
        first_step=first_step,
        total_steps=run.plan.total_steps,
        schedule=run.schedule,
        beside=assembly.official_words(config, run.plan),
    )


def _saver(
    config: config_dict.ConfigDict, folder: workdir_lib.Workdir, *, writes: bool
) -> checkpoint.Saver:
    return checkpoint.Saver(
        folder.checkpoints,
        keep_last=config.checkpoint.keep_last,
        keep_every=config.checkpoint.keep_every,
        writes=writes,
    )


def _evaluate(
    config: config_dict.ConfigDict,
    run: assembly.Run,
    data: inputs.Data,
    *,
    train_state: state.TrainState,
    eval_step: Callable[..., Any],
    mesh: jax.sharding.Mesh,
    between: Callable[[], None],
) -> evaluation.Evaluation | None:
    """One exact pass over the held-out examples; None if a signal ended it.

    The session after a signal makes the pass again.
    """
    state.check_finite(train_state, schedule=run.schedule)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), run.totals)
    parts = tuple(run.eval_batch)
    with inputs.eval_batches(
        config, data, batch_size=run.plan.eval_batch_size
    ) as batches:
        try:
            return evaluation.evaluate(
                eval_step,
                train_state.variables(use_ema=config.eval.use_ema),
                (sharding.put_batch(batch, mesh, names=parts) for batch in batches),
                totals=sharding.put_replicated(zeros, mesh),
                num_examples=len(data.val),
                between=between,
            )
        except process.Stopped:
            return None


def _health(
    program: compilation.CompiledStep | None,
    train_state: state.TrainState,
    batch: dict[str, jax.Array],
) -> dict[str, Any]:
    """Numbers of the network's inner dynamics, and warnings about them."""
    if program is None:
        return {}
    layers = jax.device_get(program.call(train_state.variables(), batch))
    return {"health": health.summary(layers), "warnings": health.warnings(layers)}


def _due(step: int, every: int, plan: assembly.Plan) -> bool:
    return step > 0 and (step % every == 0 or step >= plan.total_steps)


def _main(argv: list[str]) -> int:
    if "--help" in argv:
        print(__doc__, flags.FLAGS.main_module_help(), sep="\n")
        return process.DONE
    config_arguments.parse(argv)
    if _CONFIG.value is None or _WORKDIR.value is None:
        raise ValueError(
            "--config and --workdir are needed, for example --config "
            "configs/quickstart.py --workdir runs/quickstart."
        )
    logging.set_verbosity(logging.WARNING)
    if _DISTRIBUTED.value:
        allocator.overlap_steps()  # Else a step that waits for a lost host blocks this.
        peers.join(
            address=_COORDINATOR.value,
            count=_NUM_HOSTS.value,
            index=_HOST_INDEX.value,
            timeout=_PEER_TIMEOUT.value,
        )
    with (
        process.StopSignals() as signals,
        pod.open_watch(_PEER_TIMEOUT.value) as watch,
    ):
        train_and_evaluate(
            _CONFIG.value,
            workdir=_WORKDIR.value,
            data_dir=_DATA_DIR.value,
            signals=signals,
            watch=watch,
        )
    return process.DONE


if __name__ == "__main__":
    sys.exit(process.run(lambda: _main(sys.argv), name="lvb.train"))
