"""Faults: moments are met, damage is done, and told as it is."""

import shutil
import signal
import sys

import numpy as np
import pytest

from lvb.training import checkpoint, faults, workdir

# What a run prints and leaves, in the order of its life; each line is a stage.
STAGES = [
    ("start", "Config:"),
    ("compilation", "  compilation cache   /x"),
    ("step", "Starting at step 4 of 60."),
    ("step", "step 5/60 (8%)  loss 2.2582"),
    ("evaluation", "step 6/60 (10%)  loss 2.3"),
    ("step", "step 6  val top1 10.00 %"),
]


def session(tmp_path, code):
    """A child process that runs some Python instead of a training run."""
    return faults.Session(
        [sys.executable, "-u", "-c", code], folder=tmp_path, environment={}
    )


@pytest.fixture
def ended(tmp_path):
    with session(tmp_path, "") as child:
        child.wait()
    child.evaluates_every = 3
    return child


def test_phases_follow_what_is_printed(ended):
    for phase, line in STAGES:
        ended.lines.append(line)
        assert ended.phase() == phase, line
    assert (ended.first_step(), ended.last_step()) == (4, 6)
    assert not faults.has_made(3)(ended)
    assert faults.has_made(2)(ended)


def test_a_save_is_seen_by_its_folder_once_a_step_is_made(ended):
    folder = ended.folder / workdir.CHECKPOINTS / "00000006.orbax-checkpoint-tmp"
    folder.mkdir(parents=True)
    for _, line in STAGES[:3]:
        ended.lines.append(line)
        assert not faults.is_saving(ended)  # Left by the session before.
    ended.lines.append(STAGES[3][1])
    assert ended.phase() == "save"
    folder.rmdir()
    assert ended.phase() == "step"


def test_numbers_with_separators_are_read(ended):
    ended.lines += ["Starting at step 12,000 of 600,000.", "step 12,001/600,000 (2%)"]
    assert (ended.first_step(), ended.last_step()) == (12000, 12001)


def test_a_moment_is_waited_for_and_a_signal_sent(tmp_path):
    code = "import time; print('step 7/9 (77%)'); time.sleep(600)"
    with session(tmp_path, code) as child:
        assert child.wait_until(lambda s: s.last_step() == 7, timeout=60)
        child.send(signal.SIGKILL)
        assert child.wait(60) == -signal.SIGKILL
    child.send(signal.SIGKILL)  # It is gone; nothing happens.


def test_a_moment_that_never_comes_is_told(tmp_path):
    with session(tmp_path, "print('over')") as child:
        assert not child.wait_until(lambda s: s.last_step() == 7, timeout=60)
    assert child.output == "over"


def test_a_process_that_hangs_is_killed_and_told(tmp_path):
    with session(tmp_path, "import time; time.sleep(600)") as child:
        with pytest.raises(TimeoutError, match=r"did not end within 0\.1 s"):
            child.wait(0.1)
        assert not child.running
    with (
        session(tmp_path, "import time; time.sleep(600)") as child,
        pytest.raises(TimeoutError, match="the moment did not come"),
    ):
        child.wait_until(lambda s: False, timeout=0.1)


def test_files_do_not_grow_beyond_the_limit(tmp_path):
    target = tmp_path / "target"
    code = (
        f"file = open({str(target)!r}, 'wb'); file.write(b'x' * 4096); file.flush()\n"
        "try:\n    file.write(b'x' * 4096); file.flush()\n"
        "except OSError as error: print(error)"
    )
    limited = faults.Session(
        [sys.executable, "-c", code],
        folder=tmp_path,
        environment={"PATH": "/usr/bin:/bin"},
        max_file_bytes=6000,
    )
    with limited:
        limited.wait(60)
    assert "File too large" in limited.output
    assert target.stat().st_size <= 6000


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / workdir.CHECKPOINTS
    arrays = {"params": {"kernel": np.arange(5000.0), "bias": np.ones(3)}}
    with checkpoint.Saver(folder, keep_last=2) as saver:
        for step in (1, 2):
            saver.save(arrays, step=step, notes={"step": step})
    return folder.parent


@pytest.mark.parametrize("name", list(faults.DAMAGES))
def test_damage_is_done_to_the_one_and_seen(saved, tmp_path, name):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    assert faults.newest_whole(folder).notes["step"] == 2
    newest = checkpoint.step_folder(folder / workdir.CHECKPOINTS, 2)
    told = faults.DAMAGES[name](newest)
    assert "00000002" in told
    with pytest.raises(checkpoint.CheckpointError, match="is damaged"):
        checkpoint.read(newest)
    assert faults.newest_whole(folder).notes["step"] == 1


def test_no_checkpoint_is_whole_where_there_is_none(tmp_path):
    assert faults.newest_whole(tmp_path) is None


def test_the_limit_is_below_what_a_checkpoint_needs(saved):
    path = checkpoint.step_folder(saved / workdir.CHECKPOINTS, 2)
    largest = max(p.stat().st_size for p in path.rglob("d/*"))
    assert largest // 2 == faults.half_largest_file(path)
