"""Where a number that is not finite comes from: one step, looked at from inside.

A loss that is not finite was made by some module of the forward pass, or by parameters
that the step before had spoilt. `inspect_step` makes the forward pass again with a
record of every module's input and output, `find` tells the first bad one.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lvb.training import state as state_lib

# Streams that a model draws from; see `state.STREAMS`.
_MODEL_STREAMS = tuple(s for s in state_lib.STREAMS if s not in ("params", "mixup"))


class Statistics(NamedTuple):
    """A tensor in numbers; those of the finite values where not said otherwise.

    Attributes:
      nan: number of values that are not a number.
      infinite: number of infinities.
      low: smallest value.
      high: largest value.
      rms: root of the mean square.
    """

    nan: Any
    infinite: Any
    low: Any
    high: Any
    rms: Any


class Record(NamedTuple):
    """A module's call: shapes and statistics of what came in and went out.

    Attributes:
      path: of the module, such as "backbone/stage2/block0".
      shape: of the output.
      dtype: of the output.
      input: statistics of the array arguments, None if there are none.
      output: statistics of the result.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    input: Statistics | None
    output: Statistics


class Finding(NamedTuple):
    """What is not finite, first.

    Attributes:
      where: "parameters", "images", "module", "loss", "gradient" or "nothing".
      name: of the parameter or module.
      record: of the module.
      statistics: of the tensor.
    """

    where: str
    name: str = ""
    record: Record | None = None
    statistics: Statistics | None = None


def statistics(tree: Any) -> Statistics:
    """Reduces all floating arrays of a tree to `Statistics`; may be traced."""
    leaves = [
        jnp.asarray(x, jnp.float32).ravel()
        for x in jax.tree.leaves(tree)
        if jnp.issubdtype(jnp.result_type(x), jnp.floating)
    ]
    x = jnp.concatenate(leaves) if leaves else jnp.zeros((1,))
    finite = jnp.isfinite(x)
    kept = jnp.where(finite, x, 0.0)
    count = jnp.maximum(finite.sum(), 1)
    return Statistics(
        nan=jnp.isnan(x).sum(),
        infinite=jnp.isinf(x).sum(),
        low=jnp.where(finite, x, jnp.inf).min(),
        high=jnp.where(finite, x, -jnp.inf).max(),
        # Divided first, because squares of large finite values are infinite.
        rms=_rms(kept, count),
    )


def _rms(x: jax.Array, count: jax.Array) -> jax.Array:
    # Below 2**126, because XLA flushes the reciprocal of a larger scale to zero.
    scale = jnp.clip(jnp.abs(x).max(), jnp.finfo(jnp.float32).tiny, 2.0**126)
    return scale * jnp.sqrt(jnp.square(x / scale).sum() / count)


def is_bad(numbers: Statistics | None) -> bool:
    """Whether a tensor holds a value that is not finite."""
    return numbers is not None and bool(numbers.nan + numbers.infinite > 0)


def record_modules(
    function: Callable[..., Any], *args: Any
) -> tuple[Any, list[Record]]:
    """Calls a function and records every Flax module that it calls.

    Args:
      function: of arrays; compiled whole, so no module in it may be rematerialised.
      *args: its arguments.

    Returns:
      Its result, and the calls in the order in which they ended.
    """
    labels: list[tuple[str, tuple[int, ...], str, bool]] = []

    def traced(*args: Any) -> Any:
        labels.clear()
        numbers: list[tuple[Statistics, Statistics]] = []

        def intercept(call: Any, inputs: Any, options: Any, context: Any) -> Any:
            result = call(*inputs, **options)
            arrays = [x for x in inputs if isinstance(x, jax.Array)]
            outputs = jax.tree.leaves(result)
            if context.method_name == "__call__" and outputs:
                path = "/".join(context.module.path) or type(context.module).__name__
                first = outputs[0]
                labels.append((path, first.shape, first.dtype.name, bool(arrays)))
                numbers.append((statistics(arrays), statistics(outputs)))
            return result

        with nn.intercept_methods(intercept):
            result = function(*args)
        return result, numbers

    result, numbers = jax.device_get(jax.jit(traced)(*args))
    records = [
        Record(path, shape, dtype, came if has_input else None, went)
        for (path, shape, dtype, has_input), (came, went) in zip(
            labels, numbers, strict=True
        )
    ]
    return result, records


