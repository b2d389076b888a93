"""Learning-rate schedules: linear warm-up, then cosine, polynomial or multi-step decay.

Every schedule is an `optax.Schedule`, a function from the number of finished
optimiser steps to a learning rate. Two open points of the papers are arguments here:
where the decay starts counting (`decay_from`), and whether the rate moves every step
or once per epoch as in LSNet's released training code (`step_mode`).
"""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

KINDS = ("cosine", "poly", "multi_step")
STEP_MODES = ("step", "epoch_lagged")
DECAY_ORIGINS = ("start", "warmup_end")


def make_schedule(
    kind: str = "cosine",
    *,
    base_lr: float,
    total_steps: int,
    warmup_steps: int,
    min_lr: float = 0.0,
    warmup_init_lr: float = 0.0,
    steps_per_epoch: int | None = None,
    step_mode: str = "step",
    decay_from: str = "start",
    power: float = 0.9,
    milestones: Sequence[int] = (),
    factor: float = 0.1,
) -> optax.Schedule:
    """Builds the learning rate as a function of the step.

    With t the step, w = `warmup_steps`, T = `total_steps` and o the decay's origin
    (0, or w when `decay_from` is "warmup_end"):

        t < w:       warmup_init_lr + (base_lr - warmup_init_lr) t / w
        cosine:      min_lr + (base_lr - min_lr) (1 + cos(pi (t - o) / (T - o))) / 2
        poly:        min_lr + (base_lr - min_lr) (1 - (t - o) / (T - o)) ** power
        multi_step:  base_lr * factor ** (number of milestones <= t)

    Args:
      kind: "cosine", "poly" or "multi_step".
      base_lr: the rate the warm-up ends at, positive.
      total_steps: length of the run, in optimiser steps.
      warmup_steps: length of the warm-up, in optimiser steps; 0 for none.
      min_lr: the rate at `total_steps`, for cosine and poly.
      warmup_init_lr: the rate at step 0 when there is a warm-up.
      steps_per_epoch: needed by "epoch_lagged" only.
      step_mode: "step" evaluates the formulas at the step. "epoch_lagged" holds the
        rate constant within an epoch and evaluates it at the start of the epoch
        *before*, so that epochs 0 and 1 both run at `warmup_init_lr`: LSNet's
        released code steps its scheduler after each epoch with that epoch's index.
      decay_from: "start" counts the decay from step 0, so that it is already under
        way when the warm-up ends (timm, hence LSNet, FVNet and FMViT);
        "warmup_end" counts from the end of the warm-up (ConvNeur's code base).
      power: exponent of poly; 0.9 as in FVNet's ADE20K recipe.
      milestones: steps at which multi_step multiplies the rate, increasing.
      factor: the multiplier at each milestone.

    Returns:
      A schedule; it may be called with Python or traced integers.

    Raises:
      ValueError: for an unknown word, or for lengths or rates that do not fit.
    """
    _check_words(kind, step_mode=step_mode, decay_from=decay_from)
    _check_numbers(
        base_lr=base_lr,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        milestones=milestones,
    )
    origin = warmup_steps if decay_from == "warmup_end" else 0
    decay = _decay(
        kind,
        base_lr=base_lr,
        min_lr=min_lr,
        decay_steps=total_steps - origin,
        power=power,
        milestones=[m - origin for m in milestones],
        factor=factor,
    )
    warmup = optax.linear_schedule(warmup_init_lr, base_lr, max(warmup_steps, 1))

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        return jnp.where(step < warmup_steps, warmup(step), decay(step - origin))

    if step_mode == "epoch_lagged":
        return _epoch_lagged(schedule, steps_per_epoch=steps_per_epoch)
    return schedule


def _decay(
    kind: str,
    *,
    base_lr: float,
    min_lr: float,
    decay_steps: int,
    power: float,
    milestones: Sequence[int],
    factor: float,
) -> optax.Schedule:
    if kind == "cosine":
        alpha = min_lr / base_lr
        return optax.cosine_decay_schedule(base_lr, decay_steps, alpha=alpha)
    if kind == "poly":
        return _poly(base_lr, min_lr=min_lr, decay_steps=decay_steps, power=power)
    scales = {milestone: factor for milestone in milestones}
    return optax.piecewise_constant_schedule(base_lr, scales)


def _poly(
    base_lr: float, *, min_lr: float, decay_steps: int, power: float
) -> optax.Schedule:
    """Polynomial decay that ends in `min_lr` also when compiled.

    XLA turns the division of `optax.polynomial_schedule` into a product, which may
    leave -3e-8 of the run at its last step, whose power of 0.9 is not a number.
    """

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        left = jnp.maximum(1.0 - step / decay_steps, 0.0)
        return min_lr + (base_lr - min_lr) * left**power

    return schedule


def _epoch_lagged(
    schedule: Callable[[jax.typing.ArrayLike], jax.Array],
    *,
    steps_per_epoch: int | None,
) -> optax.Schedule:
    if not steps_per_epoch or steps_per_epoch < 1:
        raise ValueError(
            f"make_schedule: step_mode 'epoch_lagged' came with steps_per_epoch="
            f"{steps_per_epoch}; pass the number of optimiser steps in one epoch."
        )

    def lagged(step: jax.typing.ArrayLike) -> jax.Array:
        epoch = step // steps_per_epoch
        return schedule(jnp.maximum(epoch - 1, 0) * steps_per_epoch)

    return lagged


def _check_words(kind: str, *, step_mode: str, decay_from: str) -> None:
    for name, word, known in (
        ("kind", kind, KINDS),
        ("step_mode", step_mode, STEP_MODES),
        ("decay_from", decay_from, DECAY_ORIGINS),
    ):
        if word not in known:
            raise ValueError(
                f"make_schedule: {name}={word!r} is unknown; use one of "
                f"{', '.join(known)}."
            )


def _check_numbers(
    *, base_lr: float, total_steps: int, warmup_steps: int, milestones: Sequence[int]
) -> None:
    if base_lr <= 0:
        raise ValueError(
            f"make_schedule: base_lr={base_lr} is not positive; to freeze parameters "
            "give them a rate multiplier of 0 instead."
        )
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"make_schedule: warmup_steps={warmup_steps} does not fit into "
            f"total_steps={total_steps}; the warm-up must end before the run does."
        )
    rising = all(a < b for a, b in itertools.pairwise(milestones))
    if milestones and (not rising or milestones[0] <= 0):
        raise ValueError(
            f"make_schedule: milestones={tuple(milestones)} are not increasing "
            "positive steps; sort them and multiply epochs by the steps per epoch."
        )
