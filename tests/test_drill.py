"""`python -m lvb.drill`: its toy size, its rows and its random kills."""

import re
import shutil
import sys

import pytest
import runs

from lvb import drill
from lvb.config import flags
from lvb.training import checkpoint, fault_matrix, outcome, process, workdir

SMALL = (
    "--config.model.dims=(8,8,16,16)",
    "--config.model.depths=(0,0,0,1)",
    "--config.model.drop_path_rate=0.1",
    "--config.mixup.mixup_alpha=0.8",
    "--config.ema.decay=0.9",
)

# Each row, and what is said of it: the messages that a user would see.
SAID = {
    "none: the unbroken run": "60 steps, SHA-256 ",
    "SIGKILL in compilation": "no checkpoint left whole",
    "SIGKILL in step": "left whole",
    "SIGKILL in save": "left whole",
    "SIGKILL in evaluation": "left whole",
    "SIGTERM in compilation": (
        "lvb.train: stopped by SIGTERM during compilation; nothing was lost, run the "
        "same command again to continue."
    ),
    "SIGTERM in step": "saved; run the same command again to continue.",
    "SIGTERM in save": "saved; run the same command again to continue.",
    "SIGTERM in evaluation": "saved; run the same command again to continue.",
    "SIGINT, then again": "exit code ",
    "shard truncated": "is damaged: ",
    "byte flipped": "is damaged: ",
    "commit marker deleted": "is damaged: ",
    "disk full in a save": "exit code 1: 'lvb.train: error: saving step ",
    "every checkpoint damaged": "were damaged and are kept in ",
    "all of these: same final state": "scores and metrics equal too",
}


def config(**changes):
    loaded = flags.load(str(runs.QUICKSTART))
    loaded.update_from_flattened_dict(changes)
    return loaded


def toy(loaded, *, devices=0, num_train=1437, num_val=360):
    return drill.toy_overrides(
        loaded, num_train=num_train, num_val=num_val, num_classes=10, devices=devices
    )


