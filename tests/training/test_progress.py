"""Speed and waiting, on a clock that the test moves."""

import itertools

import jax.numpy as jnp
import pytest

from lvb.training import progress


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Results:
    """Stands for arrays of a step; ready when the test says so."""

    def __init__(self, ready):
        self.ready = ready


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def timer(clock):
    return progress.Progress(first_step=10, total_steps=40, batch_size=8, clock=clock)


def slow_batches(clock, seconds):
    for number in itertools.count():
        clock.now += seconds
        yield number


def test_speed_and_eta(timer, clock):
    clock.now += 4.0
    window = timer.window(20)
    assert window["images_per_sec"] == pytest.approx(20.0)
    assert window["eta"] == pytest.approx(8.0)
    clock.now += 1.0
    assert timer.window(30)["images_per_sec"] == pytest.approx(80.0)


def test_waiting_counts_while_nothing_runs(timer, clock):
    batches = slow_batches(clock, 1.0)
    assert timer.next_batch(batches) == 0
    clock.now += 3.0
    assert timer.window(11)["data_wait"] == pytest.approx(0.25)
    assert timer.data_wait == pytest.approx(0.25)


def test_waiting_beside_a_running_step_does_not_count(timer, clock, monkeypatch):
    monkeypatch.setattr(progress, "is_ready", lambda results: results.ready)
    timer.dispatched(Results(ready=False))
    timer.next_batch(slow_batches(clock, 1.0))
    assert timer.window(11)["data_wait"] == 0.0
    timer.dispatched(Results(ready=True))
    timer.next_batch(slow_batches(clock, 1.0))
    assert timer.window(12)["data_wait"] == 0.0  # The older step still runs.


def test_pauses_do_not_slow_training_down(timer, clock):
    clock.now += 1.0
    with timer.pause():
        clock.now += 50.0
    clock.now += 1.0
    assert timer.window(20)["images_per_sec"] == pytest.approx(40.0)
    timer.next_batch(slow_batches(clock, 2.0))
    assert timer.data_wait == pytest.approx(0.5)


def test_steps_do_not_pile_up(timer, monkeypatch):
    waited = []
    monkeypatch.setattr(progress.jax, "block_until_ready", waited.append)
    for number in range(5):
        timer.dispatched(number)
    assert waited == [0, 1, 2]


def test_ready_means_all_arrays():
    assert progress.is_ready(None)
    assert progress.is_ready({"a": 1, "b": jnp.ones(2).block_until_ready()})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.6, "1m00s"), (125, "2m05s"), (11520, "3h12m"), (187200, "2d04h")],
)
def test_durations_are_short(seconds, text):
    assert progress.duration(seconds) == text
