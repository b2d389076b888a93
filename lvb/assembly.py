"""From the leaves of a config to the functions of a run; for commands only."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import config_dict

import lvb
from lvb import inputs, transfer
from lvb.analysis import flops, health, reference_curves
from lvb.config import rates
from lvb.models import registry
from lvb.ops import preprocess
from lvb.tasks import classification, distillation
from lvb.training import optimizer, schedule, sharding, state, step
from lvb.training import teacher as teacher_lib

DTYPES = ("float32", "bfloat16", "float16")


class Plan(NamedTuple):
    """The lengths of a run, in steps unless said otherwise.

    Attributes:
      total_steps: the whole run.
      steps_per_epoch: whole batches in one pass over the data.
      warmup_steps: linear warm-up.
      eval_every: between evaluations.
      save_every: between checkpoints.
      eval_batch_size: images, a multiple of the device count.
      peak_lr: learning rate after the warm-up, scaled to the batch.
    """

    total_steps: int
    steps_per_epoch: int
    warmup_steps: int
    eval_every: int
    save_every: int
    eval_batch_size: int
    peak_lr: float


class Run(NamedTuple):
    """Everything that is computed, as pure functions and shapes.

    Attributes:
      plan: the lengths.
      task: the model with its losses.
      schedule: step to learning rate.
      init: seed's key -> state.
      train_step: (state, batch, seed's key, constants) -> state, metrics.
      eval_step: (variables, totals, batch) -> totals.
      health_step: (variables, batch) -> numbers of the inner dynamics by layer; None
        for models without.
      state: shapes of the state.
      shardings: of the state.
      constants: arrays that the training step reads only: a teacher's; on the host.
      train_batch: shapes of a training batch.
      eval_batch: shapes of an evaluation batch.
      totals: shapes of the evaluation's totals.
    """

    plan: Plan
    task: classification.ClassificationTask
    schedule: optax.Schedule
    init: Callable[[jax.Array], state.TrainState]
    train_step: Callable[..., Any]
    eval_step: Callable[..., Any]
    health_step: Callable[..., Any] | None
    state: state.TrainState
    shardings: state.TrainState
    constants: Any
    train_batch: dict[str, jax.ShapeDtypeStruct]
    eval_batch: dict[str, jax.ShapeDtypeStruct]
    totals: Any


def model_options(
    config: config_dict.ConfigDict, *, num_classes: int
) -> dict[str, Any]:
    """The arguments of `lvb.create_model`, as values JSON can hold."""
    options = config.model.to_dict()
    if options["dtype"] not in DTYPES:
        raise ValueError(
            f"model.dtype={options['dtype']!r} is unknown; use one of {DTYPES}."
        )
    return {**options, "num_classes": num_classes}


def plan_run(
    config: config_dict.ConfigDict, *, num_train: int, mesh: jax.sharding.Mesh
) -> Plan:
    """Turns epochs into steps.

    Args:
      config: of the run.
      num_train: number of training examples.
      mesh: of all devices.

    Raises:
      ValueError: if batch, devices, data and lengths do not fit together.
    """
    batch_size, lengths = config.batch_size, config.schedule
    sharding.check_batch_size(batch_size, mesh, grad_accum=config.grad_accum)
    steps_per_epoch = num_train // batch_size
    if steps_per_epoch == 0:
        raise ValueError(
            f"the training set has {num_train} images, fewer than "
            f"batch_size={batch_size}; set a smaller --config.batch_size."
        )
    total_steps = lengths.steps or round(lengths.epochs * steps_per_epoch)
    warmup = lengths.warmup_steps or round(lengths.warmup_epochs * steps_per_epoch)
    peak_lr = config.optimizer.lr
    if config.optimizer.lr_batch_size:
        peak_lr = optimizer.scaled_lr(
            peak_lr,
            batch_size=batch_size,
            reference_batch_size=config.optimizer.lr_batch_size,
        )
    for name, value in (
        ("schedule.epochs or schedule.steps", total_steps),
        ("eval.every_epochs", config.eval.every_epochs),
        ("log_every", config.log_every),
    ):
        if value <= 0:
            raise ValueError(f"{name} gives {value}; it must be positive.")
    return Plan(
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        warmup_steps=warmup,
        eval_every=max(1, round(config.eval.every_epochs * steps_per_epoch)),
        save_every=config.checkpoint.every_steps or steps_per_epoch,
        eval_batch_size=sharding.round_up(config.eval.batch_size or batch_size, mesh),
        peak_lr=peak_lr,
    )


def make_task(
    config: config_dict.ConfigDict,
    *,
    num_classes: int,
    teacher: teacher_lib.Teacher | None = None,
    **changes: Any,
) -> classification.ClassificationTask:
    """Builds the model, its options changed if need be, and all around it."""
    options = model_options(config, num_classes=num_classes) | changes
    options["dtype"] = jnp.dtype(options["dtype"])
    make, extra = classification.ClassificationTask, {}
    if teacher is not None:
        make = distillation.DistillationTask
        extra = transfer.task_options(config, teacher)
    return make(
        model=lvb.create_model(**options),
        num_classes=num_classes,
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
        label_smoothing=config.loss.label_smoothing,
        mixup_alpha=config.mixup.mixup_alpha,
        cutmix_alpha=config.mixup.cutmix_alpha,
        mix_prob=config.mixup.prob,
        switch_prob=config.mixup.switch_prob,
        mix_groups=config.mixup.num_groups,
        erasing_prob=config.erasing.prob,
        **extra,
    )


def make_schedule(config: config_dict.ConfigDict, plan: Plan) -> optax.Schedule:
    """Builds the learning rate, a function of the step."""
    options = config.schedule
    return schedule.make_schedule(
        options.kind,
        base_lr=plan.peak_lr,
        total_steps=plan.total_steps,
        warmup_steps=plan.warmup_steps,
        min_lr=options.min_lr,
        warmup_init_lr=options.warmup_init_lr,
        steps_per_epoch=plan.steps_per_epoch,
        step_mode=options.step_mode,
        decay_from=options.decay_from,
        power=options.power,
        milestones=[round(e * plan.steps_per_epoch) for e in options.milestones],
        factor=options.factor,
    )


def make_optimizer(
    config: config_dict.ConfigDict, rate: optax.Schedule, *, params: Any
) -> optax.GradientTransformation:
    """Builds the optimiser; the family and the config exempt names from decay."""
    options = config.optimizer
    no_clip = options.clip_mode == "none"
    no_decay = registry.family_of(config.model.name).no_decay
    return optimizer.make_optimizer(
        options.name,
        schedule=rate,
        params=params,
        weight_decay=options.weight_decay,
        b1=options.b1,
        b2=options.b2,
        eps=options.eps,
        momentum=options.momentum,
        clip_mode=None if no_clip else options.clip_mode,
        clip=None if no_clip else options.clip,
        no_decay=(*no_decay, *options.no_decay),
        layer_rates=rates.parse_rates(options.layer_rates),
    )


def assemble(
    config: config_dict.ConfigDict,
    *,
    num_classes: int,
    num_train: int,
    mesh: jax.sharding.Mesh,
    teacher: teacher_lib.Teacher | None = None,
) -> Run:
    """Builds all that is computed; nothing is computed yet.

    Args:
      config: of the run.
      num_classes: of the data.
      num_train: number of training examples.
      mesh: of all devices.
      teacher: from `transfer.open_teacher`.

    Raises:
      ValueError: if something in the config does not fit.
    """
    inputs.check_image_size(config.data.image_size)
    _check_recalibration(config)
    plan = plan_run(config, num_train=num_train, mesh=mesh)
    task = make_task(config, num_classes=num_classes, teacher=teacher)
    image_shape = _image_shape(config)
    # Variables and shapes are those of every form of the operators; this one traces in
    # half the time.
    plain = make_task(
        config, num_classes=num_classes, teacher=teacher, op_form="reference"
    )
    variables = jax.eval_shape(
        functools.partial(plain.init, image_shape=image_shape), jax.random.key(0)
    )
    rate = make_schedule(config, plan)
    tx = make_optimizer(config, rate, params=variables["params"])
    remembered = teacher is not None and config.distillation.cache
    constants = {} if teacher is None or remembered else teacher.variables
    train_batch, eval_batch = _batches(
        config, plan, num_logits=num_classes if remembered else 0
    )
    first_state = functools.partial(
        state.first_state,
        tx=tx,
        keep_ema=config.ema.decay > 0,
        window=step.metric_shapes(plain, variables, train_batch),
    )

    def init(seed_key: jax.Array) -> state.TrainState:
        key = state.stream_key(seed_key, "params", step=0)
        return first_state(plain.init(key, image_shape=image_shape))

    state_shapes = jax.eval_shape(first_state, variables)
    return Run(
        plan=plan,
        task=task,
        schedule=rate,
        init=init,
        train_step=_train_step(config, task, tx, binds=teacher is not None),
        eval_step=functools.partial(step.eval_step, task=task),
        health_step=_health_step(config, task),
        state=state_shapes,
        shardings=sharding.state_shardings(
            state_shapes,
            mesh,
            min_elements=config.sharding.min_elements,
            whole=config.sharding.whole,
        ),
        constants=constants,
        train_batch=train_batch,
        eval_batch=eval_batch,
        totals=jax.eval_shape(plain.evaluate, variables, eval_batch),
    )


def _train_step(
    config: config_dict.ConfigDict,
    task: classification.ClassificationTask,
    tx: optax.GradientTransformation,
    *,
    binds: bool,
) -> Callable[..., Any]:
    """See `Run.train_step`; a task with a teacher binds the constants to itself."""

    def train_step(
        train_state: Any, batch: Any, seed_key: jax.Array, constants: Any = None
    ) -> Any:
        return step.train_step(
            train_state,
            batch,
            task=task.bind(constants) if binds else task,
            tx=tx,
            seed_key=seed_key,
            grad_accum=config.grad_accum,
            ema_decay=config.ema.decay,
            ema_warmup=config.ema.warmup,
            log_every=config.log_every,
        )

    return train_step


def _health_step(
    config: config_dict.ConfigDict, task: classification.ClassificationTask
) -> Callable[..., Any] | None:
    """See `Run.health_step`: a forward pass in evaluation mode, images not mixed."""
    if not config.log_health or not config.model.name.startswith(health.FAMILIES):
        return None

    def health_step(variables: Any, batch: Any) -> health.Layers:
        images = preprocess.normalize(batch["image"], mean=task.mean, std=task.std)
        _, updates = task.model.apply(
            variables, images, train=False, mutable=["intermediates"]
        )
        return health.measure(updates["intermediates"])

    return health_step


def count_macs(config: config_dict.ConfigDict, run: Run) -> int:
    """Multiply-adds of the network, not fused, for one image of the run's size."""
    options = model_options(config, num_classes=run.task.num_classes)
    model = lvb.create_model(**{**options, "op_form": "reference"})
    image = jax.ShapeDtypeStruct((1, *run.train_batch["image"].shape[1:]), jnp.float32)
    return flops.count_macs(
        lambda variables, images: model.apply(variables, images, train=False),
        run.state.variables(),
        image,
    )


def official_words(config: config_dict.ConfigDict, plan: Plan) -> Callable[[int], str]:
    """From a step to what the official log has at its epoch: LSNet on ImageNet-1K.

    Args:
      config: of the run.
      plan: of the run; only one of 300 epochs is compared.

    Returns:
      A function that returns "" where there is nothing to compare with.
    """
    full = plan.steps_per_epoch * reference_curves.NUM_EPOCHS
    if (plan.total_steps, config.model.num_classes) != (full, 1000):
        return lambda step: ""
    return lambda step: reference_curves.on_track(
        config.model.name, step / plan.steps_per_epoch, distilled=config.model.distilled
    )


def _check_recalibration(config: config_dict.ConfigDict) -> None:
    if config.ema.recalibrate_batches and not config.ema.decay:
        raise ValueError(
            "ema.recalibrate_batches measures the statistics of averages, but "
            "ema.decay=0 keeps none; set --config.ema.decay, or recalibrate_batches=0."
        )
    if config.ema.recalibrate_batches and config.model.get("frozen_batch_norm"):
        raise ValueError(
            "ema.recalibrate_batches changes batch statistics that "
            "model.frozen_batch_norm keeps; set one of the two only."
        )


def _image_shape(config: config_dict.ConfigDict) -> tuple[int, int, int]:
    return config.data.image_size, config.data.image_size, config.data.channels


def _batches(
    config: config_dict.ConfigDict, plan: Plan, *, num_logits: int
) -> tuple[dict[str, jax.ShapeDtypeStruct], dict[str, jax.ShapeDtypeStruct]]:
    """A training batch, with a teacher's remembered logits if any, and one to judge."""
    train_batch = _batch_shapes(config.batch_size, _image_shape(config))
    if num_logits:
        train_batch[distillation.TEACHER_LOGITS] = jax.ShapeDtypeStruct(
            (config.batch_size, num_logits), jnp.float32
        )
    eval_batch = _batch_shapes(plan.eval_batch_size, _image_shape(config))
    eval_batch["mask"] = jax.ShapeDtypeStruct((plan.eval_batch_size,), jnp.bool_)
    return train_batch, eval_batch


def _batch_shapes(
    batch_size: int, image_shape: tuple[int, ...]
) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        "image": jax.ShapeDtypeStruct((batch_size, *image_shape), np.uint8),
        "label": jax.ShapeDtypeStruct((batch_size,), np.int32),
    }
