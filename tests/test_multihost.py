"""Real processes on loopback, as the hosts of a pod, with CPU collectives."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import multihost_worker
import numpy as np
import pytest
import runs

from lvb.training import checkpoint, metric_writer, process, workdir

pytestmark = pytest.mark.slow

WORKER = pathlib.Path(multihost_worker.__file__)
# Seconds that hosts wait for one another; compilation may take ten times as long.
TIMEOUT = 30
# A sum over the batch in another order: float32 roundings, enlarged by AdamW steps.
CLOSE = dict(rtol=2e-3, atol=2e-3)
RUN = {"schedule.steps": 12, "log_every": 4, "checkpoint.every_steps": 4}


def free_port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def start_host(arguments, *, devices, job="train", fault=""):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, str(WORKER), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "XLA_FLAGS": flags,
            "WORKER_JOB": job,
            "WORKER_FAULT": fault,
        },
    )


def finish(running):
    """Exit code, stdout and stderr of each; a hang fails here."""
    ended = []
    try:
        for child in running:
            out, err = child.communicate(timeout=900)
            ended.append((child.returncode, out, err))
    finally:
        for child in running:
            child.kill()
    return ended


def run_hosts(folder, hosts, *, devices, faults=None, present=None, each=None):
    """Trains on so many hosts with so many devices each.

    Args:
      folder: workdir.
      hosts: their number.
      devices: of each.
      faults: host to what it does, such as {1: "sleep:5"}.
      present: hosts that are started; all by default.
      each: host to leaves of its own.

    Returns:
      Exit code, stdout and stderr of each that was started.
    """
    port, running = free_port(), []
    for index in range(hosts) if present is None else present:
        changes = {**RUN, **(each or {}).get(index, {})}
        arguments = runs.tiny_arguments(folder, **changes)
        if hosts > 1:
            arguments += [
                "--distributed",
                f"--coordinator=127.0.0.1:{port}",
                f"--num_hosts={hosts}",
                f"--host_index={index}",
                f"--peer_timeout={TIMEOUT}",
            ]
        fault = (faults or {}).get(index, "")
        running.append(start_host(arguments, devices=devices, fault=fault))
    return finish(running)


def all_done(ended):
    for code, _, err in ended:
        assert code == process.DONE, err


def metrics(folder):
    return [
        {name: value for name, value in line.items() if not name.startswith("perf/")}
        for line in metric_writer.read_metrics(folder / workdir.METRICS)
    ]


def arrays(folder, step=12):
    path = checkpoint.step_folder(folder / workdir.CHECKPOINTS, step)
    return checkpoint.read(path).arrays


def assert_close(folder, other):
    for one, two in zip(metrics(folder), metrics(other), strict=True):
        assert one.keys() == two.keys()
        for name in one:
            if name in ("step", "val/count", "val/top1", "val/top5"):
                assert one[name] == two[name], name
            else:
                np.testing.assert_allclose(one[name], two[name], rtol=1e-3)
    ours, theirs = arrays(folder), arrays(other)
    for tree in ("params", "batch_stats", "ema"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, **CLOSE),
            ours[tree],
            theirs[tree],
        )


def assert_same(folder, other):
    jax.tree.map(np.testing.assert_array_equal, arrays(folder), arrays(other))
    assert metrics(folder) == metrics(other)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process with four devices."""
    folder = tmp_path_factory.mktemp("alone")
    all_done(run_hosts(folder, 1, devices=4))
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two processes with two devices each, and what they said."""
    folder = tmp_path_factory.mktemp("pair")
    ended = run_hosts(folder, 2, devices=2)
    all_done(ended)
    return folder, ended


def test_two_hosts_train_as_one(alone, pair):
    assert_close(pair[0], alone)


def test_four_hosts_train_as_one(alone, tmp_path):
    all_done(run_hosts(tmp_path, 4, devices=1))
    assert_close(tmp_path, alone)


def test_every_host_prints_the_plan_and_one_tells_the_run(pair):
    for _, out, _ in pair[1]:
        assert "Plan:\n  host 0 (" in out
        for index in (0, 1):
            (line,) = [x for x in out.splitlines() if x.startswith(f"  host {index} (")]
            assert "2 devices  8 training rows per step" in line
            assert "6 batches x 8 rows, 48 of them images" in line
    assert "Summary:" in pair[1][0][1]
    assert "Summary:" not in pair[1][1][1]


@pytest.mark.parametrize("first", [1, 2])
def test_a_checkpoint_of_either_is_continued_by_the_other(alone, tmp_path, first):
    # Step 4 is saved for sure: the save of step 8 has waited for it.
    ended = run_hosts(tmp_path, first, devices=4 // first, faults={0: "kill:11"})
    assert ended[0][0] != process.DONE
    assert checkpoint.steps_on_disk(tmp_path / workdir.CHECKPOINTS)[-1] in (4, 8)
    other = 3 - first
    all_done(run_hosts(tmp_path, other, devices=4 // other))
    assert_close(tmp_path, alone)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("sleep:5", "is alive but stuck in step 5 for"),
        ("freeze:5", "has given no sign of life for"),
        ("kill:5", "has given no sign of life for"),
    ],
)
def test_a_host_that_is_lost_is_named_and_the_relaunch_is_exact(
    pair, tmp_path, fault, sentence
):
    code, _, err = run_until_lost(tmp_path, fault)
    assert code == process.LOST, err
    (line,) = [x for x in err.splitlines() if x.startswith("host 0, in ")]
    assert "error: host 1 (" in line
    assert sentence in line
    assert "most recent call first" in err
    assert "train.py" in err
    all_done(run_hosts(tmp_path, 2, devices=2))
    assert_same(tmp_path, pair[0])


def run_until_lost(folder, fault):
    """Host 0's end; host 1, which may be frozen, is killed after it."""
    port, running = free_port(), []
    for index in (0, 1):
        arguments = [
            *runs.tiny_arguments(folder, **RUN),
            "--distributed",
            f"--coordinator=127.0.0.1:{port}",
            "--num_hosts=2",
            f"--host_index={index}",
            f"--peer_timeout={TIMEOUT}",
        ]
        running.append(start_host(arguments, devices=2, fault=fault if index else ""))
    try:
        out, err = running[0].communicate(timeout=900)
    finally:
        for child in running:
            child.kill()
            child.wait()
    return running[0].returncode, out, err


