"""Fully sharded data parallelism (FSDP): which arrays of the state are split, and how.

The mesh's second axis holds the parts of every large array: parameters, averages and
the optimiser's moments, which have the parameters' shapes. Images are split over both
axes, so that the devices of a group share work as well as memory (ZeRO, Rajbhandari et
al., SC 2020); XLA gathers a parameter where it is used and scatters its gradient.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from lvb.training import optimizer

# Ours: below 64 KiB in float32 an array costs more to gather than to keep.
MIN_ELEMENTS = 2**14


def partition_spec(
    shape: Sequence[int],
    *,
    axis: str,
    axis_size: int,
    min_elements: int = MIN_ELEMENTS,
) -> PartitionSpec:
    """Splits the longest dimension that divides evenly over a mesh axis.

    Args:
      shape: of an array.
      axis: name of the mesh axis.
      axis_size: devices along it.
      min_elements: smaller arrays stay whole.

    Returns:
      For example PartitionSpec(None, None, None, "model"); of equally long dimensions
      the last is split, which holds the output channels of a kernel. Empty where
      the array stays whole.
    """
    size = 1
    for length in shape:
        size *= length
    fitting = [
        (length, dimension)
        for dimension, length in enumerate(shape)
        if length % axis_size == 0
    ]
    if axis_size == 1 or size < min_elements or not fitting:
        return PartitionSpec()
    _, dimension = max(fitting)
    return PartitionSpec(*(None,) * dimension, axis)


def partition_state(
    shapes: Any,
    *,
    axis: str,
    axis_size: int,
    min_elements: int = MIN_ELEMENTS,
    whole: Sequence[str] = (),
) -> Any:
    """Applies `partition_spec` to every array of a train state.

    Args:
      shapes: the state, of arrays or shapes.
      axis: name of the mesh axis.
      axis_size: devices along it.
      min_elements: smaller arrays stay whole.
      whole: names that stay whole whatever their size, each a path component such
        as "head" or several in a row such as "stage1/block0".

    Returns:
      A tree of partition specs, shaped like the state.
    """

    def spec(path: Sequence[Any], leaf: Any) -> PartitionSpec:
        name = f"/{optimizer.path_name(path)}/"
        if any(f"/{kept}/" in name for kept in whole):
            return PartitionSpec()
        return partition_spec(
            leaf.shape, axis=axis, axis_size=axis_size, min_elements=min_elements
        )

    return jax.tree_util.tree_map_with_path(spec, shapes)


def split_share(shapes: Any, specs: Any) -> float:
    """The share of the state's bytes that is split, for the start of a run's log.

    Args:
      shapes: the state, of arrays or shapes.
      specs: from `partition_state`.

    Returns:
      In [0, 1]; each device keeps the rest whole.
    """
    leaves = jax.tree.leaves(shapes)
    flat = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, PartitionSpec))
    num_bytes = [leaf.size * leaf.dtype.itemsize for leaf in leaves]
    split = sum(n for n, spec in zip(num_bytes, flat, strict=True) if any(spec))
    return split / max(sum(num_bytes), 1)
