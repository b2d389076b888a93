"""Exact evaluation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lvb.training import evaluation, sharding


class Mean(NamedTuple):
    total: jax.Array
    count: jax.Array


def eval_step(variables, totals, batch):
    """Counts values that are `variables`."""
    right = (batch["value"] == variables) & batch["mask"]
    new = {"hits": Mean(right.sum(dtype=jnp.int32), batch["mask"].sum(dtype=jnp.int32))}
    return jax.tree.map(jnp.add, totals, new)


ZERO = {"hits": Mean(jnp.int32(0), jnp.int32(0))}


def batches_of(values, size, mesh):
    size = sharding.round_up(size, mesh)
    padded = -(-len(values) // size) * size
    mask = np.arange(padded) < len(values)
    values = np.resize(values, padded)
    for start in range(0, padded, size):
        rows = slice(start, start + size)
        yield sharding.put_batch(
            {"value": values[rows], "mask": mask[rows]}, mesh, names=("value", "mask")
        )


@pytest.mark.parametrize("num_examples", [1, 2, 7, 8, 9, 63, 64, 65, 297])
@pytest.mark.parametrize("batch_size", [1, 8, 64])
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_counts_equal_a_plain_loop(num_examples, batch_size, devices):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    values = np.random.default_rng(0).integers(0, 3, num_examples)
    result = evaluation.evaluate(
        jax.jit(eval_step),
        1,
        batches_of(values, batch_size, mesh),
        totals=jax.device_put(ZERO, sharding.replicated(mesh)),
        num_examples=num_examples,
    )
    assert result.totals == {"hits": sum(int(v) == 1 for v in values)}
    assert isinstance(result.totals["hits"], int)
    assert result.means["hits"] == result.totals["hits"] / num_examples


@pytest.mark.parametrize("wrong", [296, 298])
def test_a_wrong_number_of_examples_is_an_error(wrong):
    mesh = sharding.make_mesh()
    with pytest.raises(RuntimeError, match=f"counted 297 examples .* are {wrong}"):
        evaluation.evaluate(
            jax.jit(eval_step),
            1,
            batches_of(np.zeros(297, int), 64, mesh),
            totals=ZERO,
            num_examples=wrong,
        )


def test_it_can_be_left_between_batches():
    calls = []

    def between():
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt

    mesh = sharding.make_mesh()
    with pytest.raises(KeyboardInterrupt):
        evaluation.evaluate(
            jax.jit(eval_step),
            1,
            batches_of(np.zeros(64, int), 8, mesh),
            totals=ZERO,
            num_examples=64,
            between=between,
        )
    assert len(calls) == 3
