"""Parameter counts."""

import math
from typing import Any

import jax


def count_params(tree: Any) -> int:
    """The number of parameters in a pytree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def count_by_module(params: Any, *, depth: int) -> dict[str, int]:
    """Parameters per module, the names being the first `depth` parts of the path.

    Args:
      params: nested dictionaries of arrays or shapes.
      depth: parts of the path to keep.

    Returns:
      Counts in the order of the tree, such as {"backbone/stage1": 23136}.
    """
    counts: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = "/".join(str(part.key) for part in path[:depth])
        counts[name] = counts.get(name, 0) + math.prod(leaf.shape)
    return counts
