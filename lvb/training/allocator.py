"""Memory of programs on CPUs, which the C library would give back after each step.

XLA:CPU asks for the memory of all of a program's maps at every call. glibc takes blocks
of that size from the system anew and gives them back afterwards, so that each page is
faulted in again at every step: half the time of a training step with 2 GB of maps.
"""

import ctypes
import importlib.metadata
import importlib.util
import sys

import jax

# (parameter, value) of mallopt(3): M_ARENA_MAX is 1, since other arenas hold no large
# blocks; M_MMAP_MAX is 0, so that none is from mmap; M_TRIM_THRESHOLD is -1, so that
# what is freed stays.
_SETTINGS = ((-8, 1), (-4, 0), (-1, -1))


def keep_freed_memory() -> bool:
    """Lets this process reuse the memory that it frees; call it before JAX's first use.

    The process stays as large as it has been. With an accelerator nothing changes: the
    maps are not in this memory, and many threads compile faster with arenas of their
    own.

    Returns:
      Whether it was done: on Linux with glibc, without an accelerator.
    """
    if not sys.platform.startswith("linux") or _may_use_accelerator():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(name, value) for name, value in _SETTINGS)


def _may_use_accelerator() -> bool:
    """Whether JAX has a plugin for one; asking for devices would start them."""
    if jax.config.jax_platforms:
        return jax.config.jax_platforms != "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return bool(plugins) or importlib.util.find_spec("libtpu") is not None
