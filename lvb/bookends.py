"""What a run does once, at its start and at its end; for commands only."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from ml_collections import config_dict

from lvb import assembly, inputs
from lvb.analysis import param_table
from lvb.config import names
from lvb.data import class_words
from lvb.metrics import confusion
from lvb.training import (
    batch_norm,
    prediction,
    provenance,
    report,
    sharding,
    state,
)

PARAMETERS = "parameters.txt"


def say_start(
    config: config_dict.ConfigDict,
    run: assembly.Run,
    data: inputs.Data,
    *,
    mesh: jax.sharding.Mesh,
    folder: pathlib.Path,
    cache: pathlib.Path | None,
) -> None:
    """Says what will run, on what and where it goes; saves the parameter table.

    Args:
      config: of the run.
      run: of the config.
      data: of the run.
      mesh: of all devices.
      folder: of the run.
      cache: of compiled programs, if there is one.
    """
    if jax.process_index() != 0:
        return
    plan, params = run.plan, run.state.params
    table = parameter_overview.get_parameter_overview(params, include_stats=False)
    (folder / PARAMETERS).write_text(table + "\n")
    micro_batch = config.batch_size // config.grad_accum
    report.say("Config:")
    report.say("\n".join(f"  {line}" for line in names.lines(config.to_dict())))
    report.say("Parameters:")
    report.say(report.table(list(param_table.count_by_module(params, depth=2).items())))
    report.say("Run:")
    report.say(
        report.table(
            [
                ("devices", report.devices(mesh)),
                ("commit", provenance.commit()),
                ("model", config.model.name),
                ("parameters", param_table.count_params(params)),
                ("multiply-adds", assembly.count_macs(config, run)),
                (
                    "data",
                    f"{config.data.source}: {len(data.train):,} train, "
                    f"{len(data.val):,} val, {run.task.num_classes:,} classes",
                ),
                ("steps", f"{plan.total_steps:,}, {plan.steps_per_epoch:,} per epoch"),
                (
                    "batch",
                    f"{config.batch_size:,} images; batch norm sees {micro_batch:,}",
                ),
                ("peak learning rate", f"{plan.peak_lr:.3g}"),
                ("workdir", folder),
                ("compilation cache", cache or "off"),
            ]
        )
    )


def notes(
    config: config_dict.ConfigDict,
    plain_config: dict[str, Any],
    *,
    data: inputs.Data,
    plan: assembly.Plan,
) -> dict[str, Any]:
    """What every checkpoint says of the run, enough to use it without the config.

    Args:
      config: of the run.
      plain_config: the same as JSON has it.
      data: of the run.
      plan: of the config.
    """
    classes = data.train.class_names
    return {
        "config": plain_config,
        "model": assembly.model_options(config, num_classes=len(classes)),
        "preprocessing": inputs.preprocessing(config),
        "class_names": list(classes),
        "use_ema": config.eval.use_ema,
        "seed": config.seed,
        "total_steps": plan.total_steps,
        "versions": provenance.versions(),
        "commit": provenance.commit(),
    }


def recalibrate_averages(
    config: config_dict.ConfigDict,
    run: assembly.Run,
    data: inputs.Data,
    *,
    train_state: state.TrainState,
    mesh: jax.sharding.Mesh,
) -> state.TrainState:
    """Measures the batch statistics of the averaged parameters on training batches.

    The batches are the run's first, augmented and mixed, without drop path, which
    evaluation does not have either. A second call gives the same statistics.

    Args:
      config: of the run; `ema.recalibrate_batches` is the number of batches.
      run: of the config.
      data: of the run.
      train_state: after the last step.
      mesh: of all devices.

    Returns:
      The state with new `ema.batch_stats`; the same where the config asks for none.
    """
    count = config.ema.recalibrate_batches
    if not count or not train_state.ema.batch_stats:
        return train_state
    report.say(f"Measuring the averages' batch statistics on {count} batches.")
    model = run.task.model
    model = model.clone(backbone=model.backbone.clone(drop_path_rate=0.0))
    task = dataclasses.replace(run.task, model=model)
    key = sharding.put_key(config.seed, mesh)
    params = train_state.ema.params

    @jax.jit
    def update(params: Any, batch_stats: Any, batch: Any, step: int) -> Any:
        batch_key = state.stream_key(key, "mixup", step=step)
        images = task.prepare(batch, key=batch_key)["image"]
        variables = {"params": params, "batch_stats": batch_stats}
        _, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return updates["batch_stats"]

    def update_numbered(batch_stats: Any, numbered: tuple[int, Any]) -> Any:
        step, batch = numbered
        return update(params, batch_stats, batch, step)

    with inputs.train_batches(config, data, start_step=0) as batches:
        numbered = (
            (step, sharding.put_batch(next(batches), mesh, names=("image", "label")))
            for step in range(count)
        )
        batch_stats = batch_norm.recalibrate_batch_norm(
            update_numbered, numbered, batch_stats=train_state.ema.batch_stats
        )
    placed = sharding.put_state(batch_stats, run.shardings.ema.batch_stats)
    return train_state.replace(ema=train_state.ema._replace(batch_stats=placed))


def say_confusion(
    config: config_dict.ConfigDict,
    run: assembly.Run,
    data: inputs.Data,
    *,
    train_state: state.TrainState,
    mesh: jax.sharding.Mesh,
) -> None:
    """Prints which held-out classes are taken for which, if the config asks for it.

    Args:
      config: of the run.
      run: of the config.
      data: of the run.
      train_state: after the last step.
      mesh: of all devices.
    """
    if not config.eval.confusion:
        return
    predict = prediction.model_predictor(
        functools.partial(run.task.model.apply, train=False),
        sharding.to_host(train_state.variables(use_ema=config.eval.use_ema)),
        mesh=mesh,
        mean=run.task.mean,
        std=run.task.std,
    )
    counts = np.zeros((run.task.num_classes,) * 2, np.int64)
    with inputs.eval_batches(
        config, data, batch_size=run.plan.eval_batch_size
    ) as batches:
        for batch in batches:
            rows = predict(batch)
            counts += np.asarray(
                confusion.confusion_counts(
                    rows["logits"], labels=rows["label"], mask=rows["mask"]
                )
            )
    shown = class_words.readable(
        data.train.class_names, num_classes=run.task.num_classes
    )
    report.say(confusion.confusion_summary(counts, class_names=shown))
