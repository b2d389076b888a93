"""Metrics on disk."""

import json
import sys
import types

import pytest

from lvb.training import metric_writer


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_lines_are_json_and_on_disk_at_once(path):
    with metric_writer.MetricWriter(path, tensorboard=False) as writer:
        writer.write(2, {"train/loss": 0.5})
        assert json.loads(path.read_text()) == {"step": 2, "train/loss": 0.5}
        writer.write(4, {"val/top1": 1.0})
    assert [line["step"] for line in metric_writer.read_metrics(path)] == [2, 4]


def test_what_json_cannot_hold_is_null(path):
    with metric_writer.MetricWriter(path, tensorboard=False) as writer:
        writer.write(1, {"a": float("nan"), "b": float("inf"), "c": 0.0})
    assert "NaN" not in path.read_text()
    expected = {"step": 1, "a": None, "b": None, "c": 0.0}
    assert metric_writer.read_metrics(path) == [expected]


def test_a_run_that_continues_has_no_step_twice(path):
    with metric_writer.MetricWriter(path, tensorboard=False) as writer:
        for step in (2, 4, 6):
            writer.write(step, {"x": float(step)})
    with path.open("a") as file:
        file.write('{"step": 8, "x"')  # A process that was killed wrote this.
    with metric_writer.MetricWriter(path, last_step=4, tensorboard=False) as writer:
        writer.write(6, {"x": -1.0})
    lines = metric_writer.read_metrics(path)
    assert [(line["step"], line["x"]) for line in lines] == [(2, 2), (4, 4), (6, -1)]


def test_no_file_has_no_lines(path):
    assert metric_writer.read_metrics(path) == []


def test_event_files_are_written_where_tensorflow_is(path, monkeypatch):
    """With stand-ins for the two packages: neither is needed to test the wiring."""
    hidden, written = [], []
    config = types.SimpleNamespace(
        set_visible_devices=lambda devices, kind: hidden.append((devices, kind))
    )
    tensorflow = types.ModuleType("tensorflow")
    tensorflow.config = config
    writers = types.ModuleType("clu.metric_writers")

    class SummaryWriter:
        def __init__(self, folder):
            written.append(folder)

        def write_scalars(self, step, scalars):
            written.append((step, scalars))

        def close(self):
            written.append("closed")

    writers.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "tensorflow", tensorflow)
    monkeypatch.setitem(sys.modules, "clu.metric_writers", writers)
    monkeypatch.setattr("clu.metric_writers", writers, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with metric_writer.MetricWriter(path) as writer:
        assert writer.has_tensorboard
        writer.write(3, {"a": 1.0})
    folder = str(path.parent / "tensorboard")
    assert written == [folder, (3, {"a": 1.0}), "closed"]
    assert hidden == [([], "GPU"), ([], "TPU")]


def test_without_tensorflow_there_are_none(path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with metric_writer.MetricWriter(path) as writer:
        assert not writer.has_tensorboard
        writer.write(1, {"a": 1.0})
    assert not (path.parent / "tensorboard").exists()
