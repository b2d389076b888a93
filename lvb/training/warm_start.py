"""Starts a run from the weights of another: which leaves fit, and which are made to.

Everything but the head has to be there with the right shape. Tables of attention biases
follow the size of the map; a second head, LSNet*'s, may be missing or be left over.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from lvb.ops import relative_bias
from lvb.training import ema as ema_lib
from lvb.training import sharding
from lvb.training import state as state_lib

_BIAS_TABLE = "attention_biases"
_HEAD = "head"

Leaves = Mapping[tuple[str, ...], Any]


class Start(NamedTuple):
    """Variables to start from, and where they are not the checkpoint's own.

    Attributes:
      variables: {"params": ..., "batch_stats": ...}, NumPy arrays.
      resized: bias tables made to fit.
      fresh: leaves of the head that the checkpoint does not have.
      dropped: leaves of the checkpoint's head that the model does not have.
    """

    variables: dict[str, Any]
    resized: tuple[str, ...]
    fresh: tuple[str, ...]
    dropped: tuple[str, ...]

    def describe(self) -> str:
        """One line for the start of a run's log."""
        count = len(traverse_util.flatten_dict(self.variables))
        parts = [f"{count - len(self.fresh)} arrays taken over"]
        for word, names in (
            ("resized", self.resized),
            ("new", self.fresh),
            ("left out", self.dropped),
        ):
            if names:
                parts.append(f"{len(names)} {word} ({names[0]}, ...)")
        return ", ".join(parts)


def fit(loaded: Mapping[str, Any], own: Mapping[str, Any]) -> Start:
    """Fits the variables of a checkpoint to a model.

    Args:
      loaded: {"params": ..., "batch_stats": ...} of the checkpoint; its head has been
        reset if it had other classes.
      own: the model's own initial variables.

    Returns:
      What to start from; the types are those of `own`.

    Raises:
      ValueError: naming the first leaf that does not fit.
    """
    theirs = traverse_util.flatten_dict(dict(loaded))
    merged, resized, fresh = {}, [], []
    for path, value in traverse_util.flatten_dict(dict(own)).items():
        name, value = "/".join(path[1:]), np.asarray(value)
        found = theirs.pop(path, None)
        if found is None:
            if path[1] != _HEAD:
                raise ValueError(
                    f"the checkpoint has no {name}; start from one of the same model "
                    "with the same options."
                )
            fresh.append(name)
            merged[path] = value
            continue
        fitted = _fit_leaf(path, np.asarray(found), value.shape)
        if fitted.shape != found.shape:
            resized.append(name)
        merged[path] = fitted.astype(value.dtype)
    dropped = ["/".join(path[1:]) for path in theirs]
    for path, name in zip(theirs, dropped, strict=True):
        if path[1] != _HEAD:
            raise ValueError(
                f"the checkpoint has {name}, which the model has not; start from one "
                "of the same model with the same options."
            )
    variables = {"batch_stats": {}, **traverse_util.unflatten_dict(merged)}
    return Start(variables, tuple(resized), tuple(fresh), tuple(dropped))


def apply_start(
    state: state_lib.TrainState,
    variables: Mapping[str, Any],
    *,
    shardings: state_lib.TrainState,
) -> state_lib.TrainState:
    """Puts variables into the state at step 0; averages start at them too.

    Args:
      state: at step 0; its optimiser has seen nothing.
      variables: {"params": ..., "batch_stats": ...}, host arrays.
      shardings: of the state.

    Returns:
      The state with these variables, in buffers of their own.
    """
    placed = {
        name: sharding.put_state(variables[name], getattr(shardings, name))
        for name in ("params", "batch_stats")
    }
    averages = ema_lib.init_ema(**placed) if state.ema else ()
    return state.replace(**placed, ema=averages)


def check_inputs(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], *, what: str
) -> None:
    """Refuses weights that learnt from images made ready in another way.

    Args:
      theirs: "channels", "mean" and "std" as the checkpoint notes them.
      ours: as the config has them.
      what: the checkpoint, for the message.

    Raises:
      ValueError: naming what differs; a size of the images that differs is no error.
    """
    for name in ("channels", "mean", "std"):
        if name in theirs and not _same(theirs[name], ours[name]):
            raise ValueError(
                f"{what} learnt with {name}={_shown(theirs[name])}, and data.{name} is "
                f"{_shown(ours[name])}; set --config.data.{name}="
                f"'{_shown(theirs[name])}', or --config.init.check_inputs=False to go "
                "on all the same."
            )


def _fit_leaf(
    path: tuple[str, ...], found: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    if found.shape == shape:
        return found
    name = "/".join(path[1:])
    if path[-1] == _BIAS_TABLE and found.shape[0] == shape[0]:
        side = relative_bias.table_side(np.zeros(shape))
        table = relative_bias.resize_table(jnp.asarray(found), size=(side, side))
        return np.asarray(table)
    if path[1] == _HEAD:
        raise ValueError(
            f"the checkpoint's {name} has shape {found.shape}, the model's {shape}; "
            "with other classes the head must be reset: --config.init.reset_head=True."
        )
    raise ValueError(
        f"the checkpoint's {name} has shape {found.shape}, the model's {shape}; start "
        "from one of the same model with the same options and channels."
    )


def _same(a: Any, b: Any) -> bool:
    if np.shape(a) != np.shape(b):
        return False
    return bool(np.allclose(a, b, rtol=0, atol=1e-6))


def _shown(value: Any) -> str:
    return str(tuple(value)) if np.ndim(value) else str(value)
