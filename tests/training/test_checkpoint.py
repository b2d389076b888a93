"""Checkpoints: what is saved, what is verified, what is kept."""

import json
import pathlib
import shutil
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from lvb.training import checkpoint, sharding


class Pair(NamedTuple):
    total: jax.Array
    count: jax.Array


class State(flax.struct.PyTreeNode):
    """A state with every kind of node that a real one has."""

    step: jax.Array
    params: dict
    opt_state: tuple
    ema: tuple
    window: dict


TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
NOTES = {"step": 0, "model": {"name": "x", "rate": 0.1}, "class_names": ["a", "é"]}


def make_state(number=0):
    params = {
        "stem": {"kernel": jnp.arange(12.0).reshape(3, 4) + number},
        "half": jnp.full((5,), 1.5, jnp.bfloat16),
    }
    return State(
        step=jnp.asarray(number, jnp.int32),
        params=params,
        opt_state=TX.init(params),
        ema=(),
        window={"loss": Pair(jnp.asarray(0.1), jnp.asarray(3))},
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with checkpoint.Saver(folder, keep_last=3) as saver:
        for number in (2, 4, 6):
            saver.save(make_state(number), step=number, notes={**NOTES, "step": number})
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of `saved` that a test may spoil."""
    return pathlib.Path(shutil.copytree(saved, tmp_path / "run" / "checkpoints"))


def restore(found, devices=8):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    shapes = jax.eval_shape(make_state)
    return checkpoint.restore_state(
        found, shapes, shardings=sharding.state_shardings(shapes, mesh)
    )


def test_what_comes_back_is_what_was_saved(saved):
    found = checkpoint.read(checkpoint.step_folder(saved, 4))
    assert found.notes == {**NOTES, "step": 4}
    assert found.arrays["params"]["half"].dtype == ml_dtypes.bfloat16
    assert found.arrays["step"].shape == ()


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_a_state_is_restored_to_any_number_of_devices(saved, devices):
    got = restore(checkpoint.read(checkpoint.step_folder(saved, 4)), devices)
    expected = make_state(4)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    types = [[x.dtype for x in jax.tree.leaves(tree)] for tree in (got, expected)]
    assert types[0] == types[1]
    assert len(got.params["half"].sharding.device_set) == devices


def test_the_saved_copy_does_not_follow_a_donated_state(tmp_path):
    state = make_state(1)
    with checkpoint.Saver(tmp_path, keep_last=1) as saver:
        saver.save(state, step=1, notes=NOTES)
        jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)(state)
    found = checkpoint.read(checkpoint.step_folder(tmp_path, 1))
    expected = make_state(1).params["stem"]["kernel"]
    np.testing.assert_array_equal(found.arrays["params"]["stem"]["kernel"], expected)


def test_the_newest_whole_one_is_read(saved):
    messages = []
    found = checkpoint.read_newest(saved, report=messages.append)
    assert found.notes["step"] == 6
    assert messages == []


def test_nothing_is_read_where_nothing_is(tmp_path):
    assert checkpoint.read_newest(tmp_path / "none", report=print) is None
    (tmp_path / "00000003.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "notes").mkdir()
    assert checkpoint.read_newest(tmp_path, report=print) is None


def largest_file(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def truncate(folder):
    path = largest_file(folder / "state")
    path.write_bytes(path.read_bytes()[:-20])


def flip_array(folder):
    for path in (folder / "state").rglob("d/*"):
        flip(path, path.stat().st_size // 2)


def flip_notes(folder):
    path = folder / "metadata" / "metadata"
    path.write_text(path.read_text().replace("0.1", "0.2"))


def drop_manifest(folder):
    (folder / "state" / "manifest.ocdbt").unlink()


def drop_metadata(folder):
    shutil.rmtree(folder / "metadata")


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES = [truncate, flip_array, flip_notes, drop_manifest, drop_metadata, empty]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_named_kept_aside_and_the_one_before_used(folder, damage):
    newest = checkpoint.step_folder(folder, 6)
    damage(newest)
    messages = []
    found = checkpoint.read_newest(folder, report=messages.append)
    assert found.notes["step"] == 4
    assert len(messages) == 1
    assert f"checkpoint {newest} is damaged" in messages[0]
    aside = folder.parent / checkpoint.DAMAGED / newest.name
    assert str(aside) in messages[0]
    assert aside.is_dir()
    assert checkpoint.steps_on_disk(folder) == [2, 4]


def test_a_second_damaged_one_does_not_replace_the_first(folder):
    for number in (0, 1):
        newest = checkpoint.step_folder(folder, 6)
        if number:
            newest.mkdir()
        else:
            flip_notes(newest)
        checkpoint.read_newest(folder, report=lambda text: None)
    names = sorted(p.name for p in (folder.parent / checkpoint.DAMAGED).iterdir())
    assert names == ["00000006", "00000006_1"]


def test_a_run_with_damaged_ones_only_does_not_start_anew(folder):
    for step in (2, 4, 6):
        flip_notes(checkpoint.step_folder(folder, step))
    with pytest.raises(checkpoint.CheckpointError, match="all 3 checkpoints"):
        checkpoint.read_newest(folder, report=lambda text: None)


def test_a_changed_byte_in_any_file_is_seen_or_harmless(saved, tmp_path):
    """Whatever single byte changes, what is read is what was saved, or nothing."""
    source = checkpoint.step_folder(saved, 4)
    expected = checkpoint.read(source)
    files = [path for path in source.rglob("*") if path.stat().st_size > 0]
    refused = 0
    for number, path in enumerate(path for path in files if path.is_file()):
        copy = pathlib.Path(shutil.copytree(source, tmp_path / str(number)))
        flip(copy / path.relative_to(source), path.stat().st_size // 2)
        try:
            found = checkpoint.read(copy)
        except checkpoint.CheckpointError:
            refused += 1
            continue
        assert found.notes == expected.notes
        jax.tree.map(np.testing.assert_array_equal, found.arrays, expected.arrays)
    assert refused > 0


def test_what_no_other_checksum_sees_is_told_by_the_digest(folder):
    path = checkpoint.step_folder(folder, 4)
    flip_notes(path)
    with pytest.raises(checkpoint.CheckpointError, match=r"its digest is [0-9a-f]{12}"):
        checkpoint.read(path)


def test_notes_can_be_read_alone(folder):
    path = checkpoint.step_folder(folder, 4)
    assert checkpoint.read_notes(path)["step"] == 4
    drop_metadata(path)
    with pytest.raises(checkpoint.CheckpointError, match="is damaged"):
        checkpoint.read_notes(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p | {"new": jnp.zeros(2)}, r"params/new is nothing, not \(2,\)"),
        (lambda p: {"half": p["half"]}, "the model, which has no params/stem/kernel"),
        (lambda p: p | {"half": p["half"][:3]}, r"params/half is \(5,\) bfloat16, not"),
        (lambda p: p | {"half": jnp.zeros(5)}, r"not \(5,\) float32"),
    ],
)
def test_another_model_is_refused_by_the_first_leaf(saved, change, message):
    found = checkpoint.read(checkpoint.step_folder(saved, 4))
    state = make_state()
    shapes = jax.eval_shape(lambda: state.replace(params=change(state.params)))
    mesh = sharding.make_mesh()
    with pytest.raises(checkpoint.CheckpointError, match=message):
        checkpoint.restore_state(
            found, shapes, shardings=sharding.state_shardings(shapes, mesh)
        )


def test_last_best_and_every_kth_are_kept(tmp_path):
    with checkpoint.Saver(tmp_path, keep_last=2, keep_every=4) as saver:
        for step in range(1, 10):
            best = min(step, 3)  # Step 3 stays the best.
            saver.save(make_state(step), step=step, notes=NOTES, best_step=best)
            assert saver.newest == step
            saver.check()
    assert checkpoint.steps_on_disk(tmp_path) == [3, 4, 8, 9]
    with checkpoint.Saver(tmp_path, keep_last=1) as saver:
        assert saver.newest == 9
        saver.save(make_state(10), step=10, notes=NOTES)
    assert checkpoint.steps_on_disk(tmp_path) == [10]


def test_at_least_one_is_kept(tmp_path):
    with pytest.raises(ValueError, match="keep at least 1"):
        checkpoint.Saver(tmp_path, keep_last=0)


def test_half_written_folders_are_cleared(tmp_path):
    with checkpoint.Saver(tmp_path, keep_last=1) as saver:
        saver.save(make_state(), step=1, notes=NOTES)
    left = tmp_path / "00000002.orbax-checkpoint-tmp"
    shutil.copytree(checkpoint.step_folder(tmp_path, 1), left)
    with checkpoint.Saver(tmp_path, keep_last=1):
        assert not left.exists()


@pytest.mark.parametrize("method", ["save", "check_for_errors", "wait_until_finished"])
def test_a_failed_save_is_told_and_the_next_one_works(tmp_path, monkeypatch, method):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    def save_check_wait(saver):
        saver.save(make_state(2), step=2, notes=NOTES)
        saver.check()
        saver.wait()

    with checkpoint.Saver(tmp_path, keep_last=2) as saver:
        with monkeypatch.context() as patch:
            patch.setattr(saver._manager, method, fail)
            with pytest.raises(checkpoint.CheckpointError, match="No space") as error:
                save_check_wait(saver)
        assert str(error.value).startswith(f"saving step 2 to {tmp_path} failed")
        saver.save(make_state(3), step=3, notes=NOTES)
    assert checkpoint.steps_on_disk(tmp_path)[-1] == 3


def test_notes_are_plain_json(saved):
    path = checkpoint.step_folder(saved, 6) / "metadata" / "metadata"
    held = json.loads(path.read_text())
    assert set(held) == {"digest", "notes"}
    assert len(held["digest"]) == 64
