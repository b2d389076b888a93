"""Where arrays live."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lvb.training import sharding


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh()


def test_the_mesh_has_all_devices_on_the_data_axis(mesh):
    assert dict(mesh.shape) == {"data": 8, "model": 1}
    assert sharding.make_mesh(jax.devices()[:1]).devices.size == 1


def test_batches_are_split_in_order(mesh):
    batch = {"image": np.arange(16)[:, None], "index": np.zeros(16)}
    placed = sharding.put_batch(batch, mesh, names=("image",))
    assert set(placed) == {"image"}
    shards = placed["image"].addressable_shards
    assert [s.data[:, 0].tolist() for s in shards][:2] == [[0, 1], [2, 3]]


def test_states_are_replicated_and_come_back_bit_for_bit(mesh):
    tree = {"a": np.arange(6.0, dtype=np.float32).reshape(2, 3), "b": np.int32(4)}
    placed = sharding.put_state(tree, sharding.state_shardings(tree, mesh))
    assert all(x.is_fully_replicated for x in jax.tree.leaves(placed))
    back = sharding.to_host(placed)
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    assert back["b"].dtype == np.int32


def test_host_copies_survive_donation():
    x = jnp.arange(1000.0)
    copy = sharding.to_host({"x": x})["x"]
    jax.jit(lambda y: y * 0 - 1, donate_argnums=0)(x)
    np.testing.assert_array_equal(copy, np.arange(1000.0))
    assert copy.base is None


def test_the_key_is_that_of_the_seed(mesh):
    key = sharding.put_key(3, mesh)
    assert jnp.array_equal(
        jax.random.key_data(key), jax.random.key_data(jax.random.key(3))
    )
    assert key.is_fully_replicated


@pytest.mark.parametrize(("batch_size", "grad_accum"), [(8, 1), (64, 8), (16, 2)])
def test_batches_that_split_evenly_pass(mesh, batch_size, grad_accum):
    sharding.check_batch_size(batch_size, mesh, grad_accum=grad_accum)


@pytest.mark.parametrize(
    ("batch_size", "grad_accum", "near"),
    [(12, 1, 8), (100, 1, 96), (1, 1, 8), (24, 2, 16), (0, 1, 8)],
)
def test_others_are_refused_with_a_size_that_fits(mesh, batch_size, grad_accum, near):
    with pytest.raises(ValueError, match=f"for example {near}\\.") as error:
        sharding.check_batch_size(batch_size, mesh, grad_accum=grad_accum)
    assert f"batch_size={batch_size}" in str(error.value)


@pytest.mark.parametrize(("size", "rounded"), [(1, 8), (8, 8), (9, 16), (64, 64)])
def test_evaluation_batches_are_rounded_up(mesh, size, rounded):
    assert sharding.round_up(size, mesh) == rounded


@pytest.mark.parametrize("flag", [True, False])
def test_one_host_gets_its_own_flag(flag):
    assert sharding.any_host(flag, when=False) is flag
