"""What a run adds to its steps: the measured run is the user's, and rows add up."""

import argparse
import json

import pytest
import runs

from lvb import loop_speed
from lvb.config import flags


@pytest.fixture(autouse=True)
def micro_net(monkeypatch):
    runs.use_micro_net(monkeypatch)
    tiny = runs.tiny_config()
    monkeypatch.setattr(flags, "load", lambda path: tiny.copy_and_resolve_references())


def parse(*words):
    parser = argparse.ArgumentParser()
    loop_speed.add_flags(parser)
    return parser.parse_args(words)


def test_a_run_is_measured_beside_its_steps(tmp_path):
    words = ("--steps=3", "--windows=2", "--rounds=2", f"--out={tmp_path}")
    assert loop_speed.run(parse(*words)) == 0
    result = json.loads((tmp_path / "loop.json").read_text())
    for spread in result["seconds_per_step"].values():
        assert spread["rounds"] == 4  # Windows times rounds; the warm-up is none.
        assert 0 < spread["p5"] <= spread["median"] <= spread["p95"]
    assert 0 <= result["data_wait"] <= 1
    assert result["batch_cpu_seconds"] > 0
    assert "ms per step" in (tmp_path / "loop.md").read_text()


def test_overhead_is_the_runs_time_over_the_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(loop_speed, "bare_steps", lambda *a, **k: lambda steps: 0.1)
    windows = [(0.12, 0.2), (0.125, 0.3), (0.13, 0.4)]
    monkeypatch.setattr(loop_speed, "training_windows", lambda *a, **k: windows)
    assert loop_speed.run(parse("--windows=3", "--rounds=1", f"--out={tmp_path}")) == 0
    result = json.loads((tmp_path / "loop.json").read_text())
    assert result["overhead"] == pytest.approx(0.25)
    assert result["data_wait"] == pytest.approx(0.3)


def test_windows_are_alike_and_undisturbed():
    before = flags.load("").to_dict()
    config = loop_speed.prepare(flags.load(""), steps=50, windows=3)
    assert config.schedule.steps == config.checkpoint.every_steps == 200
    assert config.log_every == 50
    assert config.data.in_memory
    assert config.model.to_dict() == before["model"]
    assert config.optimizer.to_dict() == before["optimizer"]


def test_the_overhead_is_the_loop_over_the_step():
    result = {
        "config": "c.py",
        "model": "lsnet_t",
        "image_size": 32,
        "batch_size": 64,
        "steps": 50,
        "rounds": 2,
        "seconds_per_step": {
            "bare step": {"median": 0.1, "p5": 0.1, "p95": 0.1},
            "training run": {"median": 0.102, "p5": 0.1, "p95": 0.11},
        },
        "overhead": 0.02,
        "data_wait": 0.004,
        "batch_cpu_seconds": 0.003,
        "commit": "0123456789",
        "machine": {"processor": "a CPU", "device": "cpu", "threads": 2},
    }
    text = loop_speed.report(result)
    assert "+2.0 % of the bare step longer" in text
    assert "waits for data 0.4 %" in text
    assert "costs 3.00 ms of one core" in text


@pytest.mark.parametrize("name", ["steps", "windows", "rounds"])
def test_lengths_are_positive(name):
    with pytest.raises(ValueError, match=f"--{name}=0 must be at least 1"):
        loop_speed.run(parse(f"--{name}=0"))
