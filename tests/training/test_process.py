"""Exit codes, errors and signals."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from lvb.training import process


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x=1 does not fit; use 2."),
        FileNotFoundError("no such folder"),
        RuntimeError("the disk is full"),
        FloatingPointError("the loss of step 3 is not finite"),
    ],
)
def test_errors_a_user_can_mend_are_one_line(error, capsys):
    assert process.run(raising(error), name="lvb.train") == process.FAILED == 1
    assert capsys.readouterr().err == f"lvb.train: error: {error}\n"


def test_the_traceback_is_there_for_who_asks(capsys, monkeypatch):
    monkeypatch.setenv("LVB_TRACEBACK", "1")
    process.run(raising(ValueError("why")), name="lvb.train")
    assert "Traceback" in capsys.readouterr().err


def test_errors_of_ours_are_not_hidden():
    with pytest.raises(KeyError):
        process.run(raising(KeyError("a bug")), name="lvb.train")


def test_a_stopped_run_asks_to_be_run_again(capsys):
    assert process.run(raising(process.Stopped("stopped.")), name="x") == 75
    assert process.run(raising(KeyboardInterrupt()), name="x") == process.STOPPED
    assert capsys.readouterr().err == "x: stopped.\nx: interrupted.\n"


def test_a_command_that_ends_well_returns_its_code():
    assert process.run(lambda: process.DONE, name="x") == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_handlers_come_back(number, capfd):
    before = signal.getsignal(number)
    with process.StopSignals() as signals:
        assert signals.received is None
        signals.check()
        os.kill(os.getpid(), number)
        assert signals.received == number
        assert signals.name in ("SIGTERM", "SIGINT")
        with pytest.raises(process.Stopped, match=signals.name):
            signals.check()
        assert "with step 12 saved" in str(signals.stopped_after(12))
    assert signal.getsignal(number) is before
    assert "a second signal leaves at once" in capfd.readouterr().err


def test_a_second_signal_leaves_at_once():
    code = (
        "import os, signal, time\n"
        "from lvb.training import process\n"
        "with process.StopSignals():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(60)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], check=False, timeout=50)
    assert result.returncode == 128 + signal.SIGINT


def test_outside_the_main_thread_nothing_is_handled():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with process.StopSignals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_blocking_call_returns_and_raises_as_usual():
    signals = process.StopSignals()
    assert process.call_interruptibly(lambda: 7, signals=signals, during="x") == 7
    with pytest.raises(ZeroDivisionError):
        process.call_interruptibly(lambda: 1 // 0, signals=signals, during="x")


def test_a_blocking_call_is_left_at_a_signal():
    signals = process.StopSignals()
    release = threading.Event()

    def block():
        signals.received = signal.SIGTERM
        release.wait(60)

    start = time.monotonic()
    with pytest.raises(process.Stopped, match="SIGTERM during compilation") as stopped:
        process.call_interruptibly(block, signals=signals, during="compilation")
    release.set()
    assert stopped.value.blocked
    assert time.monotonic() - start < 30  # Far below what the call would take.


def test_a_blocked_thread_does_not_hold_the_process():
    code = (
        "import sys, threading, time\n"
        "from lvb.training import process\n"
        "def main():\n"
        "    threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "    raise process.Stopped('left.', blocked=True)\n"
        "sys.exit(process.run(main, name='x'))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], check=False, timeout=50)
    assert result.returncode == process.STOPPED
