"""Every form of an operator at one shape, beside the form that is chosen.

A case is an operator at a shape; a form is a function of (x, weights) that computes it.
All forms of a case are equal in value and gradient, which `tests/ops` checks.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lvb.analysis import timing
from lvb.ops import convolution, depthwise, dynamic_conv, forms, strided

Form = Callable[[Any, Any], jax.Array]


class Convolution(NamedTuple):
    """A convolution as a network uses it.

    Attributes:
      shape: of x, (B, H, W, C).
      kernel: (kh, kw, C / groups, C').
      strides: of both axes.
      padding: zeros on each side, (rows, columns).
      groups: channel groups.
    """

    shape: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: int
    padding: tuple[int, int]
    groups: int


class Case(NamedTuple):
    """An operator at a shape.

    Attributes:
      operator: "depthwise", "grouped", "pointwise", "stem", "aggregation" or "memory".
      shape: in words, for the table.
      arguments: x and weights, trees of arrays.
      forward: forms by name, for the value alone.
      gradient: forms by name, for value and gradient; none where nobody trains.
      chosen: the names of the forms that "auto" takes, forward and gradient.
    """

    operator: str
    shape: str
    arguments: tuple[Any, Any]
    forward: Mapping[str, Form]
    gradient: Mapping[str, Form]
    chosen: tuple[str, str]


def convolution_case(use: Convolution) -> Case:
    """The forms of a convolution of one of the kinds that have several."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(use.shape, np.float32))
    kernel = jnp.asarray(rng.standard_normal(use.kernel, np.float32))
    sizes = dict(strides=use.strides, padding=use.padding)

    def conv(form: str) -> Form:
        return lambda x, w: convolution.conv2d(
            x, w, groups=use.groups, form=form, **sizes
        )

    forward = {"reference": conv("reference"), "shift": conv("shift")}
    gradient, chosen = dict(forward), forms.resolve("auto")
    chosen_gradient = chosen
    operator = kind(use)
    if operator == "stem":
        gradient["shift"] = forward["shift"] = lambda x, w: (
            convolution.few_channels_shift(x, w, **sizes)
        )
        gradient["rows"] = forward["rows"] = lambda x, w: strided.strided_rows(
            x, w, **sizes
        )
        if chosen == "shift" and not convolution.has_few_channels(use.kernel):
            chosen = chosen_gradient = "rows" if use.strides > 1 else "reference"
    if operator == "depthwise":
        del gradient["shift"]
        gradients = depthwise.GRADIENTS[: 3 if use.strides == 1 else 2]
        for name in gradients:
            gradient[f"shift, {name}"] = lambda x, w, name=name: (
                depthwise.depthwise_shift(x, w, gradient=name, **sizes)
            )
        if chosen == "shift":
            picked = depthwise.choose_gradient(use.shape, use.kernel, **sizes)
            chosen_gradient = f"shift, {picked}"
    side = "x".join(map(str, use.kernel[:2]))
    words = "x".join(map(str, use.shape))
    return Case(
        operator=operator,
        shape=f"{words}, {side} s{use.strides} g{use.groups} -> {use.kernel[-1]}",
        arguments=(x, kernel),
        forward=forward,
        gradient=gradient,
        chosen=(chosen, chosen_gradient),
    )


def kind(use: Convolution) -> str:
    """The operator that a convolution is a case of: see `Case.operator`."""
    if use.groups == 1:
        return "pointwise" if use.kernel[:2] == (1, 1) else "stem"
    return "depthwise" if use.groups == use.shape[-1] == use.kernel[-1] else "grouped"


def aggregation_case(shape: tuple[int, ...], num_kernels: int) -> Case:
    """The forms of LS aggregation.

    Args:
      shape: of x, (B, H, W, C).
      num_kernels: kernels of 3 x 3 at each position, a divisor of C.
    """
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(shape, np.float32))
    weights = jnp.asarray(rng.standard_normal((*shape[:3], num_kernels, 9), np.float32))
    both = {
        form: lambda x, w, form=form: dynamic_conv.ska(x, w, form=form)
        for form in ("reference", "shift")
    }
    words = "x".join(map(str, shape))
    return Case(
        operator="aggregation",
        shape=f"{words}, {num_kernels} kernels of 3x3",
        arguments=(x, weights),
        forward=both,
        gradient=both,
        chosen=("shift", "shift"),
    )


def measure(case: Case, *, rounds: int, warmup: int) -> list[dict[str, Any]]:
    """Times all forms of a case in turns.

    Args:
      case: what to measure.
      rounds: measured turns of each form.
      warmup: turns before.

    Returns:
      A JSON record each for the value ("forward") and for value and gradient
      ("gradient"): median and minimal seconds by form, which is chosen and which is
      best, and the chosen one's time over the best's.
    """
    records = []
    for direction, all_forms, chosen in zip(
        ("forward", "gradient"), (case.forward, case.gradient), case.chosen, strict=True
    ):
        if not all_forms:
            continue
        calls = {
            name: _compiled(form, case.arguments, direction)
            for name, form in all_forms.items()
        }
        # A slow form would decide how long the run takes.
        repeats = timing.calls_per_turn(calls, seconds=0.01)
        seconds = timing.interleave(calls, rounds=rounds, warmup=warmup, calls=repeats)
        records.append(
            {
                "operator": case.operator,
                "shape": case.shape,
                "direction": direction,
                **compare(seconds, chosen),
            }
        )
    return records


def compare(seconds: Mapping[str, Sequence[float]], chosen: str) -> dict[str, Any]:
    """The chosen form beside the best one.

    Args:
      seconds: of every round, by form.
      chosen: one of the forms.

    Returns:
      "forms", "chosen", "best" and "chosen_over_best": the median over the rounds of
      the ratio of their times, 1 where the chosen form is the best.
    """
    summaries = {name: timing.summarise(values) for name, values in seconds.items()}
    best = min(summaries, key=lambda name: summaries[name].median)
    return {
        "forms": {
            name: {"median_seconds": s.median, "min_seconds": s.minimum}
            for name, s in summaries.items()
        },
        "chosen": chosen,
        "best": best,
        "chosen_over_best": timing.ratio(seconds[best], seconds[chosen]).median,
    }


def _compiled(
    form: Form, arguments: tuple[Any, Any], direction: str
) -> Callable[[], Any]:
    """The program of a form; its gradient is that of a sum with random factors."""
    if direction == "forward":
        program = jax.jit(form).lower(*arguments).compile()
        return lambda: program(*arguments)
    shape = jax.eval_shape(form, *arguments)
    cotangent = jnp.asarray(
        np.random.default_rng(1).standard_normal(shape.shape, np.float32)
    )

    def gradient(x: Any, weights: Any, cotangent: jax.Array) -> Any:
        y, pull = jax.vjp(form, x, weights)
        return y, pull(cotangent)

    program = jax.jit(gradient).lower(*arguments, cotangent).compile()
    return lambda: program(*arguments, cotangent)
