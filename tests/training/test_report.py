"""What the operator sees."""

import jax
import pytest

from lvb.training import compilation, history, report, sharding


def test_only_the_first_host_speaks(capsys, monkeypatch):
    report.say("one")
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    report.say("two")
    assert capsys.readouterr().out == "one\n"


def test_devices_and_mesh():
    assert report.devices(sharding.make_mesh()) == (
        "8 x cpu on 1 host, mesh data=8 model=1"
    )


def test_tables_align_and_separate_thousands():
    assert report.table([("a", 1234567), ("long", "x"), ("b", True)]) == (
        "  a     1,234,567\n  long  x\n  b     True"
    )


def test_progress_line():
    line = report.progress_line(
        100,
        total_steps=440,
        metrics={"loss": 0.73214, "learning_rate": 0.0029, "top1": 0.5},
        speed={"images_per_sec": 1310.4, "data_wait": 0.031, "eta": 125.0},
    )
    assert line == (
        "step 100/440 (22%)  loss 0.7321  lr 2.90e-03  1,310 images/s  data wait 3%"
        "  ETA 2m05s"
    )


def test_evaluation_line_has_the_accuracies():
    line = report.evaluation_line(
        88,
        metrics={"loss": 0.2, "top1": 0.9528, "top5": 1.0},
        count=1360,
        best=0.96,
    )
    assert line == (
        "step 88  val top1 95.28 %  top5 100.00 %  loss 0.2000  of 1,360 images"
        "  best 96.00 %"
    )


@pytest.mark.parametrize(
    ("cached", "word"), [(True, "from the cache"), (False, "comp")]
)
def test_compilation_is_timed(cached, word):
    step = compilation.CompiledStep(print, 1.25, 20.0, cached)
    text = report.compiled(compilation.Programs(step, step))
    assert text.count(word) == 2
    assert "traced in 1.2 s" in text
    assert "in 20.0 s" in text


def test_the_end_tells_last_best_and_times(capsys, tmp_path):
    scores = history.History().add(5, 0.9).add(10, 0.8)
    summary = report.Summary(
        10, scores, seconds=95.0, compile_seconds=12.34, data_wait=0.012
    )
    assert report.end(summary, folder=tmp_path) is summary
    text = capsys.readouterr().out
    for part in (
        "80.00 % at step 10",
        "90.00 % at step 5",
        "1m35s",
        "12.3 s",
        "1.2%",
        str(tmp_path),
    ):
        assert part in text


def test_a_run_that_was_finished_took_no_time(capsys, tmp_path):
    report.end(report.Summary(3, history.History()), folder=tmp_path)
    assert "wall time" not in capsys.readouterr().out
