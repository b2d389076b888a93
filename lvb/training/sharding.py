"""Where arrays live: a mesh over all devices, batches split, the state on each.

With a second axis of the mesh, large arrays of the state are split over it, see `fsdp`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lvb.training import allocator, fsdp

# Batches are split over both, large arrays of the state over "model".
AXES = ("data", "model")


def make_mesh(devices: list[jax.Device] | None = None, *, model_axis: int = 1) -> Mesh:
    """Makes a mesh; one device is a mesh of one.

    Args:
      devices: all of this run if None.
      model_axis: devices that share one copy of the state.

    Raises:
      ValueError: if the devices do not divide by it.
    """
    devices = devices or jax.devices()
    if model_axis < 1 or len(devices) % model_axis:
        raise ValueError(
            f"sharding.model_axis={model_axis} does not divide the {len(devices)} "
            "devices; use a divisor, or 1 for a copy of the state on each."
        )
    types = (jax.sharding.AxisType.Auto,) * len(AXES)
    shape = (len(devices) // model_axis, model_axis)
    return jax.make_mesh(shape, AXES, types, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Puts a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(
    shapes: Any,
    mesh: Mesh,
    *,
    min_elements: int = fsdp.MIN_ELEMENTS,
    whole: Sequence[str] = (),
) -> Any:
    """Gives every leaf of the state its sharding.

    Args:
      shapes: of the state.
      mesh: its second axis splits large arrays; if that has one device, all are
        replicated.
      min_elements: see `fsdp.partition_state`.
      whole: see there.
    """
    specs = fsdp.partition_state(
        shapes,
        axis=AXES[1],
        axis_size=mesh.shape[AXES[1]],
        min_elements=min_elements,
        whole=whole,
    )
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        specs,
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )


def put_batch(
    batch: Mapping[str, np.ndarray], mesh: Mesh, *, names: tuple[str, ...]
) -> dict[str, jax.Array]:
    """Makes global arrays of this host's rows.

    Args:
      batch: host arrays, each with this host's rows first.
      mesh: of all devices.
      names: which entries go to the devices.

    Returns:
      Global arrays, the hosts' rows in the order of their devices.
    """
    sharding = batch_sharding(mesh)
    arrays = {
        name: jax.make_array_from_process_local_data(sharding, batch[name])
        for name in names
    }
    return allocator.settle(arrays)


def put_key(seed: int, mesh: Mesh) -> jax.Array:
    """Puts the random key of a seed on all devices."""
    # Made there: a key of one host cannot be put on devices of another.
    return jax.jit(lambda: jax.random.key(seed), out_shardings=replicated(mesh))()


def put_replicated(tree: Any, mesh: Mesh) -> Any:
    """Puts host arrays, the same on every host, whole on every device."""
    return put_state(tree, jax.tree.map(lambda _: replicated(mesh), tree))


def put_state(tree: Any, shardings: Any) -> Any:
    """Puts host arrays, the same on every host, on the devices."""

    def put(value: np.ndarray, sharding: NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(
            value.shape, sharding, lambda index: value[index]
        )

    return jax.tree.map(put, tree, shardings)


def to_host(tree: Any) -> Any:
    """Copies arrays to this host as NumPy arrays of their own memory.

    A leaf that is split over hosts is gathered first, by all of them together.
    """

    def fetch(x: jax.Array) -> np.ndarray:
        if isinstance(x, jax.Array) and not (
            x.is_fully_addressable or x.is_fully_replicated
        ):
            # Here, because the module starts a backend when it is imported.
            from jax.experimental import multihost_utils

            return np.array(multihost_utils.process_allgather(x, tiled=True))
        return np.array(x)  # A copy: on CPU the array may be the donated buffer.

    return jax.tree.map(fetch, tree)


def any_host(flag: bool, *, when: bool) -> bool:
    """Whether the flag is set on any host; all hosts must ask together.

    Args:
      flag: of this host.
      when: whether to ask the others now, the same on every host; asking makes them
        wait for one another. One host alone always gets its own flag.
    """
    if jax.process_count() == 1:
        return flag
    if not when:
        return False
    from jax.experimental import multihost_utils  # Its import starts a backend.

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def check_batch_size(batch_size: int, mesh: Mesh, *, grad_accum: int) -> None:
    """Refuses a training batch that does not split evenly.

    Args:
      batch_size: images per step, over all devices and micro-batches.
      mesh: of all devices.
      grad_accum: micro-batches per step.

    Raises:
      ValueError: naming the nearest sizes that fit.
    """
    unit = mesh.devices.size * grad_accum
    if batch_size > 0 and grad_accum > 0 and batch_size % unit == 0:
        return
    near = max(batch_size // unit, 1) * unit if unit > 0 else mesh.devices.size
    raise ValueError(
        f"batch_size={batch_size} does not split over {mesh.devices.size} devices x "
        f"grad_accum={grad_accum}; use a multiple of {unit}, for example {near}."
    )


def round_up(batch_size: int, mesh: Mesh) -> int:
    """Returns the next multiple of the device count; evaluation pads to it."""
    devices = mesh.devices.size
    return -(-batch_size // devices) * devices
