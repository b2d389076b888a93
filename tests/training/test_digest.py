"""A fingerprint that changes with everything it covers and with nothing else."""

import ml_dtypes
import numpy as np
import pytest

from lvb.training import digest


def arrays():
    return {
        "params": {"a": np.arange(6, dtype=np.float32).reshape(2, 3)},
        "step": np.array(3, np.int32),
        "half": np.ones(2, ml_dtypes.bfloat16),
    }


NOTES = {"step": 3, "name": "x"}
# Pinned: checkpoints on disk hold such digests.
KNOWN = digest.digest(arrays(), notes=NOTES)


def test_the_value_is_pinned():
    expected = "5c7bb9ecf22d8c809dd207280faf2026254f5157f6afb97be86c8e5bdd55ca25"
    assert digest.digest(arrays(), notes=NOTES) == expected


def with_changed(path, value):
    tree = arrays()
    inner = tree
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return tree


@pytest.mark.parametrize(
    "tree",
    [
        with_changed(("params", "a"), np.arange(6, dtype=np.float32).reshape(3, 2)),
        with_changed(("params", "a"), np.arange(6, dtype=np.int32).reshape(2, 3)),
        with_changed(("params", "a"), -np.arange(6, dtype=np.float32).reshape(2, 3)),
        with_changed(("params", "b"), np.zeros(0, np.float32)),
        with_changed(("step",), np.array([3], np.int32)),
        with_changed(("half",), np.ones(2, np.float16)),
    ],
)
def test_every_change_of_an_array_shows(tree):
    assert digest.digest(tree, notes=NOTES) != KNOWN


def test_renaming_shows():
    tree = arrays()
    tree["other"] = tree.pop("params")
    assert digest.digest(tree, notes=NOTES) != KNOWN


def test_notes_show():
    assert digest.digest(arrays(), notes={**NOTES, "step": 4}) != KNOWN


def test_order_layout_and_empty_nodes_do_not_matter():
    tree = dict(reversed(arrays().items()))
    tree["params"] = {"a": np.asfortranarray(tree["params"]["a"])}
    tree["ema"] = {}
    notes = dict(reversed(NOTES.items()))
    assert digest.digest(tree, notes=notes) == KNOWN


def test_byte_order_does_not_matter():
    tree = with_changed(("step",), np.array(3, ">i4"))
    assert digest.digest(tree, notes=NOTES) == KNOWN
