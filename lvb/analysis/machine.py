"""The machine and the software that a measurement belongs to."""

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterable
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "optax")


def describe(packages: tuple[str, ...] = PACKAGES) -> dict[str, Any]:
    """Everything about this process that moves a measured time.

    Args:
      packages: whose versions to note.

    Returns:
      JSON values: device, processor, cores and threads, flags and versions.
    """
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "num_devices": jax.device_count(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": threads(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "jax_flags": {
            name: value for name, value in os.environ.items() if name.startswith("JAX_")
        },
        "versions": {"python": platform.python_version(), **versions(packages)},
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of packages, those that are not installed left out."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """The name of the CPU, as far as the system tells, with family and model.

    A virtual machine may name the maker alone.
    """
    try:
        with open("/proc/cpuinfo") as file:
            core = file.read().split("\n\n", 1)[0]
    except OSError:
        core = ""
    facts = dict(re.findall(r"^(.*?)\s*: (.*)$", core, flags=re.MULTILINE))
    if "model name" not in facts:
        return platform.processor()
    if "cpu family" not in facts:
        return facts["model name"]
    return (
        f"{facts['model name']} (family {facts['cpu family']}, model {facts['model']})"
    )


def mapped_share() -> float:
    """How much of the pieces of memory that it may map this process has mapped.

    0 where the system does not tell; Linux does, of 65,530 unless set otherwise.
    """
    try:
        with open("/proc/sys/vm/max_map_count") as file:
            limit = int(file.read())
        with open("/proc/self/maps") as file:
            return sum(1 for _ in file) / limit
    except (OSError, ValueError):
        return 0.0


def threads() -> int:
    """Cores that this process may run on: the threads of XLA:CPU."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def pin(count: int) -> None:
    """Restricts this process to some of its cores, before JAX starts.

    Args:
      count: of cores; 0 leaves the process as it is.

    Raises:
      ValueError: if it has fewer, or the system cannot do it.
    """
    if not count:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError(
            f"--threads={count}: this system cannot pin a process; leave --threads out."
        )
    cores = sorted(os.sched_getaffinity(0))
    if not 0 < count <= len(cores):
        raise ValueError(
            f"--threads={count}: this process has {len(cores)} cores; use 1 to "
            f"{len(cores)}."
        )
    os.sched_setaffinity(0, cores[:count])
