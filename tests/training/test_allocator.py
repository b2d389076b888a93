"""What a process frees on a CPU stays with it, unless there is an accelerator."""

import platform
import subprocess
import sys

import jax
import pytest

from lvb.training import allocator

# 100 MB, taken and given back in a thread, as XLA does; the pages faulted in the
# second time are printed.
_PROGRAM = """
import resource, sys, threading
from lvb.training import allocator

size = 100_000_000
if sys.argv[1] == "keep":
    assert allocator.keep_freed_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=lambda: bytes([1]) * size)
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


def second_faults(setting):
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
    assert second_faults("keep") < pages / 10 < second_faults("leave")


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
