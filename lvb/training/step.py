"""One optimiser update and one evaluation batch, as pure functions."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from lvb.training import ema as ema_lib
from lvb.training import state as state_lib

# Streams that a model draws from in its forward pass.
_MODEL_STREAMS = ("dropout", "drop_path")


def train_step(
    state: state_lib.TrainState,
    batch: Any,
    *,
    task: state_lib.Task,
    tx: optax.GradientTransformation,
    seed_key: jax.Array,
    grad_accum: int = 1,
    ema_decay: float = 0.0,
    ema_warmup: bool = True,
    log_every: int = 1,
) -> tuple[state_lib.TrainState, dict[str, Any]]:
    """Makes one update of the parameters.

    The batch is augmented whole; its `grad_accum` micro-batches then pass one after
    another. Their mean gradient is that of the whole batch, while batch statistics,
    and what normalises the activations, belong to the micro-batch.

    Args:
      state: after `state.step` updates.
      batch: of step `state.step`, as the task wants it.
      task: see `state.Task`.
      tx: the optimiser.
      seed_key: key of the run.
      grad_accum: number of micro-batches, a divisor of the batch.
      ema_decay: 0 when no averages are kept.
      ema_warmup: see `ema.update_ema`.
      log_every: the metrics' window starts anew after so many steps.

    Returns:
      The next state, and the metrics of its window: (total, count) pairs, with
      "grad_norm", the L2 norm of the gradient before clipping, among them; and
      "nonfinite_step", the first step with a non-finite loss or gradient, or -1.
    """
    step = state.step
    batch = task.prepare(batch, key=state_lib.stream_key(seed_key, "mixup", step=step))
    rngs = {
        name: state_lib.stream_key(seed_key, name, step=step) for name in _MODEL_STREAMS
    }
    grads, batch_stats, metrics = _accumulate(
        state, batch, task=task, rngs=rngs, grad_accum=grad_accum
    )
    metrics["grad_norm"] = state_lib.Total(
        optax.tree.norm(grads).astype(jnp.float32), jnp.ones((), jnp.int32)
    )
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema_decay:
        ema = ema_lib.update_ema(
            ema, params, batch_stats, step=step, decay=ema_decay, warmup=ema_warmup
        )
    fresh = step % log_every == 0
    window = jax.tree.map(
        lambda old, new: jnp.where(fresh, new, old + new), state.window, metrics
    )
    # A gradient that is not finite spoils the parameters that the next save would keep.
    finite = jnp.isfinite(metrics["loss"].total + metrics["grad_norm"].total)
    bad = (state.nonfinite_step < 0) & ~finite
    nonfinite_step = jnp.where(bad, step, state.nonfinite_step)
    new_state = state.replace(
        step=step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema=ema,
        window=window,
        nonfinite_step=nonfinite_step,
    )
    return new_state, {**window, "nonfinite_step": nonfinite_step}


def eval_step(variables: Any, totals: Any, batch: Any, *, task: state_lib.Task) -> Any:
    """Adds the metrics of one evaluation batch to the totals.

    Args:
      variables: {"params": ..., "batch_stats": ...}.
      totals: (total, count) pairs so far.
      batch: as the task wants it, with the mask of the rows that count.
      task: see `state.Task`.

    Returns:
      The new totals.
    """
    return jax.tree.map(jnp.add, totals, task.evaluate(variables, batch))


def metric_shapes(task: state_lib.Task, variables: Any, batch: Any) -> Any:
    """Shapes of the training metrics, for the window of the first state.

    Args:
      task: see `state.Task`.
      variables: shapes of {"params": ..., "batch_stats": ...}.
      batch: shapes of a training batch.

    Returns:
      A pytree of `jax.ShapeDtypeStruct`s.
    """

    def metrics(variables: Any, batch: Any) -> Any:
        key = jax.random.key(0)
        batch = task.prepare(batch, key=key)
        rngs = dict.fromkeys(_MODEL_STREAMS, key)
        _, (_, metrics) = task.loss(
            variables["params"], variables["batch_stats"], batch, rngs=rngs
        )
        return metrics

    scalar = jax.ShapeDtypeStruct
    return {
        **jax.eval_shape(metrics, variables, batch),
        "grad_norm": state_lib.Total(scalar((), jnp.float32), scalar((), jnp.int32)),
    }


def _accumulate(
    state: state_lib.TrainState,
    batch: Any,
    *,
    task: state_lib.Task,
    rngs: dict[str, jax.Array],
    grad_accum: int,
) -> tuple[Any, Any, dict[str, Any]]:
    """Mean gradient, last batch statistics and summed metrics of the micro-batches."""

    def micro_step(batch_stats: Any, index: jax.Array, micro_batch: Any) -> Any:
        keys = {name: jax.random.fold_in(key, index) for name, key in rngs.items()}
        grads, (batch_stats, metrics) = jax.grad(task.loss, has_aux=True)(
            state.params, batch_stats, micro_batch, rngs=keys
        )
        return grads, batch_stats, metrics

    if grad_accum == 1:
        return micro_step(state.batch_stats, jnp.zeros((), jnp.int32), batch)

    def body(carry: Any, inputs: Any) -> Any:
        total, batch_stats = carry
        grads, batch_stats, metrics = micro_step(batch_stats, *inputs)
        return (jax.tree.map(jnp.add, total, grads), batch_stats), metrics

    micro_batches = jax.tree.map(lambda x: _split(x, grad_accum), batch)
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    (total, batch_stats), metrics = jax.lax.scan(
        body,
        (zeros, state.batch_stats),
        (jnp.arange(grad_accum), micro_batches),
    )
    grads = jax.tree.map(lambda x: x / grad_accum, total)
    return grads, batch_stats, jax.tree.map(lambda x: x.sum(axis=0), metrics)


def _split(x: jax.Array, parts: int) -> jax.Array:
    """(B, ...) -> (parts, B / parts, ...), part i holding the rows i, i + parts, ...

    So each device, which holds consecutive rows, has an equal share of every part.
    """
    if x.shape[0] % parts:
        raise ValueError(
            f"grad_accum={parts} does not divide the batch of {x.shape[0]}; use a "
            "divisor."
        )
    return jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)
