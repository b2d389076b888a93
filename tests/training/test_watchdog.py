"""The watch over the hosts, with a board in memory and a clock of our own."""

import contextlib
import signal
import threading

import jax
import pytest

from lvb.training import process, watchdog
from lvb.training.watchdog import Sighting, Sign

TIMEOUT = 10.0


class Board:
    """What JAX's coordinator offers: a dictionary that all hosts share."""

    def __init__(self):
        self.values = {}
        self.reachable = True

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite
        self._check()
        self.values[key] = value

    def key_value_dir_get(self, key):
        self._check()
        return [item for item in self.values.items() if item[0].startswith(key)]

    def _check(self):
        if not self.reachable:
            raise jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed")


def seen(name="a", *, ticks=5, doing="step 5", silent=0.0, still=0.0, **fields):
    sign = Sign(name, beats=9, ticks=ticks, doing=doing, patience=1.0)
    return Sighting(sign._replace(**fields), silent, still)


def test_all_is_well_while_all_move():
    assert watchdog.judge([seen(), seen("b", ticks=6)], timeout=TIMEOUT) is None


def test_a_host_that_falls_silent_is_named():
    verdict = watchdog.judge([seen(), seen("b", silent=10.5)], timeout=TIMEOUT)
    assert verdict.code == process.LOST
    assert verdict.reason.startswith(
        "host 1 (b) has given no sign of life for 10 s; its last word was from step 5"
    )


def test_a_host_that_never_spoke_is_named():
    verdict = watchdog.judge([seen(), Sighting(None, 11.0, 11.0)], timeout=TIMEOUT)
    assert verdict.reason.startswith("host 1 has given no sign of life for 11 s; it")


def test_the_one_that_the_others_wait_for_is_stuck():
    """Host 0 has dispatched two steps more and stands still as well."""
    sightings = [seen(ticks=7, still=30.0), seen("b", still=30.0), seen("c", ticks=7)]
    verdict = watchdog.judge(sightings, timeout=TIMEOUT)
    assert verdict.code == process.LOST
    assert verdict.reason.startswith("host 1 (b) is alive but stuck in step 5 for 30 s")


@pytest.mark.parametrize("ticks", [5, 7])
def test_a_host_that_died_between_two_signs_is_not_called_stuck(ticks):
    """Its last tick was seen before its last sign of life."""
    ahead = seen(ticks=ticks, still=10.4)
    dying = seen("b", silent=9.8, still=10.4)
    assert watchdog.judge([ahead, dying], timeout=TIMEOUT) is None
    dead = dying._replace(silent=10.1, still=10.7)
    verdict = watchdog.judge([ahead, dead], timeout=TIMEOUT)
    assert "host 1 (b) has given no sign of life" in verdict.reason


def test_hosts_that_wait_for_one_another_are_all_named():
    sightings = [seen(still=12.0), seen("b", still=11.0)]
    verdict = watchdog.judge(sightings, timeout=TIMEOUT)
    assert "host 0 (a) and host 1 (b) are all in step 5 for 11 s" in verdict.reason


def test_compilation_may_take_longer():
    slow = dict(still=30.0, patience=10.0, doing="starting")
    assert watchdog.judge([seen(**slow), seen("b", **slow)], timeout=TIMEOUT) is None


def test_a_host_that_is_done_is_not_missed():
    done = seen("b", silent=99.0, still=99.0, ticks=3, status=watchdog.DONE)
    assert watchdog.judge([seen(), done], timeout=TIMEOUT) is None
    assert watchdog.judge([done, done], timeout=TIMEOUT) is None


@pytest.mark.parametrize(
    ("status", "code"),
    [(watchdog.LEFT, process.STOPPED), (watchdog.FAILED, process.FAILED)],
)
def test_a_host_that_ended_takes_the_others_along(status, code):
    ended = seen("b", status=status, message="no image in /data")
    verdict = watchdog.judge([seen(), ended], timeout=TIMEOUT)
    assert verdict == ("host 1 (b) ended: no image in /data", code)


def make(board, index, *, clock=lambda: 0.0, timeout=TIMEOUT, left=None):
    left = [] if left is None else left
    return watchdog.Watchdog(
        board, index=index, count=2, timeout=timeout, leave=left.append, clock=clock
    )


