"""Whole runs: continuing, refusing, stopping, and what they leave behind."""

import json
import logging
import signal
import sys

import jax
import numpy as np
import pytest
import runs
from sizes import slow_but

from lvb import train
from lvb.training import checkpoint, metric_writer, process, weights, workdir

# A sum over the batch in another order: float32 roundings, enlarged by 24 AdamW steps.
CLOSE = dict(rtol=2e-3, atol=2e-3)


@pytest.fixture(autouse=True)
def micro_net(monkeypatch):
    runs.use_micro_net(monkeypatch)


def run(folder, signals=None, **changes):
    return train.train_and_evaluate(
        runs.tiny_config(**changes), workdir=str(folder), signals=signals
    )


def at_step(monkeypatch, number, action):
    """Calls an action when a session has dispatched so many steps."""
    plain = train.progress.Progress.dispatched
    count = iter(range(1, 1000))

    def dispatched(timer, results):
        plain(timer, results)
        if next(count) == number:
            action()

    monkeypatch.setattr(train.progress.Progress, "dispatched", dispatched)


def stop_at(monkeypatch, number):
    """Signals that come while step `number` of the session runs."""
    signals = process.StopSignals()
    at_step(monkeypatch, number, lambda: setattr(signals, "received", signal.SIGTERM))
    return signals


def final_arrays(folder, step=24):
    path = checkpoint.step_folder(folder / workdir.CHECKPOINTS, step)
    return checkpoint.read(path).arrays


def results(folder):
    """The metrics, without what depends on the clock."""
    return [
        {name: value for name, value in line.items() if not name.startswith("perf/")}
        for line in metric_writer.read_metrics(folder / workdir.METRICS)
    ]


