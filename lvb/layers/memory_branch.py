"""The neural memory as a layer on feature maps, ConvNeur §3.3."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from lvb.layers import conv, module, norm
from lvb.ops import contraction, forms, memory_scan, neural_memory, token_chunks

POOLS = ("attention", "mean")
RECURRENCES = ("scan", "associative")
TOKEN_REDUCES = ("mean", "sum")
_EXPANSION = 4  # Hidden width of M over d; the published counts fit no other.
_RMS_EPSILON = 1.2e-7  # One unit in the last place of float32, PyTorch's default.


class StoreSignals(NamedTuple):
    """What the tokens of each written chunk say about their update.

    Attributes:
      keys: k, (B, U, L, d).
      values: v, (B, U, L, d).
      steps: sigma(w_theta s + b_theta) of every token, (B, U, L), in (0, 1).
      momentum: eta, (B, U), in (0, 1).
      decay: alpha, (B, U), in (0, 1).
    """

    keys: jax.Array
    values: jax.Array
    steps: jax.Array
    momentum: jax.Array
    decay: jax.Array


class Store(module.Layer):
    """The learned generators of the update, Eqs. (1) and (4): tokens to signals.

        s = RMSNorm(S),  k = s W_k,  v = s W_v
        theta_i = sigma(w_theta s_i + b_theta) per token
        r = pooled s,  eta = sigma(w_eta r + b_eta),  alpha = sigma(w_alpha r + b_alpha)

    Attributes:
      pool: how a chunk is summed up in r: "attention" (learned, per channel; the plain
        mean at initialisation) or "mean".
      momentum_bias: initial b_eta.
      decay_bias: initial b_alpha; -3 forgets 5 % per chunk, 0 half of everything.
    """

    pool: str = "attention"
    momentum_bias: float = 0.0
    decay_bias: float = -3.0

    @nn.compact
    def __call__(self, tokens: jax.Array, *, mask: np.ndarray) -> StoreSignals:
        """Reads the signals off (B, U, L, d) tokens; mask (U, L) marks the valid."""
        tokens = _rms_norm(tokens, self, name="norm")
        keys, values = (
            _project(tokens, self, name=name).astype(tokens.dtype)
            for name in ("key", "value")
        )
        logits = None
        if self.pool == "attention":
            logits = nn.Dense(
                tokens.shape[-1],
                kernel_init=nn.initializers.zeros,
                dot_general=_product(self),
                name="pool",
                **self.dtypes,
            )(tokens).astype(tokens.dtype)
        summary = token_chunks.pool_chunks(
            tokens, mask, logits=logits, as_product=_is_cpu_form(self)
        )  # (B, U, d)
        return StoreSignals(
            keys=keys,
            values=values,
            steps=self._rate("step", tokens, bias=0.0),
            momentum=self._rate("momentum", summary, bias=self.momentum_bias),
            decay=self._rate("decay", summary, bias=self.decay_bias),
        )

    def _rate(self, name: str, x: jax.Array, *, bias: float) -> jax.Array:
        """A sigmoid unit on the last axis, (..., d) -> (...), float32."""
        logits = nn.Dense(
            1,
            kernel_init=conv.trunc_normal(0.02),
            bias_init=nn.initializers.constant(bias),
            dtype=x.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )(x)
        return nn.sigmoid(logits[..., 0])


class NeuralMemory(module.Layer):
    """A memory per image, written while it is read: (B, H, W, d) -> (B, H, W, d).

    Collecting "intermediates" stores, per image and written chunk, the inner loss
    before and after the update, the norms of gradient, weights and update, momentum,
    decay and the mean step; a map of one chunk stores none.

    Attributes:
      chunk_size: L, tokens of a chunk; the last one may hold fewer.
      chunk_layout: "raster" or "window", see `lvb.ops.token_chunks`.
      read: "before" or "after" the chunk's own update, see `lvb.ops.memory_scan`.
      grad_at: "previous" or "initial", see `UpdateRule`.
      token_reduce: whether the inner loss is the "mean" or the "sum" over a chunk.
      inner_lr: lambda, the largest step of a token.
      inner_clip: c of the smooth clip on the inner gradient; 0 is off.
      inner_second_order: see `UpdateRule.second_order`.
      inner_dtype: type of the factors of the fast-weight products.
      norm_epsilon: of the layer norm inside the memory.
      momentum_bias: see `Store`.
      decay_bias: see `Store`.
      pool: see `Store`.
      bptt_chunks: chunks over which the outer gradient follows the state; None is all.
      recurrence: "scan", or "associative" for all chunks in parallel, which needs
        `grad_at="initial"`.
    """

    chunk_size: int = 196
    chunk_layout: str = "raster"
    read: str = "before"
    grad_at: str = "previous"
    token_reduce: str = "mean"
    inner_lr: float = 1.0
    inner_clip: float = 1.0
    inner_second_order: bool = True
    inner_dtype: DTypeLike = jnp.float32
    norm_epsilon: float = 1e-3
    momentum_bias: float = 0.0
    decay_bias: float = -3.0
    pool: str = "attention"
    bptt_chunks: int | None = None
    recurrence: str = "scan"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train
        self._check()
        height, width = x.shape[1:3]
        grid = token_chunks.chunk_grid(
            height, width, chunk_size=self.chunk_size, layout=self.chunk_layout
        )
        tokens = token_chunks.split(x, grid)  # (B, T, L, d)
        # What the last chunk would write is never read, Eq. (2). With one chunk nothing
        # is written: the store sees no token and gets a zero gradient.
        num_writes = tokens.shape[1] - (self.read == "before")
        mask = token_chunks.valid_tokens(grid)[:num_writes]  # (U, L)
        signals = self._store(name="store")(tokens[:, :num_writes], mask=mask)
        queries = _project(
            _rms_norm(tokens, self, name="retrieve_norm"), self, name="query"
        )
        outputs, trace = self._run(queries, self._writes(signals, mask))
        if trace is not None:
            self._sow(trace, signals)
        y = token_chunks.merge(outputs, grid, height=height, width=width)
        return y.astype(self.dtype)

    def _store(self, name: str) -> Store:
        return Store(
            pool=self.pool,
            momentum_bias=self.momentum_bias,
            decay_bias=self.decay_bias,
            name=name,
            **self.inherited,
        )

    def _writes(
        self, signals: StoreSignals, mask: np.ndarray
    ) -> neural_memory.ChunkWrites:
        """The signals with the steps scaled to the weights of the tokens in J."""
        counts = mask.sum(axis=1, keepdims=True)  # (U, 1)
        scale = self.inner_lr * mask / (counts if self.token_reduce == "mean" else 1)
        return neural_memory.ChunkWrites(
            keys=signals.keys,
            values=signals.values,
            token_weights=signals.steps * scale.astype(signals.steps.dtype)[None],
            momentum=signals.momentum,
            decay=signals.decay,
        )

    def _run(
        self, queries: jax.Array, writes: neural_memory.ChunkWrites
    ) -> tuple[jax.Array, memory_scan.MemoryTrace | None]:
        options = dict(
            initial=self._initial_weights(queries.shape[-1]),
            rule=neural_memory.UpdateRule(
                grad_at=self.grad_at,
                clip=self.inner_clip,
                norm_epsilon=self.norm_epsilon,
                second_order=self.inner_second_order,
                dtype=self.inner_dtype,
                analytic=_is_cpu_form(self),
            ),
            read=self.read,
            trace=self.is_mutable_collection("intermediates"),
        )
        if self.recurrence == "associative":
            return memory_scan.associative_memory(queries, writes, **options)
        return memory_scan.scan_memory(
            queries,
            writes,
            bptt_chunks=self.bptt_chunks,
            native=forms.takes_native(self.op_form),
            **options,
        )

    def _initial_weights(self, width: int) -> neural_memory.MemoryWeights:
        """M_0, learned; every image starts from it."""
        glorot, hidden = nn.initializers.glorot_uniform(), _EXPANSION * width
        param = self.param_dtype
        weights = neural_memory.MemoryWeights(
            hidden=self.param("initial_hidden", glorot, (width, hidden), param),
            output=self.param("initial_output", glorot, (hidden, width), param).T,
            gain=self.param("initial_gain", nn.initializers.zeros, (width,), param),
        )
        wide = jnp.promote_types(param, jnp.float32)
        return jax.tree.map(lambda w: w.astype(wide), weights)

    def _sow(self, trace: memory_scan.MemoryTrace, signals: StoreSignals) -> None:
        for name, value in trace._asdict().items():
            self.sow("intermediates", name, value)
        self.sow("intermediates", "momentum", signals.momentum)
        self.sow("intermediates", "decay", signals.decay)
        self.sow("intermediates", "step", self.inner_lr * signals.steps.mean(axis=-1))

    def _check(self) -> None:
        for name, choices in (
            ("pool", POOLS),
            ("recurrence", RECURRENCES),
            ("token_reduce", TOKEN_REDUCES),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"memory: {name}={getattr(self, name)!r} is unknown; use one of "
                    f"{choices}."
                )
        if self.bptt_chunks is not None and self.recurrence == "associative":
            raise ValueError(
                f"memory: bptt_chunks={self.bptt_chunks} needs a state carried from "
                'chunk to chunk; use recurrence="scan".'
            )
        if self.bptt_chunks is not None and self.bptt_chunks < 2:
            raise ValueError(
                f"memory: bptt_chunks={self.bptt_chunks} cuts every write off from the "
                "reads that it could learn from; use 2 or more, or None."
            )
        for name in ("inner_lr", "inner_clip"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"memory: {name}={getattr(self, name)} is negative; use 0 or more."
                )


def _rms_norm(x: jax.Array, layer: module.Layer, *, name: str) -> jax.Array:
    """RMSNorm over channels, float32 at least in and out."""
    return norm.RMSNorm(epsilon=_RMS_EPSILON, name=name, **layer.inherited)(x)


def _is_cpu_form(layer: module.Layer) -> bool:
    return forms.resolve(layer.op_form) == "shift"


def _project(x: jax.Array, layer: module.Layer, *, name: str) -> jax.Array:
    """A square linear map without bias, W_q, W_k or W_v of Eq. (1)."""
    return nn.Dense(
        x.shape[-1],
        use_bias=False,
        kernel_init=conv.trunc_normal(0.02),
        dot_general=_product(layer),
        name=name,
        **layer.dtypes,
    )(x)


def _product(layer: module.Layer) -> Callable[..., jax.Array] | None:
    """The product of a dense layer; None is Flax's own.

    On CPUs the gradient of the kernel comes out as it lies: `jax.grad` of Flax's makes
    XLA copy the slopes of all tokens turned around.
    """
    return _rows_by_kernel if _is_cpu_form(layer) else None


def _rows_by_kernel(
    x: jax.Array, kernel: jax.Array, dimensions: Any, precision: None
) -> jax.Array:
    """`lax.dot_general` as `nn.Dense` calls it: over the last axis of x."""
    del dimensions, precision
    rows = x.reshape(-1, x.shape[-1])
    y = contraction.contract_as_is(rows, kernel, (1, 0))
    return y.reshape(*x.shape[:-1], kernel.shape[-1])
