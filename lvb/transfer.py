"""What a run takes from another: its network, weights, opinion; for commands only."""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict

from lvb import api, inputs
from lvb.data import loader
from lvb.losses import distillation as losses
from lvb.tasks import classification, distillation
from lvb.training import (
    checkpoint,
    compilation,
    exported,
    prediction,
    report,
    sharding,
    state,
    teacher,
    warm_start,
    weights,
)

KINDS = ("none", *losses.MODES)

# Leaves of `config.model` that concern training; a checkpoint decides all others.
_OWN = (
    *("num_classes", "dtype", "op_form", "drop_path_rate", "remat"),
    "frozen_batch_norm",
)
# Of a cache: pictures that are looked at, to see whether every epoch sees them so.
_PROBED = 32


def resolve_model(
    config: config_dict.ConfigDict, *, saved: Mapping[str, Any] | None = None
) -> config_dict.ConfigDict:
    """Fills in the network of the checkpoint that the run starts from.

    Args:
      config: of the run; `model.name` is "" to take the checkpoint's network.
      saved: the resolved config of this run's earlier sessions, which do not need
        the checkpoint any more.

    Returns:
      The config itself, or one with every option of the network.

    Raises:
      ValueError: if there is neither a name nor a checkpoint.
    """
    if config.model.name:
        return config
    if saved is not None:
        options = saved.get("model")
    elif config.init.checkpoint:
        folder = weights.find_checkpoint(config.init.checkpoint)
        options = checkpoint.read_notes(folder).get("model")
    else:
        raise ValueError(
            "model.name is empty; set --config.model.name, or --config.init.checkpoint "
            "to continue with the network of a checkpoint."
        )
    if not isinstance(options, Mapping) or not options.get("name"):
        raise ValueError(
            "model.name is empty, and neither this run's config.json nor the "
            "checkpoint of --config.init.checkpoint tells the network; set "
            "--config.model.name."
        )
    config = config.copy_and_resolve_references()
    kept = {name: config.model[name] for name in _OWN if name in config.model}
    model = {name: _tuples(value) for name, value in options.items()}
    with config.unlocked():
        config.model = config_dict.ConfigDict({**model, **kept})
    return config.lock()


def first_state(
    config: config_dict.ConfigDict,
    init: Callable[[jax.Array], state.TrainState],
    *,
    shardings: state.TrainState,
    class_names: tuple[str, ...],
    seed_key: jax.Array,
) -> state.TrainState:
    """The state at step 0; it has the weights of `config.init.checkpoint` if given.

    Args:
      config: of the run.
      init: seed's key -> state.
      shardings: of the state.
      class_names: of the data.
      seed_key: of the run; a new head is drawn from it too.

    Returns:
      The state, on the devices.

    Raises:
      ValueError: if network, inputs or classes do not fit.
    """
    fresh = compilation.run_once(init, seed_key, out_shardings=shardings)
    options = config.init
    if not options.checkpoint or options.weights == "none":
        return fresh
    notes, loaded = weights.load_checkpoint(options.checkpoint, weights=options.weights)
    if options.check_inputs:
        warm_start.check_inputs(
            notes.get("preprocessing", {}),
            inputs.preprocessing(config),
            what=f"the checkpoint {options.checkpoint}",
        )
    if options.reset_head:
        key = state.stream_key(seed_key, "params", step=0)
        loaded = api.reset_head(loaded, num_classes=len(class_names), rng=key)
    elif notes.get("class_names") and tuple(notes["class_names"]) != class_names:
        raise ValueError(
            f"the checkpoint {options.checkpoint} knows other classes than the data, "
            f"{notes['class_names'][0]!r} and so on; set --config.init.reset_head=True."
        )
    own = sharding.to_host(fresh.variables())
    fitted = warm_start.fit(jax.device_get(loaded), own)
    report.say(f"Starting from {options.checkpoint}: {fitted.describe()}.")
    return warm_start.apply_start(fresh, fitted.variables, shardings=shardings)


def open_teacher(
    config: config_dict.ConfigDict,
    *,
    class_names: tuple[str, ...],
    mesh: jax.sharding.Mesh,
) -> teacher.Teacher | None:
    """Opens the teacher of `config.distillation`.

    Args:
      config: of the run.
      class_names: of the data.
      mesh: of all devices.

    Returns:
      The teacher, or None without distillation.

    Raises:
      ValueError: if it cannot be opened or does not fit.
    """
    options = config.distillation
    if options.kind not in KINDS:
        raise ValueError(
            f"distillation.kind={options.kind!r} is unknown; use one of "
            f"{', '.join(KINDS)}."
        )
    if options.kind == "none":
        return None
    if not options.teacher:
        raise ValueError(
            f"distillation.kind={options.kind!r} needs --config.distillation.teacher, "
            "a checkpoint of lvb or a .stablehlo or .onnx file."
        )
    path = pathlib.Path(options.teacher).expanduser()
    if path.suffix in exported.SUFFIXES:
        found = teacher.open_file(path, mesh=mesh)
    else:
        found = _checkpoint_teacher(path)
    size = config.data.image_size
    remark = found.check(
        image_shape=(size, size, config.data.channels), class_names=class_names
    )
    report.say(f"Teacher: {found.name}{', ' if remark else ''}{remark}.")
    return found


