"""What a process frees on a CPU stays with it, unless there is an accelerator."""

import platform
import subprocess
import sys

import jax
import pytest

from lvb.training import allocator

# A program with 100 MB of results; the median of the pages that 31 calls fault in is
# printed: a call may still grow the heap, one of the first often, later ones rarely.
# Each call has a new batch, whose place in memory makes JAX copy it.
_PROGRAM = """
import resource, statistics, sys
import jax, jax.numpy as jnp, numpy as np
from lvb.training import allocator, sharding

size = 100_000_000
if sys.argv[1] == "keep":
    assert allocator.keep_freed_memory()
    assert not jax.config.read("jax_cpu_enable_async_dispatch")

program = jax.jit(lambda batch: batch["image"][-1] + jnp.ones(size // 4))
rows = {"image": np.zeros(30_000_001, np.uint8)[1:]}
mesh = sharding.make_mesh(jax.devices()[:1])

def faults():
    batch = sharding.put_batch(rows, mesh, names=("image",))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    jax.block_until_ready(program(batch))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(statistics.median(faults() for _ in range(31)))
"""


def usual_faults(setting):
    found = subprocess.run(
        [sys.executable, "-c", _PROGRAM, setting],
        check=True,
        capture_output=True,
        text=True,
    )
    return int(found.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's setting")
def test_large_blocks_are_used_again():
    pages = 100_000_000 // 4096
    assert usual_faults("keep") < pages / 10 < usual_faults("leave")


def test_an_accelerator_leaves_memory_alone(monkeypatch):
    def refuse(name):
        raise AssertionError(f"the C library was opened: {name}")

    monkeypatch.setattr(allocator.ctypes, "CDLL", refuse)
    before = jax.config.jax_platforms
    try:
        jax.config.update("jax_platforms", "cuda")
        assert not allocator.keep_freed_memory()
    finally:
        jax.config.update("jax_platforms", before)


@pytest.mark.parametrize(
    ("pixels", "overlaps"), [(64 * 32**2, True), (16 * 224**2, False)]
)
def test_only_short_steps_overlap(pixels, overlaps):
    before = jax.config.read("jax_cpu_enable_async_dispatch")
    try:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        allocator.overlap_short_steps(pixels)
        assert jax.config.read("jax_cpu_enable_async_dispatch") == overlaps
    finally:
        jax.config.update("jax_cpu_enable_async_dispatch", before)


def test_a_plugin_may_be_an_accelerator(monkeypatch):
    monkeypatch.setattr(
        allocator.importlib.metadata, "entry_points", lambda group: [group]
    )
    before = jax.config.jax_platforms
    try:
        jax.config.update("jax_platforms", None)
        assert not allocator.keep_freed_memory()
    finally:
        jax.config.update("jax_platforms", before)
