"""A memory that is a network, trained by gradient descent as it reads, ConvNeur §3.3.

The memory M is a small network with weights of its own for every image. The tokens of
an image come in chunks; chunk t is first answered from what the earlier chunks left,

    y_t = M_{t-1}(q_t)                                                   Eq. (2)

and then written by one step of gradient descent with momentum and decay,

    J_t(M) = sum_i theta_{t,i} (1/d) |M(k_{t,i}) - v_{t,i}|^2            Eq. (3)
    V_t = eta_t V_{t-1} - clip(grad J_t(M_{t-1})),  V_0 = 0
    M_t = (1 - alpha_t) M_{t-1} + V_t                                    Eq. (4)

The gradient has two equal forms, `jax.grad` of J and the same written out, which is
faster on a CPU, forward and backward. This file is one chunk of one image;
`lvb.ops.memory_scan` walks over all of them.
Dimensions: L tokens of a chunk, d width. Weights, momentum and gradients keep the dtype
of M_0, which should be float32; only the matrix products follow `UpdateRule.dtype`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from lvb.ops import contraction, gelu, sums

GRADIENTS_AT = ("previous", "initial")
PRODUCT = "memory_product"  # Name of the matrix products, for `jax.checkpoint`.


class MemoryWeights(NamedTuple):
    """The weights of M, or anything of their shape (momentum, gradient).

    Attributes:
      hidden: W_1, (d, 4d).
      output: W_2 turned around, (d, 4d), as which a CPU computes its slope faster.
      gain: gamma, (d,).
    """

    hidden: jax.Array
    output: jax.Array
    gain: jax.Array


class MemoryState(NamedTuple):
    """What is carried from chunk to chunk: M_t and V_t."""

    weights: MemoryWeights
    momentum: MemoryWeights


class ChunkWrites(NamedTuple):
    """What writes a chunk into the memory.

    Attributes:
      keys: k, (L, d).
      values: v, (L, d).
      token_weights: theta of every token, (L,), already divided by the number of
        tokens if J is a mean, and 0 where a token is padding.
      momentum: eta, a scalar in [0, 1].
      decay: alpha, a scalar in [0, 1].
    """

    keys: jax.Array
    values: jax.Array
    token_weights: jax.Array
    momentum: jax.Array
    decay: jax.Array


class UpdateRule(NamedTuple):
    """The constants of the memory and of its update.

    Attributes:
      grad_at: weights at which the inner gradient is taken: "previous" is M_{t-1},
        Eq. (3); "initial" is M_0, as the titans-pytorch package does.
      clip: c of the smooth clip g c / sqrt(c^2 + |g|^2), per tensor; 0 is off.
      norm_epsilon: of the layer norm inside M. 1e-5 is too small for 80 chunks and
        more: where W_1 and W_2 fade, the norm divides by a vanishing deviation.
      second_order: whether the outer gradient sees that the inner gradient depends on
        the weights it is taken at; its dependence on keys, values and steps always
        counts.
      dtype: type of the factors of all matrix products; None is that of the weights.
      analytic: whether the inner gradient is written out, or `jax.grad` of the loss.
    """

    grad_at: str = "previous"
    clip: float = 1.0
    norm_epsilon: float = 1e-3
    second_order: bool = True
    dtype: DTypeLike | None = None
    analytic: bool = False


class Reaction(NamedTuple):
    """What lies between M and the read and the gradient of a chunk, see `react`.

    Rows of K keys come before L queries.

    Attributes:
      before: a = x W_1, (K + L, 4d).
      normalised: n, the output of the layer norm, (K + L, d).
      inverse_deviation: r of the layer norm, (K + L, 1).
      d_z: slope of J in the input of the layer norm, (K, d).
      d_hidden: slope of J in gelu(a), (K, 4d).
    """

    before: jax.Array
    normalised: jax.Array
    inverse_deviation: jax.Array
    d_z: jax.Array
    d_hidden: jax.Array


class _Activations(NamedTuple):
    """What M computes on its way.

    Attributes:
      before: a = x W_1, (L, 4d).
      hidden: gelu(a), (L, 4d).
      normalised: n, the output of the layer norm, (L, d).
      inverse_deviation: 1 / sqrt(variance + epsilon) of the layer norm, to be
        multiplied with (L, d).
      output: M(x), (L, d).
    """

    before: jax.Array
    hidden: jax.Array
    normalised: jax.Array
    inverse_deviation: jax.Array
    output: jax.Array


def memory_read(
    weights: MemoryWeights, tokens: jax.Array, *, rule: UpdateRule
) -> jax.Array:
    """The memory network applied to tokens, Eq. (2).

        M(x) = x + (1 + gamma) * LN(gelu(x W_1) W_2)

    with the exact GELU and a layer norm without parameters.

    Args:
      weights: M.
      tokens: x, (L, d).
      rule: gives `norm_epsilon` and `dtype`.

    Returns:
      (L, d), in the dtype of the weights.
    """
    return _activations(weights, tokens, rule=rule).output


def inner_loss(
    weights: MemoryWeights, write: ChunkWrites, *, rule: UpdateRule
) -> jax.Array:
    """How badly the memory recalls a chunk, Eq. (3), weighted by the tokens' steps.

        J = sum_i theta_i (1/d) |M(k_i) - v_i|^2

    Args:
      weights: M.
      write: keys, values and token weights of the chunk.
      rule: gives `norm_epsilon` and `dtype`.

    Returns:
      A scalar.
    """
    error = memory_read(weights, write.keys, rule=rule) - write.values  # (L, d)
    return jnp.sum(write.token_weights * jnp.mean(jnp.square(error), axis=-1))


def inner_gradient(
    weights: MemoryWeights, write: ChunkWrites, *, rule: UpdateRule
) -> MemoryWeights:
    """The slope of `inner_loss` in the memory's weights, the surprise of a chunk.

    Args:
      weights: M at which it is taken.
      write: keys, values and token weights of the chunk.
      rule: gives `norm_epsilon`, `dtype`, `second_order` and `analytic`.

    Returns:
      The gradient, not clipped.
    """
    if not rule.second_order:
        weights = lax.stop_gradient(weights)
    if not rule.analytic:
        return jax.grad(functools.partial(inner_loss, rule=rule))(weights, write)
    activations = _activations(weights, write.keys, rule=rule)
    return _analytic_gradient(weights, write, activations, rule=rule)[0]


def react(
    weights: MemoryWeights, tokens: jax.Array, write: ChunkWrites, *, rule: UpdateRule
) -> tuple[jax.Array, MemoryWeights, Reaction]:
    """`memory_read` and `inner_gradient` of the same weights, faster together.

    The keys and the queries of a chunk go through the memory as one matrix.

    Args:
      weights: M.
      tokens: x, (L, d).
      write: keys, values and token weights of the chunk.
      rule: as for the two, with `analytic` and `second_order`.

    Returns:
      M(x), (L, d), the gradient, not clipped, and what lies between.

    Raises:
      ValueError: if `rule` has not both `analytic` and `second_order`.
    """
    if not (rule.analytic and rule.second_order):
        raise ValueError(
            f"memory: analytic={rule.analytic} and second_order={rule.second_order} "
            "keep reads and gradients apart; use memory_read and inner_gradient."
        )
    num_keys = write.keys.shape[0]
    both = _activations(weights, jnp.concatenate([write.keys, tokens]), rule=rule)
    keys_part = _Activations(*(array[:num_keys] for array in both))
    gradient, d_z, d_hidden = _analytic_gradient(weights, write, keys_part, rule=rule)
    reaction = Reaction(
        both.before, both.normalised, both.inverse_deviation[:, :1], d_z, d_hidden
    )
    return both.output[num_keys:], gradient, reaction


def smooth_clip(gradient: MemoryWeights, clip: float) -> MemoryWeights:
    """Shrinks each tensor to a norm below `clip`: g c / sqrt(c^2 + |g|^2).

    Smooth everywhere, and the identity to first order at g = 0.

    Args:
      gradient: of one image.
      clip: c, positive; 0 leaves the gradient as it is.

    Returns:
      The clipped gradient.
    """
    if not clip:
        return gradient
    return jax.tree.map(
        lambda g: g * (clip * lax.rsqrt(clip**2 + jnp.sum(jnp.square(g)))), gradient
    )


def memory_update(
    state: MemoryState,
    write: ChunkWrites,
    *,
    initial: MemoryWeights,
    rule: UpdateRule,
) -> tuple[MemoryState, MemoryWeights]:
    """Writes one chunk into the memory, Eq. (4).

    Args:
      state: M_{t-1} and V_{t-1}.
      write: of chunk t.
      initial: M_0, used by `grad_at="initial"`.
      rule: the constants of the update.

    Returns:
      (M_t, V_t), and the gradient before the clip.
    """
    at = state.weights if rule.grad_at == "previous" else initial
    gradient = inner_gradient(at, write, rule=rule)
    return descend(state, gradient, write, rule=rule), gradient


def descend(
    state: MemoryState, gradient: MemoryWeights, write: ChunkWrites, *, rule: UpdateRule
) -> MemoryState:
    """The step of Eq. (4) along a gradient.

    Args:
      state: M_{t-1} and V_{t-1}.
      gradient: of J_t, not clipped.
      write: of chunk t; its momentum and decay count.
      rule: gives `clip`.

    Returns:
      M_t and V_t.
    """
    momentum = jax.tree.map(
        lambda v, g: write.momentum * v - g,
        state.momentum,
        smooth_clip(gradient, rule.clip),
    )
    weights = jax.tree.map(
        lambda m, v: (1 - write.decay) * m + v, state.weights, momentum
    )
    return MemoryState(weights, momentum)


def _activations(
    weights: MemoryWeights, tokens: jax.Array, *, rule: UpdateRule
) -> _Activations:
    """M with all that its gradient needs; see `memory_read`."""
    tokens = tokens.astype(weights.gain.dtype)
    before = matmul(tokens, weights.hidden, rule)  # (L, 4d)
    hidden = gelu.gelu(before)
    z = matmul(hidden, weights.output, rule, contract=(1, 1))  # (L, d)
    centred = z - jnp.mean(z, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    repeat_row, repeat_column = _repeats(z.shape, rule)
    inverse_deviation = repeat_column(lax.rsqrt(variance + rule.norm_epsilon))
    normalised = centred * inverse_deviation
    output = tokens + repeat_row((1 + weights.gain)[None]) * normalised
    return _Activations(before, hidden, normalised, inverse_deviation, output)


def _analytic_gradient(
    weights: MemoryWeights,
    write: ChunkWrites,
    activations: _Activations,
    *,
    rule: UpdateRule,
) -> tuple[MemoryWeights, jax.Array, jax.Array]:
    """The slope of `inner_loss`, by the chain rule from the output back.

    dM = 2 theta (M(k) - v) / d      dgamma = sum_i dM n      dn = (1 + gamma) dM
    dz = r (dn - mean dn - n mean(n dn)),  r the inverse deviation
    dW_2 = gelu(a)^T dz              dW_1 = k^T (gelu'(a) dz W_2^T)

    Returns it with dz and dz W_2^T.
    """
    keys = write.keys.astype(weights.gain.dtype)
    a, hidden, n, r, output = activations
    repeat_row, repeat_column = _repeats(n.shape, rule)
    steps = (2 / keys.shape[-1]) * write.token_weights[:, None]  # (L, 1)
    d_output = repeat_column(steps) * (output - write.values)  # (L, d)
    d_n = repeat_row((1 + weights.gain)[None]) * d_output
    overlap = sums.sum_columns(n * d_n, as_product=True) / keys.shape[-1]  # (L, 1)
    d_z = r * (d_n - jnp.mean(d_n, axis=-1, keepdims=True) - n * repeat_column(overlap))
    d_hidden = matmul(d_z, weights.output, rule)  # (L, 4d)
    gradient = MemoryWeights(
        hidden=matmul(keys, gelu.gelu_slope(a) * d_hidden, rule, contract=(0, 0)),
        output=matmul(d_z, hidden, rule, contract=(0, 0)),
        gain=sums.sum_rows(d_output * n, as_product=True)[0],
    )
    return gradient, d_z, d_hidden


def _repeats(
    shape: tuple[int, ...], rule: UpdateRule
) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
    """`sums.repeat_row` and `sums.repeat_column` to a matrix of a shape."""
    rows, columns = shape
    return (
        functools.partial(sums.repeat_row, rows=rows, as_product=rule.analytic),
        functools.partial(
            sums.repeat_column, columns=columns, as_product=rule.analytic
        ),
    )


def matmul(
    x: jax.Array,
    w: jax.Array,
    rule: UpdateRule,
    *,
    contract: tuple[int, int] = (1, 0),
) -> jax.Array:
    """The product of x and w, both rounded to `rule.dtype`, in the dtype of w.

    The sum is over the axes `contract` of the two, since XLA:CPU would carry out a
    transposition in front of the product.

    It comes out in `dtype` too and is widened afterwards. A bf16 product with
    `preferred_element_type=float32` would make the transposed product mix types, which
    XLA:CPU turned into NaN inside a scan (jax 0.10.2).
    """
    narrow = w.dtype if rule.dtype is None else rule.dtype
    x, y = x.astype(narrow), w.astype(narrow)
    if not rule.analytic:
        return contraction.contract(x, y, contract).astype(w.dtype)
    product = contraction.contract_as_is(x, y, contract).astype(w.dtype)
    return checkpoint_name(product, PRODUCT)