def test_seconds_count_from_the_last_change():
    now, board = [0.0], Board()
    hosts = [make(board, index, clock=lambda: now[0]) for index in (0, 1)]
    for host in hosts:
        host._post(watchdog.RUNNING)
    hosts[0].look()
    now[0] = 4.0
    hosts[1].tick("step 0")
    hosts[1]._post(watchdog.RUNNING)
    now[0] = 7.0
    hosts[0].look()  # Host 1's sign is met now, whenever it was posted.
    now[0] = 9.0
    own, other = hosts[0].look()
    assert (own.silent, own.still) == (9.0, 9.0)
    assert (other.silent, other.still) == (2.0, 2.0)
    assert other.sign.doing == "step 0"


def watch_until_left(board, left, *, index=0, timeout=0.2):
    """Lets the thread run until it leaves, as `os._exit` would end the process."""
    gone = threading.Event()

    def leave(code):
        left.append(code)
        gone.set()

    watch = watchdog.Watchdog(board, index=index, count=2, timeout=timeout, leave=leave)
    with watch:
        watch.tick("step 3")
        assert gone.wait(60)
    return watch


def test_a_missing_host_ends_the_process_with_stacks(capfd):
    left = []
    watch_until_left(Board(), left)
    assert left == [process.LOST]
    told = capfd.readouterr().err
    assert "host 0, in step 3: error: host 1 has given no sign of life" in told
    assert "most recent call first" in told
    assert "test_watchdog.py" in told  # The main thread is where it waits.


def test_a_coordinator_that_is_gone_ends_the_process(capfd):
    left, board = [], Board()
    watch = make(board, 1, timeout=60.0, left=left)
    watch._post(watchdog.RUNNING)
    board.reachable = False
    watch._interval = 0.01
    watch._watch()
    assert left == [process.LOST]
    assert "host 0, which coordinates the hosts, does not" in capfd.readouterr().err


def test_an_error_is_told_to_the_others(capfd):
    left, board = [], Board()
    watch, other = make(board, 1, left=left), make(board, 0)
    error = ValueError("3 of 10 images are broken")
    watch.on_error(ValueError, error, None)
    assert left == [process.FAILED]
    assert "host 1: error: 3 of 10 images are broken" in capfd.readouterr().err
    verdict = watchdog.judge(other.look(), timeout=TIMEOUT)
    assert verdict.reason.endswith("ended: 3 of 10 images are broken")
    assert verdict.code == process.FAILED


def test_a_signal_during_compilation_is_told_to_the_others():
    left, board = [], Board()
    watch = make(board, 1, left=left)
    stopped = process.Stopped("stopped by SIGTERM during compilation", blocked=True)
    watch.on_error(process.Stopped, stopped, None)
    assert left == [process.STOPPED]
    assert watchdog.judge(make(board, 0).look(), timeout=TIMEOUT).code == (
        process.STOPPED
    )


def test_an_end_that_all_agreed_on_is_none_of_its_business():
    left, board = [], Board()
    signals = process.StopSignals()
    signals.received = signal.SIGTERM
    watch = make(board, 1, left=left)
    with pytest.raises(process.Stopped), watch:
        raise signals.stopped_after(4)
    assert left == []
    assert make(board, 0).look()[1].sign.status == watchdog.DONE


def test_an_error_is_told_once():
    """`on_error` is called by an inner block, the block's own end comes after."""
    left, board = [], Board()
    watch = make(board, 1, left=left)

    def fail():
        with watch, contextlib.ExitStack() as stack:
            stack.push(watch.on_error)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert left == [process.FAILED]


def test_a_device_that_saw_the_end_first_waits_for_the_name(capfd):
    """A collective fails at once when a host dies; the thread tells which one."""
    board, left = Board(), []
    gone = threading.Event()

    def leave(code):
        left.append(code)
        gone.set()

    watch = watchdog.Watchdog(board, index=0, count=2, timeout=0.2, leave=leave)
    error = jax.errors.JaxRuntimeError("Gloo AllGather failed: closed by peer")
    with pytest.raises(jax.errors.JaxRuntimeError), watch:
        raise error
    assert left[0] == process.LOST
    assert "host 1 has given no sign of life" in capfd.readouterr().err