def task_options(
    config: config_dict.ConfigDict, found: teacher.Teacher
) -> dict[str, Any]:
    """What `tasks.distillation.DistillationTask` has besides its base class.

    A teacher that nobody noted the normalisation of gets the student's.
    """
    mean = found.mean if found.mean is not None else config.data.mean
    std = found.std if found.std is not None else config.data.std
    return dict(
        teacher=found.logits_of,
        teacher_variables=found.variables,
        teacher_mean=tuple(mean),
        teacher_std=tuple(std),
        mode=config.distillation.kind,
        alpha=config.distillation.alpha,
        tau=config.distillation.tau,
    )


def completion(
    config: config_dict.ConfigDict,
    task: classification.ClassificationTask,
    data: inputs.Data,
    *,
    mesh: jax.sharding.Mesh,
) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """What puts the teacher's remembered logits into a host batch, if there are any.

    Args:
      config: of the run.
      task: with the teacher, if there is one.
      data: of the run.
      mesh: of all devices.

    Returns:
      A function from a batch to a batch.
    """
    if not isinstance(task, distillation.DistillationTask):
        return lambda batch: batch
    if not config.distillation.cache:
        return lambda batch: batch
    table = cached_logits(config, task, data, mesh=mesh)
    return lambda batch: {**batch, distillation.TEACHER_LOGITS: table[batch["index"]]}


def cached_logits(
    config: config_dict.ConfigDict,
    task: distillation.DistillationTask,
    data: inputs.Data,
    *,
    mesh: jax.sharding.Mesh,
) -> np.ndarray:
    """Asks the teacher once about every training picture.

    Args:
      config: of the run.
      task: with the teacher.
      data: of the run.
      mesh: of all devices.

    Returns:
      (number of pictures, num_classes) float32, rows by `batch["index"]`; on every
      host all of them.

    Raises:
      ValueError: if an epoch may see a picture otherwise than the one before, or a
        picture is broken.
    """
    _check_cacheable(config, data)

    def apply(variables: Any, images: jax.Array) -> jax.Array:
        return task.bind(variables).teacher_logits(images)

    ask = prediction.model_predictor(
        apply, task.teacher_variables, mesh=mesh, mean=task.mean, std=task.std
    )
    table = np.zeros((len(data.train), task.num_classes), np.float32)
    batches = loader.eval_batches(
        data.train,
        data.train_transform,
        batch_size=sharding.round_up(config.batch_size, mesh),
        shard=loader.Shard(jax.process_index(), jax.process_count()),
        num_workers=config.data.num_workers,
    )
    with batches:
        for batch in batches:
            rows = ask(batch)
            kept = rows["mask"]
            table[rows["index"][kept]] = rows["logits"][kept]
    return table


def _checkpoint_teacher(path: pathlib.Path) -> teacher.Teacher:
    notes, variables = weights.load_checkpoint(path)
    options = dict(notes["model"])
    options["dtype"] = jnp.dtype(options.get("dtype", "float32"))
    # Fused: nobody asks it for a gradient.
    model, variables = api.fuse(
        api.create_model(**{**options, "remat": False}), variables
    )
    preprocessing = notes["preprocessing"]
    size = preprocessing["size"]
    return teacher.Teacher(
        name=str(path),
        logits_of=functools.partial(model.apply, train=False),
        variables=jax.device_get(variables),
        num_classes=options["num_classes"],
        class_names=tuple(notes.get("class_names", ())),
        image_shape=(size, size, preprocessing["channels"]),
        any_size=True,
        mean=tuple(preprocessing["mean"]),
        std=tuple(preprocessing["std"]),
    )


def _check_cacheable(config: config_dict.ConfigDict, data: inputs.Data) -> None:
    mixed = config.mixup.prob and (
        config.mixup.mixup_alpha or config.mixup.cutmix_alpha
    )
    if mixed or config.erasing.prob:
        raise ValueError(
            "distillation.cache=True, but mixup, CutMix or erasing make every image "
            "new; switch them off or the cache."
        )
    probed = min(_PROBED, len(data.train))
    first, second = (
        loader.eval_batches(
            data.train, data.train_transform, batch_size=probed, seed=seed
        )
        for seed in (0, 1)
    )
    with first, second:
        same = np.array_equal(next(first)["image"], next(second)["image"])
    if not same:
        raise ValueError(
            "distillation.cache=True, but the training transform is random, so that "
            "every epoch sees other images; set data.flip_prob=0, data.augment=none "
            "and data.crop=shift with data.shift=0, or switch the cache off."
        )


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
