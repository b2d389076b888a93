"""The sweep script with a stand-in for the trainer, and what it collects."""

import importlib.util
import json
import signal
import threading
import time

import pytest

from lvb.config import runs
from lvb.training import process

# Writes what a trainer would: a config, metrics, and an exit code by its seed.
TRAINER = """
import json, pathlib, sys, time, signal
folder, seed, mode = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
folder.mkdir(parents=True, exist_ok=True)
(folder / "config.json").write_text("{}")
with (folder / "calls").open("a") as f:
    f.write("x")
if mode == "sleep":
    signal.signal(signal.SIGTERM, lambda *a: sys.exit(75))
    (folder / "ready").touch()
    time.sleep(60)
if mode == "fail" and seed == 1:
    sys.exit(1)
value = {"a": 0.70, "b": 0.80}[folder.parent.name] + seed * 0.01
lines = [{"step": 1, "val/top1": 0.1}, {"step": 2, "val/top1": value}, {"step": 3}]
(folder / "metrics.jsonl").write_text("".join(json.dumps(l) + "\\n" for l in lines))
"""


@pytest.fixture
def script(repo_root, tmp_path, monkeypatch):
    """The script, which calls the stand-in; `script.mode` says what that does."""
    path = repo_root / "scripts" / "sweep.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    trainer = tmp_path / "trainer.py"
    trainer.write_text(TRAINER)
    module.mode = "work"

    def command(run, *, folder, extra):
        return [str(trainer), str(folder / run.folder), str(run.seed), module.mode]

    module.real_command = module.command
    monkeypatch.setattr(module, "command", command)
    return module


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "table.py"
    path.write_text("""
from lvb.config import ablation, args, schema

ROWS = {"a": ablation.Row({}, "71.0"), "b": ablation.Row({"remat": True}, "82.0")}

def get_config(arg=""):
    args.parse(arg, row="a")
    return schema.classification()

def get_hyper(hyper):
    return ablation.row_runs(hyper, ROWS, seeds=(0, 1, 2))
""")
    return str(path)


def calls(folder):
    return {
        str(path.parent.relative_to(folder)): len(path.read_text())
        for path in folder.rglob("calls")
    }


def test_it_runs_all_skips_finished_and_collects(script, config, tmp_path, capsys):
    folder = tmp_path / "out"
    words = ["--config", config, "--workdir", str(folder)]
    assert script.main([*words, "--run"]) == process.DONE
    once = {f"{row}/seed_{seed}": 1 for row in "ab" for seed in range(3)}
    assert calls(folder) == once
    assert script.main([*words, "--run"]) == process.DONE
    assert calls(folder) == once
    results = json.loads((folder / "results.json").read_text())
    assert results["b"] == pytest.approx({"0": 80.0, "1": 81.0, "2": 82.0})
    text = (folder / "results.md").read_text()
    assert "val/top1 of 6 of 6 runs" in text
    row = next(line for line in text.splitlines() if line.startswith("| b"))
    # The three differences are equal: a coarse figure is never in bold.
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        *("b", "3", "81.00", "1.00", "+10.00 [+10.00, +10.00]", "82.0")
    ]
    assert "a/seed_0: finished" in capsys.readouterr().out


def test_a_failed_run_is_told_and_tried_again(script, config, tmp_path, capsys):
    folder = tmp_path / "out"
    words = ["--config", config, "--workdir", str(folder), "--run"]
    script.mode = "fail"
    assert script.main(words) == process.FAILED
    assert "2 runs failed: a/seed_1, b/seed_1." in capsys.readouterr().out
    assert "val/top1 of 4 of 6 runs" in (folder / "results.md").read_text()
    script.mode = "work"  # Another command: what was finished counts no more.
    assert script.main(words) == process.DONE
    assert set(calls(folder).values()) == {2}


def test_a_signal_reaches_the_run_and_ends_the_sweep(script, config, tmp_path):
    folder = tmp_path / "out"
    script.mode = "sleep"

    def stop_when_ready():
        while not (folder / "a" / "seed_0" / "ready").exists():
            time.sleep(0.02)
        signal.raise_signal(signal.SIGTERM)

    thread = threading.Thread(target=stop_when_ready)
    thread.start()
    code = script.main(["--config", config, "--workdir", str(folder), "--run"])
    thread.join()
    assert code == process.STOPPED
    assert calls(folder) == {"a/seed_0": 1}
    sweep = runs.plan(config)
    words = script.command(sweep.runs[0], folder=folder, extra=())
    assert script.status(words, folder / "a" / "seed_0") == "started"


def test_without_run_it_prints_commands(script, config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script, "command", script.real_command)
    words = ["--config", config, "--workdir", str(tmp_path / "out")]
    extra = ["--data_dir", "/data", "--config.optimizer.lr=0.1"]
    assert script.main([*words, *extra]) == process.DONE
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert lines[4] == (
        f"python -m lvb.train --config {config}:row=b --workdir "
        f"{tmp_path}/out/b/seed_1 --config.seed=1 --data_dir /data "
        "--config.optimizer.lr=0.1  # new"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--config.batchsize=3"], "did you mean 'batch_size'"),
        (["--baseline", "c"], "--baseline=c is none of the settings a, b"),
    ],
)
def test_slips_stop_it_before_the_first_run(script, config, extra, message):
    with pytest.raises(ValueError, match=message):
        script.main(["--config", config, "--run", *extra])


def test_exit_codes_of_a_command(script, tmp_path):
    exits = tmp_path / "exits.py"
    exits.write_text("import sys; sys.exit(int(sys.argv[1]))")
    assert script.execute([str(exits), "0"], tmp_path) == process.DONE
    assert (tmp_path / script.MARK).is_file()
    assert script.execute([str(exits), "3"], tmp_path) == 3
