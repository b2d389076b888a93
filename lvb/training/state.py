"""All that changes during a run, and how it starts."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import optax

from lvb.training import ema as ema_lib

# Random streams; a new one goes to the end, since a stream's number makes its keys.
STREAMS = ("params", "dropout", "drop_path", "mixup")


class TrainState(flax.struct.PyTreeNode):
    """The state after `step` optimiser updates; with the seed it decides the rest.

    Attributes:
      step: updates made, int32 scalar.
      params: parameters, float32.
      batch_stats: batch statistics, float32.
      opt_state: state of the optimiser.
      ema: averages of params and batch_stats, or () when none are kept.
      window: (total, count) pairs of the metrics since the last log line.
      nonfinite_step: the first step with a non-finite loss or gradient, -1 so far,
        int32 scalar.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    window: Any
    nonfinite_step: jax.Array

    def variables(self, *, use_ema: bool = False) -> dict[str, Any]:
        """What the model is applied with: raw, or averaged."""
        source = self.ema if use_ema else self
        return {"params": source.params, "batch_stats": source.batch_stats}


class Total(NamedTuple):
    """Sum and number of a per-step value."""

    total: jax.Array
    count: jax.Array


class Task(Protocol):
    """What a step needs of a task, see `lvb.tasks`."""

    def init(self, key: jax.Array, *, image_shape: tuple[int, ...]) -> dict[str, Any]:
        """Makes {"params": ..., "batch_stats": ...}."""

    def prepare(self, batch: Any, *, key: jax.Array) -> Any:
        """Augments a whole training batch on the device."""

    def loss(
        self, params: Any, batch_stats: Any, batch: Any, *, rngs: Any
    ) -> tuple[jax.Array, tuple[Any, Any]]:
        """Returns the mean loss and (new batch statistics, metrics)."""

    def evaluate(self, variables: Any, batch: Any) -> Any:
        """Returns the metrics of an evaluation batch as (total, count) pairs."""


def stream_key(
    seed_key: jax.Array, stream: str, *, step: jax.typing.ArrayLike
) -> jax.Array:
    """The key of a random stream at a step: a function of the seed and these two."""
    key = jax.random.fold_in(seed_key, STREAMS.index(stream))
    return jax.random.fold_in(key, step)


def check_finite(state: TrainState, *, schedule: optax.Schedule) -> None:
    """Raises FloatingPointError, naming the step, if a loss or gradient was bad."""
    bad = int(state.nonfinite_step)
    if bad >= 0:
        raise FloatingPointError(
            f"the loss of step {bad:,} is not finite, or its gradient (learning rate "
            f"{float(schedule(bad)):.3g}); lower --config.optimizer.lr, lengthen the "
            "warm-up or clip gradients. The last checkpoint is from before that step: "
            "python -m lvb.replay --workdir ... finds the module it began in."
        )


def first_state(
    variables: Mapping[str, Any],
    *,
    tx: optax.GradientTransformation,
    keep_ema: bool,
    window: Any,
) -> TrainState:
    """The state at step 0.

    Args:
      variables: {"params": ..., "batch_stats": ...} of the model.
      tx: the optimiser.
      keep_ema: whether to keep averages.
      window: the metrics' shapes, as `step.metric_shapes` returns them.
    """
    params, batch_stats = variables["params"], variables["batch_stats"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=tx.init(params),
        ema=ema_lib.init_ema(params, batch_stats) if keep_ema else (),
        window=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), window),
        nonfinite_step=jnp.full((), -1, jnp.int32),
    )
