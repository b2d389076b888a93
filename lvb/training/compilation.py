"""Ahead-of-time compilation: each step is compiled once, and it is known how long."""

import os
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from lvb.training import sharding

_CACHE_HIT = "/jax/compilation_cache/cache_hits"


class CompiledStep(NamedTuple):
    """An executable and what making it took.

    It accepts the shapes and types it was compiled for and no others, so it cannot be
    compiled a second time unnoticed: a batch that differs raises an error.

    Attributes:
      call: the executable.
      trace_seconds: time to trace and lower.
      compile_seconds: time to compile, or to load from the cache.
      cached: whether it came from the persistent cache.
      lower_seconds: what lowering took of `trace_seconds`.
    """

    call: Callable[..., Any]
    trace_seconds: float
    compile_seconds: float
    cached: bool
    lower_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Time to make it, all in all."""
        return self.trace_seconds + self.compile_seconds


def compile_step(
    function: Callable[..., Any],
    *args: Any,
    in_shardings: Any,
    out_shardings: Any,
    donate: tuple[int, ...] = (),
) -> CompiledStep:
    """Compiles a pure function for given shapes.

    Args:
      function: positional arguments only.
      *args: its arguments, arrays or `jax.ShapeDtypeStruct`s.
      in_shardings: of the arguments; a prefix of their tree.
      out_shardings: of the results; a prefix of their tree.
      donate: positions of arguments whose memory the results may take.

    Returns:
      The executable.
    """
    jitted = jax.jit(
        function,
        in_shardings=in_shardings,
        out_shardings=out_shardings,
        donate_argnums=donate,
    )
    hits = _CacheHits()
    start = time.perf_counter()
    traced = jitted.trace(*args)
    lowering = time.perf_counter()
    lowered = traced.lower()
    compiling = time.perf_counter()
    with hits:
        compiled = lowered.compile()
    return CompiledStep(
        call=compiled,
        trace_seconds=compiling - start,
        compile_seconds=time.perf_counter() - compiling,
        cached=hits.count > 0,
        lower_seconds=compiling - lowering,
    )


def run_once(function: Callable[..., Any], *args: Any, out_shardings: Any) -> Any:
    """Compiles fast rather than well, and calls: for what a process does once.

    On CPU most of the time to initialise a network goes into optimising the program
    that does it; without, it is ready six times sooner.
    """
    lowered = jax.jit(function, out_shardings=out_shardings).lower(*args)
    options = {"xla_backend_optimization_level": 0}
    on_cpu = jax.default_backend() == "cpu"
    return lowered.compile(compiler_options=options if on_cpu else None)(*args)


class Programs(NamedTuple):
    """The programs of a run.

    Attributes:
      train: (state, batch, seed's key, constants) -> state, metrics; the state is
        donated.
      eval: (variables, totals, batch) -> totals.
      health: (variables, batch) -> numbers by layer; None where there are none.
    """

    train: CompiledStep
    eval: CompiledStep
    health: CompiledStep | None = None


class Steps(Protocol):
    """What is compiled: pure functions and the shapes of their arguments.

    Attributes:
      train_step: see `Programs.train`.
      eval_step: see `Programs.eval`.
      health_step: see `Programs.health`.
      state: shapes of the training state.
      shardings: of the training state.
      constants: arrays that the training step reads and never changes.
      train_batch: shapes of a training batch.
      eval_batch: shapes of an evaluation batch.
      totals: shapes of the evaluation's totals.
    """

    train_step: Callable[..., Any]
    eval_step: Callable[..., Any]
    health_step: Callable[..., Any] | None
    state: Any
    shardings: Any
    constants: Any
    train_batch: Any
    eval_batch: Any
    totals: Any


def compile_programs(steps: Steps, *, mesh: jax.sharding.Mesh) -> Programs:
    """Compiles the steps, batches split over the devices, metrics replicated."""
    shardings = steps.shardings
    whole, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    health = None
    if steps.health_step is not None:
        health = compile_step(
            steps.health_step,
            steps.state.variables(),
            steps.train_batch,
            in_shardings=(shardings.variables(), split),
            out_shardings=whole,
        )
    return Programs(
        train=compile_step(
            steps.train_step,
            steps.state,
            steps.train_batch,
            jax.eval_shape(lambda: jax.random.key(0)),
            steps.constants,
            in_shardings=(shardings, split, whole, whole),
            out_shardings=(shardings, whole),
            donate=(0,),
        ),
        eval=compile_step(
            steps.eval_step,
            steps.state.variables(),
            steps.totals,
            steps.eval_batch,
            in_shardings=(shardings.variables(), whole, split),
            out_shardings=whole,
        ),
        health=health,
    )


def enable_cache(folder: str) -> pathlib.Path | None:
    """Keeps compiled programs on disk for the next process.

    Args:
      folder: where; "default" is `lvb/xla` in the user's cache folder
        ($XDG_CACHE_HOME or ~/.cache); "" switches the cache off. The environment
        variable JAX_COMPILATION_CACHE_DIR takes precedence over "default".

    Returns:
      The folder, or None when there is no cache.
    """
    if not folder:
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    path = pathlib.Path(folder)
    if folder == "default":
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        path = pathlib.Path(
            os.environ.get("JAX_COMPILATION_CACHE_DIR") or pathlib.Path(home, "lvb/xla")
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None  # A home that cannot be written costs time, not the run.
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", str(path))
    return path


class _CacheHits:
    """Counts the hits of the persistent cache inside a `with` block."""

    def __init__(self) -> None:
        self.count = 0

    def _listen(self, event: str, **attributes: Any) -> None:
        del attributes
        self.count += event == _CACHE_HIT

    def __enter__(self) -> None:
        jax.monitoring.register_event_listener(self._listen)

    def __exit__(self, *exception: object) -> None:
        jax.monitoring.unregister_event_listener(self._listen)
