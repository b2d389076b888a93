"""The roll call over real sockets on loopback."""

import concurrent.futures
import json
import socket

import pytest

from lvb.training import process, roll_call


def free_port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def call(port, calls, *, timeout=30.0):
    """Calls the roll from several threads: a result or an exception of each."""

    def one(options):
        try:
            return roll_call.call_roll(f"127.0.0.1:{port}", **options)
        except Exception as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(one, [{"timeout": timeout, **c} for c in calls]))


@pytest.fixture
def names(monkeypatch):
    """Gives every call a name of its own, as it would have in its process."""
    numbers = iter(range(100))
    monkeypatch.setattr(roll_call, "own_name", lambda: f"node{next(numbers)}")


@pytest.mark.parametrize("count", [2, 4])
def test_all_learn_who_has_come_and_the_port_is_free_again(names, count):
    port = free_port()
    calls = [dict(count=count, index=index) for index in reversed(range(count))]
    answers = call(port, calls)
    assert len(set(map(tuple, answers))) == 1
    assert len(set(answers[0])) == count
    with socket.create_server(("", port)):
        pass


def test_a_host_that_does_not_come_is_named_to_all(names):
    calls = [dict(count=4, index=0), dict(count=4, index=2)]
    answers = call(free_port(), calls, timeout=1.0)
    for answer in answers:
        assert isinstance(answer, process.PeerLost)
        assert str(answer) == (
            "hosts 1, 3 of 4 did not come within 1 s; start them, or raise "
            "--peer_timeout."
        )


def test_a_missing_host_0_is_named(names):
    port = free_port()
    (answer,) = call(port, [dict(count=2, index=1)], timeout=0.5)
    assert isinstance(answer, process.PeerLost)
    assert str(answer).startswith(f"host 0 does not answer at 127.0.0.1:{port}")


def test_two_hosts_of_one_number_are_refused(names):
    calls = [dict(count=3, index=index) for index in (0, 1, 1)]
    for answer in call(free_port(), calls):
        assert "both call themselves host 1; give each host its own" in str(answer)


def test_other_numbers_of_hosts_are_refused(names):
    calls = [dict(count=2, index=0), dict(count=3, index=1)]
    for answer in call(free_port(), calls):
        assert "was started with --num_hosts=3 and host 0 with 2" in str(answer)


def test_strangers_at_the_port_do_no_harm(names):
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(
            roll_call.call_roll, f"[::1]:{port}", count=2, index=0, timeout=60.0
        )
        while True:  # Until host 0 listens.
            try:
                stranger = socket.create_connection(("127.0.0.1", port), timeout=5)
                break
            except OSError:
                continue
        with stranger:
            stranger.sendall(json.dumps(["GET", "/"]).encode() + b"\n")
        second = pool.submit(
            roll_call.call_roll, f"127.0.0.1:{port}", count=2, index=1, timeout=60.0
        )
        assert first.result() == second.result()


@pytest.mark.parametrize("address", ["host", "host:", ":x", "1.2.3.4:port"])
def test_a_wrong_address_is_refused(address):
    with pytest.raises(ValueError, match="is no address; write name:port"):
        roll_call.call_roll(address, count=2, index=0, timeout=1.0)


@pytest.mark.parametrize("index", [-1, 2])
def test_a_wrong_number_is_refused(index):
    with pytest.raises(ValueError, match="does not exist among --num_hosts=2"):
        roll_call.call_roll("a:1", count=2, index=index, timeout=1.0)


def test_a_port_in_use_is_told():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} of --coordinator cannot"):
            roll_call.call_roll(f"127.0.0.1:{port}", count=2, index=0, timeout=1.0)