def inspect_step(
    train_state: state_lib.TrainState,
    batch: Mapping[str, Any],
    *,
    task: Any,
    seed_key: jax.Array,
    grad_accum: int = 1,
) -> Finding:
    """Finds what is not finite in the forward pass of a training step.

    Args:
      train_state: before the step.
      batch: of the step, as the task wants it.
      task: see `state.Task`; its model has no rematerialised part.
      seed_key: of the run.
      grad_accum: number of micro-batches.

    Returns:
      The first bad thing, in the order parameters, images, modules, loss.
    """
    bad = _first_bad(train_state.params)
    if bad is not None:
        return Finding("parameters", bad[0], statistics=bad[1])
    keys = {
        name: state_lib.stream_key(seed_key, name, step=train_state.step)
        for name in (*_MODEL_STREAMS, "mixup")
    }
    batch = task.prepare(batch, key=keys.pop("mixup"))
    images = jax.device_get(statistics(batch))
    if is_bad(images):
        return Finding("images", statistics=images)
    batch_stats = train_state.batch_stats
    for index in range(grad_accum):
        rngs = {name: jax.random.fold_in(key, index) for name, key in keys.items()}
        micro_batch = jax.tree.map(lambda x, i=index: x[i::grad_accum], batch)

        def forward(params: Any, stats: Any, rows: Any, rngs: Any) -> Any:
            return task.loss(params, stats, rows, rngs=rngs)

        (loss, (batch_stats, _)), records = record_modules(
            forward, train_state.params, batch_stats, micro_batch, rngs
        )
        for record in records:
            if is_bad(record.output):
                return Finding("module", record.path, record, record.output)
        if not jnp.isfinite(loss):
            return Finding("loss")
    return Finding("nothing")


def inspect_gradient(
    train_state: state_lib.TrainState,
    batch: Mapping[str, Any],
    *,
    task: Any,
    seed_key: jax.Array,
) -> Finding:
    """Finds the first parameter with a gradient that is not finite; see `inspect_step`.

    The batch passes whole, whatever the run's number of micro-batches.
    """
    step = train_state.step
    rngs = {
        name: jax.random.fold_in(
            state_lib.stream_key(seed_key, name, step=step), jnp.zeros((), jnp.int32)
        )
        for name in _MODEL_STREAMS
    }
    key = state_lib.stream_key(seed_key, "mixup", step=step)

    @jax.jit
    def gradient(params: Any, batch: Any) -> Any:
        prepared = task.prepare(batch, key=key)
        return jax.grad(task.loss, has_aux=True)(
            params, train_state.batch_stats, prepared, rngs=rngs
        )[0]

    bad = _first_bad(gradient(train_state.params, batch))
    return Finding("gradient", bad[0], statistics=bad[1]) if bad else Finding("nothing")


def without_remat(task: Any) -> Any:
    """The task with a network that keeps all activations: same numbers, more memory."""
    model = task.model
    if not getattr(getattr(model, "backbone", None), "remat", False):
        return task
    model = model.clone(backbone=model.backbone.clone(remat=False))
    return dataclasses.replace(task, model=model)


def describe(finding: Finding) -> str:
    """The finding in words."""
    numbers = _shown(finding.statistics)
    match finding.where:
        case "parameters":
            return f"parameter {finding.name} was not finite before the step: {numbers}"
        case "gradient":
            return f"the gradient of {finding.name} is not finite: {numbers}"
        case "images":
            return f"the augmented images are not finite: {numbers}"
        case "loss":
            return "every module's output is finite, the loss is not"
        case "nothing":
            return "every module's output and the loss are finite"
    record = finding.record
    origin = (
        "its input was not finite already, made between modules of its parent"
        if is_bad(record.input)
        else f"its input was finite: {_shown(record.input)}"
    )
    return (
        f"module {record.path} is the first whose output is not finite: "
        f"{record.shape} {record.dtype}, {numbers}; {origin}"
    )


def _first_bad(tree: Any) -> tuple[str, Statistics] | None:
    reduced = jax.device_get(jax.jit(lambda t: jax.tree.map(statistics, t))(tree))
    leaves = jax.tree_util.tree_leaves_with_path(
        reduced, is_leaf=lambda x: isinstance(x, Statistics)
    )
    for path, numbers in leaves:
        if is_bad(numbers):
            return "/".join(str(getattr(k, "key", k)) for k in path), numbers
    return None


def _shown(numbers: Statistics | None) -> str:
    if numbers is None:
        return "none"
    return (
        f"{int(numbers.nan)} nan, {int(numbers.infinite)} infinite, the others in "
        f"[{float(numbers.low):.3g}, {float(numbers.high):.3g}] with rms "
        f"{float(numbers.rms):.3g}"
    )
