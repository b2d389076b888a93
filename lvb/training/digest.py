"""A fingerprint of arrays and of what was noted beside them."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util


def digest(arrays: Mapping[str, Any], *, notes: Mapping[str, Any]) -> str:
    """SHA-256 over every array's path, type, shape and bytes, and over the notes.

    Args:
      arrays: nested dictionaries of NumPy arrays; empty dictionaries do not count.
      notes: anything JSON can hold.

    Returns:
      64 hexadecimal digits, the same for equal content on any machine.
    """
    sha = hashlib.sha256()
    sha.update(canonical_json(notes).encode())
    flat = traverse_util.flatten_dict(arrays, sep="/")
    for path in sorted(flat):
        value = np.asarray(flat[path])
        little_endian = value.dtype.newbyteorder("<")
        header = f"\n{path} {value.dtype.name} {value.shape}\n"
        sha.update(header.encode())
        # As bytes through uint8, because bfloat16 has no buffer protocol.
        contiguous = np.ascontiguousarray(value, little_endian)
        sha.update(contiguous.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
