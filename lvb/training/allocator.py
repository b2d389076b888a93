"""Memory of programs on CPUs, which the C library would give back after each step.

XLA:CPU asks for the memory of all of a program's maps at every call. glibc takes blocks
of that size from the system anew and gives them back afterwards, so that each page is
faulted in again at every step: half the time of a training step with 2 GB of maps.

glibc has one heap without a limit to its blocks, that of the process's first thread. So
programs are called in the thread that asks for them, which is JAX's synchronous
dispatch, and the threads among which XLA shares the work out keep heaps of their own:
compilation leaves the first one in 200,000 pieces, and to search it for the scratch
memory of each product made steps half as long again.
"""

import ctypes
import importlib.metadata
import importlib.util
import sys
from typing import Any

import jax

# Pixels of a batch from which its step is long. By waiting for it, steps of 64 digits
# of 32 px (65,000, 8 ms) lost a third; those of 16 images of 224 px (800,000, 200 ms)
# gained as much.
_LONG_STEP = 2**18

# (parameter, value) of mallopt(3): M_MMAP_MAX is 0, so that no block is from mmap;
# M_TRIM_THRESHOLD is -1, so that what is freed stays; M_TOP_PAD is the size of a heap
# of a thread, so that those stay, too.
_SETTINGS = ((-4, 0), (-1, -1), (-2, 1 << 26))


def keep_freed_memory() -> bool:
    """Lets this process reuse the memory that it frees; call it before JAX's first use.

    The process stays as large as it has been. Calls in its first thread return when
    they are done; `overlap_short_steps` undoes that. With an accelerator nothing
    changes: the maps are not in this memory.

    Returns:
      Whether it was done: on Linux with glibc, without an accelerator.
    """
    if not sys.platform.startswith("linux") or _may_use_accelerator():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    return all(mallopt(name, value) for name, value in _SETTINGS)


def overlap_short_steps(pixels: int) -> None:
    """Calls `overlap_steps` where that pays; see `_LONG_STEP`.

    Args:
      pixels: of a step's batch.
    """
    if pixels < _LONG_STEP:
        overlap_steps()


def overlap_steps() -> None:
    """Lets steps on CPUs run while the next is prepared, as JAX does by itself."""
    jax.config.update("jax_cpu_enable_async_dispatch", True)


def settle(inputs: Any) -> Any:
    """Waits for the inputs of a program that is to be called in this thread.

    Also without asynchronous dispatch JAX leaves a call to another thread if an input
    is still on its way: training runs on 16 images of 224 px then took a quarter
    longer. Where steps overlap, and with an accelerator, nothing waits.

    Args:
      inputs: arrays.

    Returns:
      The same arrays.
    """
    overlap = jax.config.read("jax_cpu_enable_async_dispatch")
    if not overlap and jax.default_backend() == "cpu":
        jax.block_until_ready(inputs)
    return inputs


def _may_use_accelerator() -> bool:
    """Whether JAX has a plugin for one; asking for devices would start them."""
    if jax.config.jax_platforms:
        return jax.config.jax_platforms != "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return bool(plugins) or importlib.util.find_spec("libtpu") is not None