def assert_same_run(folder, other):
    jax.tree.map(
        np.testing.assert_array_equal, final_arrays(folder), final_arrays(other)
    )
    assert results(folder) == results(other)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of 24 steps without a break."""
    folder = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        runs.use_micro_net(patch)
        summary = run(folder)
    return folder, summary


def test_a_run_learns_and_tells_how_well(straight):
    folder, summary = straight
    assert summary.step == 24
    lines = results(folder)
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses[-1] < losses[0]
    steps = [(line["step"], "val/top1" in line) for line in lines]
    assert steps == [
        *[(step, False) for step in (4, 8, 12)],
        (12, True),
        *[(step, False) for step in (16, 20, 24)],
        (24, True),
    ]
    assert all(line["val/count"] == 96 for line in lines if "val/count" in line)


def test_a_run_leaves_what_others_need(straight):
    folder, _ = straight
    notes, variables = weights.load_checkpoint(folder, which="latest")
    assert notes["model"]["name"] == "lsnet_t"
    assert notes["model"]["num_classes"] == 10
    assert notes["class_names"][1] == "class1"
    assert notes["preprocessing"]["size"] == 32
    assert notes["versions"]["jax"] == jax.__version__
    assert notes["config"]["batch_size"] == 16
    assert set(variables["params"]) == {"conv", "norm", "classifier"}
    assert json.loads((folder / workdir.CONFIG).read_text())["seed"] == 0
    assert "classifier/kernel" in (folder / "parameters.txt").read_text()


def test_last_and_best_are_kept(straight):
    folder, summary = straight
    steps = checkpoint.steps_on_disk(folder / workdir.CHECKPOINTS)
    assert steps == sorted({20, 24, summary.scores.best.step})


@pytest.mark.parametrize("number", slow_but([10], [3, 10, 12]))
def test_a_stopped_run_continues_to_the_same_bits(
    straight, tmp_path, monkeypatch, number
):
    with monkeypatch.context() as patch:
        signals = stop_at(patch, number)
        with pytest.raises(process.Stopped, match=f"SIGTERM with step {number} saved"):
            run(tmp_path, signals)
    assert checkpoint.steps_on_disk(tmp_path / workdir.CHECKPOINTS)[-1] == number
    run(tmp_path)
    assert_same_run(tmp_path, straight[0])


def test_a_killed_run_continues_from_its_last_checkpoint(
    straight, tmp_path, monkeypatch
):
    class Killed(BaseException):
        pass

    def kill():
        raise Killed

    with monkeypatch.context() as patch:
        at_step(patch, 15, kill)
        with pytest.raises(Killed):
            run(tmp_path)
    assert checkpoint.steps_on_disk(tmp_path / workdir.CHECKPOINTS)[-1] == 12
    run(tmp_path)
    assert_same_run(tmp_path, straight[0])


@pytest.mark.parametrize("number", slow_but([24], [12, 24]))
def test_an_evaluation_that_was_stopped_is_made_again(
    straight, tmp_path, monkeypatch, number
):
    """The state is saved, the evaluation is not; the last one counts as well."""
    signals = process.StopSignals()
    plain = train.evaluation.evaluate
    passes = iter((12, 24))

    def evaluate(eval_step, variables, batches, **options):
        if next(passes) == number:
            signals.received = signal.SIGINT
        return plain(eval_step, variables, batches, **options)

    with monkeypatch.context() as patch:
        patch.setattr(train.evaluation, "evaluate", evaluate)
        with pytest.raises(process.Stopped, match=f"SIGINT with step {number} saved"):
            run(tmp_path, signals)
    assert (number, True) not in [
        (line["step"], "val/top1" in line) for line in results(tmp_path)
    ]
    run(tmp_path)
    assert_same_run(tmp_path, straight[0])
    summary = run(tmp_path)
    assert summary.scores == straight[1].scores


def test_a_damaged_newest_checkpoint_costs_steps_not_the_run(
    straight, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        signals = stop_at(patch, 10)
        with pytest.raises(process.Stopped):
            run(tmp_path, signals)
    newest = checkpoint.step_folder(tmp_path / workdir.CHECKPOINTS, 10)
    (newest / "metadata" / "metadata").write_text("{}")
    run(tmp_path)
    said = capsys.readouterr().out
    assert f"checkpoint {newest} is damaged" in said
    assert "Starting at step 8 of 24" in said
    assert_same_run(tmp_path, straight[0])


def on_one_device(monkeypatch):
    plain = train.sharding.make_mesh
    monkeypatch.setattr(
        train.sharding,
        "make_mesh",
        lambda *args, **options: plain(jax.devices()[:1], **options),
    )


def close_to(folder, other):
    def compare(ours, theirs):
        np.testing.assert_allclose(ours, theirs, **CLOSE)

    ours, theirs = final_arrays(folder), final_arrays(other)
    for tree in ("params", "batch_stats", "ema"):
        jax.tree.map(compare, ours[tree], theirs[tree])
    for one, two in zip(results(folder), results(other), strict=True):
        if "train/loss" in one:
            np.testing.assert_allclose(one["train/loss"], two["train/loss"], rtol=1e-4)


def test_one_device_and_eight_agree(straight, tmp_path, monkeypatch):
    on_one_device(monkeypatch)
    run(tmp_path)
    close_to(tmp_path, straight[0])


def test_a_run_continues_on_another_number_of_devices(straight, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        signals = stop_at(patch, 10)
        with pytest.raises(process.Stopped):
            run(tmp_path, signals)
    on_one_device(monkeypatch)
    run(tmp_path)
    close_to(tmp_path, straight[0])


def test_training_needs_no_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # Importing it would raise.
    summary = run(tmp_path, **{"schedule.steps": 5})
    assert summary.step == 5
    assert not (tmp_path / "tensorboard").exists()


def test_a_finished_run_says_so(straight, monkeypatch, capsys):
    folder, summary = straight
    monkeypatch.setattr(train.compilation, "compile_programs", pytest.fail)
    assert run(folder).scores == summary.scores
    assert "is finished; there is nothing to do" in capsys.readouterr().out


def test_another_config_is_refused_with_the_difference(straight):
    with pytest.raises(ValueError, match="another config") as error:
        run(straight[0], seed=1, **{"optimizer.lr": 0.5})
    assert "optimizer.lr: 0.004 -> 0.5\n  seed: 0 -> 1" in str(error.value)


def test_leaves_that_do_not_matter_may_change(straight, capsys):
    run(straight[0], **{"checkpoint.keep_last": 3, "data.num_workers": 1})
    said = capsys.readouterr().out
    assert "changed since the run began: checkpoint.keep_last: 2 -> 3" in said


def test_a_workdir_in_use_is_refused(tmp_path):
    with (
        workdir.Workdir(tmp_path),
        pytest.raises(ValueError, match="is in use by process"),
    ):
        run(tmp_path)


def test_a_config_that_does_not_fit_leaves_no_trace(tmp_path):
    with pytest.raises(ValueError, match="batch_size=12 does not split"):
        run(tmp_path, batch_size=12)
    assert not (tmp_path / workdir.CONFIG).exists()


def test_a_loss_that_is_not_finite_ends_the_run_by_name(tmp_path):
    changes = {"optimizer.lr": 1e30, "schedule.steps": 12, "log_every": 8}
    with pytest.raises(FloatingPointError, match=r"of step [2-7] .* rate \d\S*e\+29"):
        run(tmp_path, **changes)
    steps = checkpoint.steps_on_disk(tmp_path / workdir.CHECKPOINTS)
    for step in steps:
        assert np.isfinite(
            final_arrays(tmp_path, step)["params"]["conv"]["kernel"]
        ).all()


def test_each_program_is_compiled_once(tmp_path, caplog):
    # A length of its own, so that nothing comes from another test's process memory.
    # Not the context of the same name: compilation has a thread of its own.
    jax.config.update("jax_log_compiles", True)
    try:
        with caplog.at_level(logging.WARNING):
            run(tmp_path, **{"schedule.steps": 13})
    finally:
        jax.config.update("jax_log_compiles", False)
    compiled = [
        record.getMessage()
        for record in caplog.records
        if "Finished XLA compilation" in record.getMessage()
    ]
    for name in ("train_step", "eval_step"):
        assert sum(f"jit({name})" in message for message in compiled) == 1, compiled


def test_accumulation_and_evaluation_of_averages_run(tmp_path):
    summary = run(
        tmp_path,
        grad_accum=2,
        **{"eval.use_ema": True, "schedule.steps": 6, "eval.batch_size": 5},
    )
    assert summary.step == 6
    notes, variables = weights.load_checkpoint(tmp_path)
    assert notes["use_ema"]
    arrays = final_arrays(tmp_path, 6)
    np.testing.assert_array_equal(
        variables["params"]["conv"]["kernel"], arrays["ema"]["params"]["conv"]["kernel"]
    )


def test_the_start_tells_what_will_run(straight, tmp_path, capsys):
    run(tmp_path, **{"schedule.steps": 5})
    said = capsys.readouterr().out
    for part in (
        "8 x cpu on 1 host, mesh data=8 model=1",
        "optimizer.lr = 0.004",
        "parameters",
        "multiply-adds",
        "synthetic: 96 train, 96 val, 10 classes",
        "5, 6 per epoch",
        "16 images; batch norm sees 16",
        str(tmp_path),
        "train step: traced in",
        "step 4/5 (80%)",
        "best accuracy",
        "of it compilation",
    ):
        assert part in said, part
