"""What a run has come to: equal for equal runs, and told without the model."""

import json

import numpy as np
import pytest

from lvb.training import checkpoint, faults, outcome, workdir

LINES = [
    {"step": 1, "train/loss": 2.0, "perf/eta": 3.0},
    {"step": 2, "train/loss": 1.0, "perf/eta": 2.0},
    {"step": 2, "val/top1": 0.5},
]


def make(folder, *, value=1.0, best=0.5, lines=LINES, **notes):
    with checkpoint.Saver(folder / workdir.CHECKPOINTS, keep_last=2) as saver:
        for step in (1, 2):
            progress = {"best": {"step": 2, "value": best}}
            saver.save(
                {"params": {"kernel": np.full((4, 3), value)}, "step": np.int32(step)},
                step=step,
                notes={"step": step, "progress": progress, **notes},
            )
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / workdir.METRICS).write_text(text)
    return folder


def test_equal_runs_are_equal_whatever_the_clock_and_the_folder_say(tmp_path):
    slower = [
        {**line, "perf/eta": 9.0} if "perf/eta" in line else line for line in LINES
    ]
    one = outcome.read(make(tmp_path / "a"))
    other = outcome.read(make(tmp_path / "b", lines=slower, commit="another"))
    assert outcome.differences(one, other) == []
    assert one.step == 2
    assert len(one.state) == 64


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (dict(value=1.0000001), ["state"]),
        (dict(best=0.6), ["scores"]),
        (dict(lines=LINES[:2]), ["metrics"]),
        (dict(lines=[*LINES[:2], {"step": 2, "val/top1": 0.6}]), ["metrics"]),
    ],
)
def test_what_differs_is_named(tmp_path, change, names):
    one = outcome.read(make(tmp_path / "a"))
    other = outcome.read(make(tmp_path / "b", **change))
    assert outcome.differences(one, other) == names


def test_lines_after_the_checkpoint_do_not_count(tmp_path):
    one = outcome.read(make(tmp_path / "a"))
    later = [*LINES, {"step": 3, "train/loss": 0.5}]
    assert outcome.read(make(tmp_path / "b", lines=later)) == one


def test_a_run_without_checkpoints_has_no_outcome(tmp_path):
    assert outcome.read(tmp_path) is None


def test_a_checkpoint_is_told_without_its_model(tmp_path):
    folder = make(tmp_path, class_names=["x"] * 200, seed=7)
    path = checkpoint.step_folder(folder / workdir.CHECKPOINTS, 2)
    text, whole = outcome.describe(path)
    assert whole
    lines = text.splitlines()
    assert lines[0].startswith("00000002: whole; 2 arrays, 100 bytes, arrays' SHA-256 ")
    assert lines[0].endswith(outcome.read(folder).state)
    assert "  seed = 7" in lines
    assert "  params/kernel  float64 (4, 3)" in lines
    assert "  step           int32 ()" in lines
    assert max(map(len, lines)) < 180


def test_a_damaged_checkpoint_is_told_as_such(tmp_path):
    path = checkpoint.step_folder(make(tmp_path) / workdir.CHECKPOINTS, 2)
    faults.delete_commit_marker(path)
    text, whole = outcome.describe(path)
    assert not whole
    assert text.startswith(f"00000002: DAMAGED. checkpoint {path} is damaged: ")
