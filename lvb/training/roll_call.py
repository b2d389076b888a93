"""The roll call of a pod: which hosts are there, before JAX connects them.

Where a host is missing, `jax.distributed.initialize` aborts all others without naming
it. So they first meet at the coordinator's address: each tells its number and name, and
all learn who has come. One JSON line each way.
"""

import json
import os
import socket
import time
from typing import Any

from lvb.training import process

_RETRY_SECONDS = 0.2
_HELLO_SECONDS = 5.0  # A host that connects has its one line ready.


def call_roll(address: str, *, count: int, index: int, timeout: float) -> list[str]:
    """Waits until all hosts have come.

    Args:
      address: "name:port" of host 0, where JAX's coordinator will listen.
      count: number of hosts.
      index: of this host, from 0.
      timeout: seconds to wait at most.

    Returns:
      The hosts' names, by number.

    Raises:
      ValueError: if the address or the numbers do not fit together.
      PeerLost: naming the hosts that have not come.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError(
            f"--coordinator={address!r} is no address; write name:port of host 0, for "
            "example 10.0.0.1:8476."
        )
    if not 0 <= index < count:
        raise ValueError(
            f"--host_index={index} does not exist among --num_hosts={count}; count "
            "from 0."
        )
    hello = {"index": index, "count": count, "name": own_name()}
    deadline = time.monotonic() + timeout
    if index == 0:
        return _receive(int(port), hello, deadline=deadline, timeout=timeout)
    return _report(
        host.strip("[]"), int(port), hello, deadline=deadline, timeout=timeout
    )


def own_name() -> str:
    """The name of this process in messages: "node7, process 1234"."""
    return f"{socket.gethostname()}, process {os.getpid()}"


def _receive(
    port: int, hello: dict[str, Any], *, deadline: float, timeout: float
) -> list[str]:
    """Host 0's side: gathers all, then answers all."""
    count, names = hello["count"], {0: hello["name"]}
    answer: dict[str, Any] = {}
    connections: list[socket.socket] = []
    try:
        with _listen(port) as server:
            while len(names) < count and not answer:
                server.settimeout(max(deadline - time.monotonic(), 0.01))
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    answer = {"error": _missing(names, count=count, timeout=timeout)}
                    break
                connections.append(connection)
                answer = _enter(_read_line(connection), names=names, count=count)
        answer = answer or {"names": [names[i] for i in range(count)]}
        for connection in connections:
            _send_line(connection, answer)
            # The other side closes first, so that the port is free for JAX at once.
            _read_line(connection)
    finally:
        for connection in connections:
            connection.close()
    return _names(answer)


def _report(
    host: str, port: int, hello: dict[str, Any], *, deadline: float, timeout: float
) -> list[str]:
    """The side of all others: comes, and waits for the answer.

    Host 0 may have started later and wait for longer than this host would. Once it is
    there, it has the last word on who is missing.
    """
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise process.PeerLost(
                f"host 0 does not answer at {host}:{port}; start it, or mend "
                "--coordinator or the network between the hosts."
            )
        try:
            with socket.create_connection((host, port), timeout=left) as connection:
                _send_line(connection, hello)
                connection.settimeout(timeout + _HELLO_SECONDS)
                answer = _read_line(connection)
        except OSError:
            answer = {}
        if answer:
            return _names(answer)
        time.sleep(_RETRY_SECONDS)


def _listen(port: int) -> socket.socket:
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=dual)
    except OSError as error:
        raise ValueError(
            f"port {port} of --coordinator cannot be opened on this host "
            f"({error.strerror}); choose another port."
        ) from None


def _enter(
    hello: dict[str, Any], *, names: dict[int, str], count: int
) -> dict[str, Any]:
    """Notes a host; returns what all must be told if it does not fit in."""
    if not {"index", "count", "name"} <= hello.keys():
        return {}  # Somebody else's connection, such as a port scan.
    index, name = hello["index"], hello["name"]
    if hello["count"] != count:
        return {
            "error": f"host {index} ({name}) was started with --num_hosts="
            f"{hello['count']} and host 0 with {count}; use one number on all hosts."
        }
    if names.get(index, name) != name:
        return {
            "error": f"{names[index]}, and {name}, both call themselves host "
            f"{index}; give each host its own --host_index."
        }
    names[index] = name
    return {}


def _missing(names: dict[int, str], *, count: int, timeout: float) -> str:
    absent = [str(i) for i in range(count) if i not in names]
    return (
        f"host{'s' if len(absent) > 1 else ''} {', '.join(absent)} of {count} did not "
        f"come within {timeout:g} s; start them, or raise --peer_timeout."
    )


def _names(answer: dict[str, Any]) -> list[str]:
    if "error" in answer:
        raise process.PeerLost(answer["error"])
    return answer["names"]


def _send_line(connection: socket.socket, value: dict[str, Any]) -> None:
    try:
        connection.sendall(json.dumps(value).encode() + b"\n")
    except OSError:
        return  # It has left meanwhile; the watchdog will notice.


def _read_line(connection: socket.socket) -> dict[str, Any]:
    """The next line, or nothing if the other side closed or sent no JSON object."""
    if connection.gettimeout() is None:
        connection.settimeout(_HELLO_SECONDS)
    try:
        with connection.makefile("r") as lines:
            value = json.loads(lines.readline(1 << 20))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
