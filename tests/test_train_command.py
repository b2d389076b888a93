"""`python -m lvb.train` as a process: its errors, exit codes and signals."""

import concurrent.futures
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import runs
from PIL import Image

from lvb.training import checkpoint, process, workdir

# A network that learns: the synthetic classes differ by their mosaics.
REAL = {"mixup.mixup_alpha": 0.0, "schedule.steps": 24}


def start(arguments, *, devices=1):
    """Starts the command, from another directory than the repository."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-m", "lvb.train", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=runs.ROOT.parent,
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(runs.ROOT)},
    )


def finish(running):
    out, err = running.communicate(timeout=1200)
    return running.returncode, out, err


def pictures(folder, *names):
    """Makes class folders with one picture each."""
    for name in names:
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(folder / name / "a.png")
    return folder


def damaged_run(folder):
    """A workdir whose only checkpoint is damaged."""
    path = folder / workdir.CHECKPOINTS
    with checkpoint.Saver(path, keep_last=1) as saver:
        saver.save({"x": np.ones(3)}, step=2, notes={})
    (checkpoint.step_folder(path, 2) / "metadata" / "metadata").write_text("{}")
    return folder


def tfrecord_set(folder):
    """A prepared TFDS set in the format that needs TensorFlow."""
    version = folder / "mine" / "1.0.0"
    version.mkdir(parents=True)
    (version / "dataset_info.json").write_text(
        '{"name": "mine", "version": "1.0.0", "fileFormat": "tfrecord", "splits": '
        '[{"name": "train", "shardLengths": ["1"], "numBytes": "1", '
        '"filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}]}'
    )
    (version / "features.json").write_text("{}")
    (version / "mine-train.tfrecord-00000-of-00001").write_bytes(b"")
    return folder


def bad_commands(folder):
    """What goes wrong -> arguments and a part of the sentence that tells it."""

    numbers = itertools.count()  # Two run at a time; a workdir is for one.

    def tiny(**changes):
        return runs.tiny_arguments(folder / f"run{next(numbers)}", **changes)

    def source(value):
        return tiny(**{"data.source": value})

    (folder / "file").write_text("")
    for name in ("cats", "dogs"):
        (folder / "empty" / name).mkdir(parents=True)
    one = pictures(folder / "one", "cats")
    records = tfrecord_set(folder / "records")
    return {
        "no flags": ([], "--config and --workdir are needed"),
        "no config": (["--config=x.py", "--workdir=y"], "--config=x.py is no file"),
        "unknown flag": ([*tiny(), "--workdr=z"], "Unknown command line flag 'workdr'"),
        "unknown key": (
            [*tiny(), "--config.optimizer.lrr=1"],
            "did you mean 'optimizer.lr'",
        ),
        "wrong type": ([*tiny(), "--config.seed=one"], "flag --config.seed=one"),
        "missing data": (
            source(f"folder:{folder}/nowhere"),
            "nowhere does not exist",
        ),
        "no images": (source(f"folder:{folder}/empty"), "no image"),
        "one class": (source(f"folder:{one}"), "one class folder, 'cats'"),
        "tfrecord": (
            [*source("tfds:mine"), f"--data_dir={records}"],
            "tfds convert_format",
        ),
        "workdir": (runs.tiny_arguments(folder / "file" / "run"), "cannot be written"),
        "model": (tiny(**{"model.name": "lsnet_q"}), "model 'lsnet_q' is unknown"),
        "batch": (tiny(batch_size=12), "batch_size=12 does not split over 8 devices"),
        "image size": (
            tiny(**{"data.image_size": 20}),
            "image_size=20 is out of range",
        ),
        "checkpoint": (
            runs.tiny_arguments(damaged_run(folder / "damaged")),
            "were damaged and are kept in",
        ),
    }


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Return code, stdout and stderr of every bad command, and what was expected."""
    commands = bad_commands(tmp_path_factory.mktemp("bad"))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        ended = pool.map(
            lambda command: finish(start(command[0], devices=8)), commands.values()
        )
        return {
            name: (outcome, command[1])
            for (name, command), outcome in zip(commands.items(), ended, strict=True)
        }


