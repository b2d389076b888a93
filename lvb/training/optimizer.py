"""Optimisers of the recipes: clipping, AdamW or SGD, decay masks and rate multipliers.

Everything is composed from optax except adaptive gradient clipping, see
`adaptive_clip`. The functions look at paths and shapes of `params` only, so
`jax.eval_shape` trees serve as well as arrays.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

CLIP_MODES = ("none", "agc", "global_norm")


def scaled_lr(base_lr: float, *, batch_size: int, reference_batch_size: int) -> float:
    """Scales a learning rate linearly with the batch.

    Args:
      base_lr: the rate a paper states for `reference_batch_size`.
      batch_size: examples per optimiser step over all devices and accumulated
        micro-batches.
      reference_batch_size: the batch the paper's rate belongs to.

    Returns:
      base_lr * batch_size / reference_batch_size.
    """
    if batch_size <= 0 or reference_batch_size <= 0:
        raise ValueError(
            f"scaled_lr: batch_size={batch_size} and reference_batch_size="
            f"{reference_batch_size} must both be positive."
        )
    return base_lr * batch_size / reference_batch_size


def path_name(path: Sequence[Any]) -> str:
    """Joins a jax key path to the public form "stage2/block0/conv/kernel"."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def decay_mask(params: Any, no_decay: Sequence[str] = ()) -> Any:
    """Marks the parameters that weight decay applies to.

    Vectors and scalars are never decayed: every bias and every scale of a
    normalisation. The recipes name the rest (LSNet's attention bias tables, for one).

    Args:
      params: parameter tree, of arrays or shapes.
      no_decay: names exempt from decay, each a path component such as
        "attention_biases" or several in a row such as "stage3/memory". Whole
        components are compared, so "A" does not match "Attention".

    Returns:
      A tree of bools shaped like `params`, True where decay applies.
    """

    def decayed(path: Sequence[Any], leaf: Any) -> bool:
        name = f"/{path_name(path)}/"
        return len(leaf.shape) > 1 and not any(f"/{n}/" in name for n in no_decay)

    return jax.tree_util.tree_map_with_path(decayed, params)


def undecayed_names(params: Any, no_decay: Sequence[str] = ()) -> dict[str, int]:
    """Counts the undecayed leaves by the last name of their path.

    Args:
      params: parameter tree, of arrays or shapes.
      no_decay: as in `decay_mask`.

    Returns:
      For example {"attention_biases": 3, "bias": 120, "scale": 112}, sorted by name.
    """
    counts: dict[str, int] = {}
    mask = decay_mask(params, no_decay)
    for path, decayed in jax.tree_util.tree_leaves_with_path(mask):
        if not decayed:
            name = path_name(path[-1:])
            counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


def rate_tree(params: Any, layer_rates: Mapping[str, float]) -> Any:
    """Gives every parameter its learning-rate multiplier.

    Args:
      params: parameter tree, of arrays or shapes.
      layer_rates: path prefix, in whole components, to multiplier. The longest prefix
        that fits wins; a parameter that none fits gets 1.0; 0.0 freezes. For example
        {"backbone": 0.1, "backbone/stem": 0.0}.

    Returns:
      A tree of floats shaped like `params`.

    Raises:
      ValueError: if a prefix fits no parameter or a multiplier is negative.
    """
    prefixes = {prefix.strip("/"): float(r) for prefix, r in layer_rates.items()}
    unused = set(prefixes)

    def rate(path: Sequence[Any], leaf: Any) -> float:
        del leaf
        name = f"{path_name(path)}/"
        fitting = [prefix for prefix in prefixes if name.startswith(f"{prefix}/")]
        unused.difference_update(fitting)
        return prefixes[max(fitting, key=len)] if fitting else 1.0

    rates = jax.tree_util.tree_map_with_path(rate, params)
    if unused:
        top = sorted({path_name(p[:1]) for p, _ in jax.tree.leaves_with_path(params)})
        raise ValueError(
            f"layer_rates: no parameter path begins with {sorted(unused)[0]!r}; the "
            f"top-level names are {', '.join(top)}."
        )
    if any(r < 0 for r in prefixes.values()):
        raise ValueError(f"layer_rates: {dict(layer_rates)} has a negative multiplier.")
    return rates