def test_toy_size_keeps_the_data_and_shortens_the_run():
    changes = toy(config())
    assert "data.source" not in changes
    assert changes["schedule.steps"] == drill.TOTAL_STEPS
    every = round(changes["eval.every_epochs"] * (1437 // changes["batch_size"]))
    assert every == drill.EVAL_EVERY
    assert changes["eval.batch_size"] == 45


def test_large_data_is_replaced_by_generated_pictures():
    changes = toy(config(), num_train=1281167, num_val=50000)
    assert changes["data.source"] == "synthetic"
    assert changes["model.num_classes"] == 10
    length = changes["data.synthetic_length"]
    every = round(changes["eval.every_epochs"] * (length // changes["batch_size"]))
    assert every == drill.EVAL_EVERY


@pytest.mark.parametrize("devices", [0, 3, 8])
@pytest.mark.parametrize(("grad_accum", "groups"), [(1, 1), (4, 8), (3, 5)])
def test_the_batch_splits_over_devices_micro_batches_and_groups(
    devices, grad_accum, groups
):
    loaded = config(grad_accum=grad_accum, **{"mixup.num_groups": groups})
    batch_size = toy(loaded, devices=devices)["batch_size"]
    assert batch_size % ((devices or 8) * grad_accum) == 0
    assert batch_size % groups == 0


def test_every_toy_leaf_is_one_of_the_config():
    loaded = config()
    loaded.update_from_flattened_dict(toy(loaded))
    assert loaded.log_every == 1
    assert not loaded.log_health


def test_the_users_own_leaves_come_last(tmp_path):
    launcher = drill.make_launcher(
        str(runs.QUICKSTART),
        overrides=["--config.schedule.steps=7", "--config.data.source=synthetic"],
        folder=tmp_path,
        devices=4,
    )
    steps = [word for word in launcher.command if "schedule.steps" in word]
    assert steps == ["--config.schedule.steps=60", "--config.schedule.steps=7"]
    assert launcher.environment["XLA_FLAGS"].endswith("device_count=4")
    assert launcher.environment["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "xla")
    assert launcher.command[:3] == (sys.executable, "-m", "lvb.train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config or --inspect is needed"),
        (["--config", "x", "--kill=3"], "'--kill=3' is unknown"),
        (["--config", "nowhere.py"], "nowhere.py is no file"),
        (["--inspect", "/nowhere"], "/nowhere holds no checkpoint"),
    ],
)
def test_bad_input_is_told_in_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        drill._main(arguments)


def test_a_drill_does_not_use_a_folder_in_use(tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(ValueError, match="is not empty; choose a new folder"):
        drill._main([f"--config={runs.QUICKSTART}", f"--workdir={tmp_path}"])


def save_two(folder):
    with checkpoint.Saver(folder / workdir.CHECKPOINTS, keep_last=2) as saver:
        for step in (3, 6):
            saver.save({"x": [1.0, step]}, step=step, notes={"step": step, "seed": 5})
    return folder


def test_inspect_tells_all_and_the_newest_in_full(tmp_path, capsys):
    assert drill._main([f"--inspect={save_two(tmp_path)}"]) == process.DONE
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("00000003: whole; 2 arrays")
    assert lines[1].startswith("00000006: whole; 2 arrays")
    assert "  seed = 5" in lines
    assert [line.split() for line in lines[-2:]] == [
        ["x/0", "float64", "()"],
        ["x/1", "int64", "()"],
    ]


def test_inspect_fails_where_something_is_damaged(tmp_path, capsys):
    folder = save_two(tmp_path)
    older = checkpoint.step_folder(folder / workdir.CHECKPOINTS, 3)
    shutil.rmtree(older / "metadata")
    assert drill._main([f"--inspect={folder}"]) == process.FAILED
    assert "00000003: DAMAGED. " in capsys.readouterr().out
    newest = checkpoint.step_folder(folder / workdir.CHECKPOINTS, 6)
    assert drill._main([f"--inspect={newest}"]) == process.DONE


def test_a_row_that_fails_is_a_row_and_not_the_end():
    class Launcher:
        """Starts nothing: every row fails."""

        def start(self, folder, **options):
            raise checkpoint.CheckpointError("no disk")

    matrix = fault_matrix.Matrix(Launcher(), runs.ROOT, evaluates_every=3)
    rows = list(matrix.rows())
    assert [row.fault for row in rows] == list(SAID)
    assert not any(row.passed for row in rows)
    assert rows[0].detail == "no disk"


@pytest.mark.slow
def test_every_row_of_the_matrix_passes(tmp_path):
    launcher = drill.make_launcher(
        str(runs.QUICKSTART), overrides=SMALL, folder=tmp_path
    )
    matrix = fault_matrix.Matrix(launcher, tmp_path, evaluates_every=drill.EVAL_EVERY)
    rows = list(matrix.rows())
    assert [row.fault for row in rows] == list(SAID)
    for row in rows:
        assert row.passed, row
        assert SAID[row.fault] in row.detail, row
    by_fault = {row.fault: row.detail for row in rows}
    # Whichever sees it first: a checksum of the format, or ours.
    flipped = by_fault["byte flipped"]
    assert "DATA_LOSS" in flipped or "its digest is " in flipped
    assert "File too large" in by_fault["disk full in a save"]
    assert not list(tmp_path.glob("run/damaged_checkpoints/*"))


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "kills"), [(1, 10), (8, 5)])
def test_random_kills_leave_no_trace(tmp_path, capsys, devices, kills):
    code = drill._main(
        [
            f"--config={runs.QUICKSTART}",
            f"--workdir={tmp_path}",
            f"--kills={kills}",
            f"--devices={devices}",
            *SMALL,
        ]
    )
    said = capsys.readouterr().out
    assert code == process.DONE, said
    assert re.search(rf"^ *kills +{kills}$", said, re.MULTILINE), said
    expected = outcome.read(tmp_path / "unbroken")
    finished = sorted(tmp_path.glob("round*"))
    assert finished
    for folder in finished:
        assert outcome.read(folder) == expected