def test_bad_input_ends_with_one_clear_sentence(outcomes):
    for name, ((code, _, err), expected) in outcomes.items():
        assert code == process.FAILED, (name, err)
        lines = [line for line in err.splitlines() if line.startswith("lvb.train:")]
        assert len(lines) == 1, (name, err)
        assert lines[0].startswith("lvb.train: error: "), name
        assert expected in lines[0], (name, lines[0])
        assert "Traceback" not in err, name


def test_bad_input_leaves_no_run_behind(outcomes, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    assert not list(folder.glob(f"bad*/run*/{workdir.CONFIG}"))


def wait_for(running, text):
    """Reads what a run says up to a line with the text."""
    said = []
    for line in running.stdout:
        said.append(line)
        if text in line:
            return "".join(said)
    pytest.fail(f"{text!r} never came: {''.join(said)} {running.stderr.read()}")


def arrays(folder, step=24):
    path = checkpoint.step_folder(pathlib.Path(folder) / workdir.CHECKPOINTS, step)
    return checkpoint.read(path)


@pytest.mark.slow
def test_a_stopped_run_continues_in_a_new_process_to_the_same_bits(tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    code, out, err = finish(start(runs.tiny_arguments(straight, **REAL)))
    assert code == process.DONE, err
    assert "Summary:" in out
    arguments = runs.tiny_arguments(broken, **REAL)
    for number in (signal.SIGTERM, signal.SIGINT):
        running = start(arguments)
        wait_for(running, "Starting at step")
        wait_for(running, "step ")
        running.send_signal(number)
        code, _, err = finish(running)
        assert code == process.STOPPED, err
        assert "saved; run the same command again to continue" in err
    code, out, err = finish(start(arguments))
    assert code == process.DONE, err
    one, other = arrays(straight), arrays(broken)
    jax.tree.map(np.testing.assert_array_equal, one.arrays, other.arrays)
    assert one.notes["progress"] == other.notes["progress"]
    code, out, _ = finish(start(arguments))
    assert code == process.DONE
    assert "is finished" in out


@pytest.mark.slow
def test_a_signal_during_compilation_leaves_at_once(tmp_path):
    running = start(
        runs.tiny_arguments(
            tmp_path, **{"compilation_cache": tmp_path / "cache", "seed": 5}
        )
    )
    wait_for(running, "compilation cache")
    time.sleep(2)  # Let it begin; were it over, the code would be the same.
    running.send_signal(signal.SIGTERM)
    code, _, err = finish(running)
    assert code == process.STOPPED, err
    assert "run the same command again to continue" in err


@pytest.mark.slow
def test_the_quick_start_reads_nearly_every_digit(tmp_path):
    """At a quarter of its length, hence the lower bar: 95 % instead of 98 %."""
    arguments = [f"--config={runs.QUICKSTART}", f"--workdir={tmp_path}"]
    code, out, err = finish(start([*arguments, "--config.schedule.epochs=5"]))
    assert code == process.DONE, err
    notes = arrays(tmp_path, 110).notes
    assert notes["progress"]["last"]["value"] >= 0.95, out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lsnet_t", "convneur_m1", "fvnet_n", "fmvit_t"])
def test_a_smoke_run_comes_to_its_end(name, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # It hardly computes.
    config = runs.ROOT / "configs" / f"{name}.py"
    code, out, err = finish(
        start([f"--config={config}:smoke", f"--workdir={tmp_path}"])
    )
    assert code == process.DONE, err
    assert "Summary:" in out
    found = arrays(tmp_path, 12)
    assert found.notes["model"]["name"] == name
    assert found.notes["progress"]["last"]["step"] == 12