def adaptive_clip(clip: float, eps: float = 1e-3) -> optax.GradientTransformation:
    """Adaptive gradient clipping, AGC (Brock et al., arXiv:2102.06171, Eq. 3).

    A unit's gradient G is scaled by min(1, clip * max(|W|, eps) / |G|), with W the
    unit's parameters and |.| the L2 norm. The floor `eps` lets parameters that start
    at zero leave it.

    `optax.adaptive_grad_clip` guesses the unit from the rank and differs from LSNet's
    released code in two places: it takes a (heads, offsets) attention bias table for a
    dense kernel, hence one unit per offset instead of one per head, and it squeezes a
    depthwise 1x1 kernel (1, 1, 1, C) to one unit instead of C. See `unit_norm`.

    Args:
      clip: largest ratio of gradient norm to parameter norm; 0.02 in LSNet Table 10.
      eps: floor of the parameter norm.

    Returns:
      A stateless transformation; its update needs `params`.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("adaptive_clip: update() came without params; pass them.")

        def scale(path: Sequence[Any], grad: jax.Array, param: jax.Array) -> jax.Array:
            is_kernel = path_name(path[-1:]) == "kernel"
            limit = clip * jnp.maximum(unit_norm(param, is_kernel=is_kernel), eps)
            norm = unit_norm(grad, is_kernel=is_kernel)
            # Dividing inside the branch taken keeps a zero gradient free of 0 / 0.
            ratio = limit / jnp.where(norm > limit, norm, limit)
            return (grad * ratio).astype(grad.dtype)

        return jax.tree_util.tree_map_with_path(scale, updates, params), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def unit_norm(x: jax.Array, *, is_kernel: bool) -> jax.Array:
    """Computes the L2 norm of each output unit, keeping reduced axes as 1.

    Args:
      x: a parameter or its gradient.
      is_kernel: True for convolution (kh, kw, in, out) and dense (in, out) kernels,
        whose units are the last axis. Any other matrix is a table whose rows, the
        first axis, are its units, as the heads of an attention bias table. A vector
        is one unit.

    Returns:
      Norms, broadcastable to `x`, float32.
    """
    x = x.astype(jnp.float32)
    if x.ndim <= 1:
        axes = tuple(range(x.ndim))
    else:
        axes = tuple(range(x.ndim - 1)) if is_kernel else tuple(range(1, x.ndim))
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))


def make_optimizer(
    name: str = "adamw",
    *,
    schedule: optax.Schedule,
    params: Any,
    weight_decay: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    momentum: float = 0.9,
    clip_mode: str | None = None,
    clip: float | None = None,
    no_decay: Sequence[str] = (),
    layer_rates: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """Builds clip -> optimiser with masked decay -> schedule -> rate multipliers.

    Args:
      name: "adamw" (decoupled decay, multiplied by the learning rate) or "sgd" (heavy
        ball, decay added to the gradient before the momentum, as in PyTorch).
      schedule: learning rate as a function of the step.
      params: parameter tree, of arrays or shapes; read for paths and ranks only.
      weight_decay: decay coefficient, constant over the run.
      b1: decay of AdamW's first moment.
      b2: decay of AdamW's second moment.
      eps: added to AdamW's denominator.
      momentum: SGD's momentum.
      clip_mode: None or "none", "agc" (see `adaptive_clip`) or "global_norm".
      clip: the ratio for "agc", the largest norm for "global_norm".
      no_decay: names exempt from decay, see `decay_mask`.
      layer_rates: learning-rate multipliers by path prefix, see `rate_tree`. Decay
        shrinks with the rate. A multiplier of 0 freezes: no update, no moments, and
        no share in the global norm.

    Returns:
      The transformation; its update needs `params`.

    Raises:
      ValueError: for an unknown word, or a clip that does not fit its mode.
    """
    mask = decay_mask(params, no_decay)
    decay = optax.add_decayed_weights(weight_decay, mask)
    if name == "adamw":
        parts = [optax.scale_by_adam(b1=b1, b2=b2, eps=eps), decay]
    elif name == "sgd":
        parts = [decay, optax.trace(decay=momentum)]
    else:
        raise ValueError(f"make_optimizer: {name!r} is unknown; use adamw or sgd.")
    parts = [*_clipping(clip_mode, clip), *parts]
    parts.append(optax.scale_by_learning_rate(schedule))
    tx = optax.chain(*parts)
    if not layer_rates:
        return tx
    rates = rate_tree(params, layer_rates)
    labels = jax.tree.map(lambda rate: "trained" if rate else "frozen", rates)
    if "frozen" in jax.tree.leaves(labels):
        tx = optax.transforms.partition(
            {"trained": tx, "frozen": optax.set_to_zero()}, labels
        )
    return optax.chain(tx, _scale_by_tree(rates))


def _clipping(
    clip_mode: str | None, clip: float | None
) -> list[optax.GradientTransformation]:
    clip_mode = clip_mode or "none"
    if clip_mode not in CLIP_MODES:
        raise ValueError(
            f"make_optimizer: clip_mode={clip_mode!r} is unknown; use one of "
            f"{', '.join(CLIP_MODES)}."
        )
    if clip_mode == "none":
        return []
    if clip is None or not 0 < clip < math.inf:
        raise ValueError(
            f"make_optimizer: clip_mode={clip_mode!r} came with clip={clip}; give a "
            "positive number, or clip_mode='none' for no clipping."
        )
    if clip_mode == "agc":
        return [adaptive_clip(clip)]
    return [optax.clip_by_global_norm(clip)]


def _scale_by_tree(rates: Any) -> optax.GradientTransformation:
    """Multiplies each update by its own constant."""
    return optax.stateless(
        lambda updates, params: jax.tree.map(lambda u, r: u * r, updates, rates)
    )