def test_the_stuck_host_shows_where_it_is(tmp_path):
    _, (code, _, err) = run_hosts(tmp_path, 2, devices=2, faults={1: "sleep:5"})
    assert code != process.DONE
    assert "multihost_worker.py" in err  # It sleeps there.
    assert "most recent call first" in err


def test_without_host_0_the_others_end(tmp_path):
    first, second = run_hosts(tmp_path, 2, devices=2, faults={0: "kill:5"})
    assert first[0] == -9
    assert second[0] not in (process.DONE, process.STOPPED)
    assert "host 0" in second[2] or "coordination service" in second[2]


@pytest.mark.parametrize(
    ("present", "sentence"),
    [
        ([0], f"host 1 of 2 did not come within {TIMEOUT} s"),
        ([1], "host 0 does not answer at 127.0.0.1:"),
    ],
)
def test_a_missing_host_is_named(tmp_path, present, sentence):
    ((code, _, err),) = run_hosts(tmp_path, 2, devices=2, present=present)
    assert code == process.LOST
    assert sentence in err
    assert not (tmp_path / workdir.CONFIG).exists()


def test_an_error_on_one_host_ends_all_with_its_reason(tmp_path):
    first, second = run_hosts(tmp_path, 2, devices=2, faults={1: "raise:5"})
    assert second[0] == process.FAILED
    assert "host 1: error: 3 of 10 images are broken" in second[2]
    assert first[0] == process.FAILED
    assert "ended: 3 of 10 images are broken" in first[2]


def test_hosts_that_see_other_data_do_not_start(tmp_path):
    ended = run_hosts(tmp_path, 2, devices=2, each={1: {"data.synthetic_length": 95}})
    for code, _, err in ended:
        assert code == process.FAILED
        assert "has training images=95, host 0 (" in err
    assert not (tmp_path / workdir.CONFIG).exists()


def test_a_signal_to_one_host_stops_all_and_the_relaunch_is_exact(pair, tmp_path):
    ended = run_hosts(tmp_path, 2, devices=2, faults={1: "terminate:5"})
    for code, _, err in ended:
        assert code == process.STOPPED, err
    # They agree at the next log line.
    assert checkpoint.steps_on_disk(tmp_path / workdir.CHECKPOINTS)[-1] == 8
    all_done(run_hosts(tmp_path, 2, devices=2))
    assert_same(tmp_path, pair[0])


@pytest.mark.parametrize(("hosts", "devices"), [(1, 2), (2, 1), (2, 4)])
def test_counts_equal_a_plain_loop(hosts, devices):
    """Labels go round through three classes, so a loop counts every third."""
    port = free_port()
    ended = finish(
        [
            start_host([f"127.0.0.1:{port}", hosts, i], devices=devices, job="grid")
            for i in range(hosts)
        ]
    )
    all_done(ended)
    expected = {
        f"{size} {batch}": sum(i % 3 == 1 for i in range(size))
        for size in multihost_worker.SIZES
        for batch in multihost_worker.BATCHES
    }
    for _, out, _ in ended:
        (line,) = [x for x in out.splitlines() if x.startswith("COUNTS ")]
        assert json.loads(line.removeprefix("COUNTS ")) == expected
