"""Metrics to the screen and to disk."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

from lvb.training import evaluation, history, metric_writer, recorder


class Mean(NamedTuple):
    total: jax.Array
    count: jax.Array


METRICS = {
    "loss": Mean(jnp.float32(24.0), jnp.int32(16)),
    "top1": Mean(jnp.int32(4), jnp.int32(16)),
    "nonfinite_step": jnp.int32(-1),
}
SPEED = {"images_per_sec": 10.0, "data_wait": 0.0, "eta": 3.0}


def record(path, first_step=0):
    with recorder.Recorder(
        path,
        first_step=first_step,
        total_steps=20,
        schedule=optax.linear_schedule(0.0, 1.0, 10),
    ) as recorded:
        recorded.training(5, metrics=METRICS, speed=SPEED, broken=2)
        recorded.evaluation(
            5,
            result=evaluation.Evaluation({"loss": 3.0, "top1": 6}, 12),
            scores=history.History().add(5, 0.5),
        )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_means_speed_and_evaluations_are_written(path, capsys):
    record(path)
    training, validation = metric_writer.read_metrics(path)
    assert training.pop("train/learning_rate") == pytest.approx(0.4)  # Of step 4.
    assert training == {
        "step": 5,
        "train/loss": 1.5,
        "train/top1": 0.25,
        "perf/images_per_sec": 10.0,
        "perf/data_wait": 0.0,
        "perf/eta": 3.0,
        "data/broken_images": 2,
    }
    assert validation == {
        "step": 5,
        "val/loss": 0.25,
        "val/top1": 0.5,
        "val/count": 12,
    }
    text = capsys.readouterr().out
    assert "loss 1.5000" in text
    assert "val top1 50.00 %" in text


def test_other_hosts_write_and_say_nothing(path, capsys, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    record(path)
    assert not path.exists()
    assert capsys.readouterr().out == ""


def test_a_session_that_continues_drops_later_lines(path):
    record(path)
    record(path, first_step=4)
    assert [line["step"] for line in metric_writer.read_metrics(path)] == [5, 5]
