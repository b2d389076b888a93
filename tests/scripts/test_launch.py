"""The launch scripts with stand-ins for gcloud and Slurm: what would be run where."""

import os
import subprocess

import pytest

# Notes its words, one per line, and ends with the code that CODE says.
RECORDER = """#!/usr/bin/env bash
printf '%s\\n' "$(basename "$0")" "$@" '--' >> "$RECORD"
exit "${CODE:-0}"
"""


@pytest.fixture
def launch(tmp_path, repo_root):
    """Runs a script; returns its result and the commands it would have run."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("gcloud", "srun", "scontrol"):
        path = tools / name
        path.write_text(RECORDER)
        path.chmod(0o755)
    venv = tmp_path / "venv" / "bin"
    venv.mkdir(parents=True)
    (venv / "activate").write_text("")
    record = tmp_path / "record"

    def launch(script, *words, **environment):
        record.write_text("")
        result = subprocess.run(
            ["bash", str(repo_root / "scripts" / script), *words],
            env={
                **os.environ,
                "PATH": f"{tools}:{os.environ['PATH']}",
                "RECORD": str(record),
                "VENV": str(tmp_path / "venv"),
                "SLURM_JOB_ID": "7",
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        calls = [
            call.strip("\n").split("\n")
            for call in record.read_text().split("\n--\n")
            if call.strip()
        ]
        return result, calls

    return launch


TRAIN = ("--config", "configs/lsnet_t.py:res=160", "--workdir", "/mnt/my runs/a")


def test_a_pod_starts_the_trainer_on_all_hosts(launch):
    result, calls = launch("launch_pod.sh", "pod", "zone-a", "start", *TRAIN)
    assert result.returncode == 0, result.stderr
    (call,) = calls
    assert call[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod"]
    assert "--zone=zone-a" in call
    assert "--worker=all" in call
    command = "\n".join(call[call.index("--worker=all") + 1 :])
    assert (
        "nohup python -m lvb.train --distributed --config configs/lsnet_t.py:res=160 "
        "--workdir /mnt/my\\ runs/a >>$HOME/lvb.log"
    ) in command
    # What reaches the hosts is a program of the shell.
    script = command.removeprefix("--command=")
    assert subprocess.run(["bash", "-n", "-c", script], check=False).returncode == 0


def test_a_pod_is_set_up_with_the_commit(launch):
    result, calls = launch("launch_pod.sh", "pod", "z", "setup", PROJECT="mine")
    assert result.returncode == 0, result.stderr
    copy, install = calls
    assert copy[4:6] == ["scp", copy[5]]
    assert copy[5].endswith("lvb.bundle")
    assert copy[6] == "pod:lvb.bundle"
    assert "--project=mine" in copy
    command = "\n".join(install)
    assert "git clone -q lvb.bundle lvb" in command
    assert "'jax[tpu]'" in command


@pytest.mark.parametrize(
    ("action", "words"), [("log", "tail -n 5 lvb.log"), ("stop", "pkill -TERM -f")]
)
def test_a_pod_is_watched_and_stopped(launch, action, words):
    result, calls = launch("launch_pod.sh", "pod", "z", action)
    assert result.returncode == 0
    assert words in calls[0][-1]


@pytest.mark.parametrize(
    "words", [(), ("pod", "z"), ("pod", "z", "dance"), ("pod", "z", "start")]
)
def test_a_pod_needs_its_words(launch, words):
    result, calls = launch("launch_pod.sh", *words)
    assert result.returncode == 2
    assert not calls
    assert "scripts/launch_pod.sh NAME ZONE start" in result.stderr
    assert "set -euo" not in result.stderr


def test_slurm_runs_the_same_command_in_every_task(launch):
    result, calls = launch("launch_slurm.sh", *TRAIN)
    assert result.returncode == 0, result.stderr
    (call,) = calls
    start = call.index("python")
    assert call[0] == "srun"
    assert call[start:] == ["python", "-m", "lvb.train", "--distributed", *TRAIN]


def test_slurm_queues_again_after_a_signal_and_not_after_an_error(launch):
    result, calls = launch("launch_slurm.sh", *TRAIN, CODE="75")
    assert calls[1] == ["scontrol", "requeue", "7"]
    assert result.returncode == 75
    result, calls = launch("launch_slurm.sh", *TRAIN, CODE="1")
    assert result.returncode == 1
    assert len(calls) == 1
    result, calls = launch("launch_slurm.sh")
    assert result.returncode == 2
    assert "sbatch --nodes=2" in result.stderr


def test_slurm_has_one_task_per_gpu(repo_root):
    lines = (repo_root / "scripts" / "launch_slurm.sh").read_text().splitlines()
    values = dict(
        line.removeprefix("#SBATCH --").split("=", 1)
        for line in lines
        if line.startswith("#SBATCH") and "=" in line
    )
    assert values["gpus-per-node"] == values["ntasks-per-node"]
