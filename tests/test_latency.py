"""Contenders, their records and what the command refuses; no time is asserted."""

import json

import jax
import numpy as np
import pytest
import tiny_model

from lvb import benchmark, contenders, latency
from lvb.analysis import latency_report, machine

FIELDS = {key: tiny_model.options(3)[key] for key in ("depths", "dims")}
COMPLETE = {
    "label",
    "model",
    "fused",
    "dtype",
    "layout",
    "batch_size",
    "image_size",
    "mode",
    "op_form",
    "median_seconds",
    "p5_seconds",
    "p95_seconds",
    "min_seconds",
    "rounds",
    "images_per_second",
    "trace_seconds",
    "lower_seconds",
    "compile_seconds",
    "compiled_from_cache",
    "flops",
    "bytes_accessed",
    "peak_bytes",
    "weight_bytes",
    "seconds",
}


def setup(**changes):
    fields = dict(
        model="lsnet_t",
        fused=True,
        dtype="float32",
        batch_size=2,
        image_size=tiny_model.IMAGE_SIZE,
        mode="inference",
        op_form="auto",
    )
    return contenders.Setup(**{**fields, **changes})


@pytest.fixture(scope="module")
def built():
    return {
        "fused": contenders.build(setup(), **FIELDS),
        "unfused": contenders.build(setup(fused=False), **FIELDS),
        "train": contenders.build(setup(fused=False, mode="train"), **FIELDS),
    }


def test_fused_and_unfused_compute_the_same(built):
    logits = [np.asarray(built[name].call()) for name in ("fused", "unfused")]
    assert logits[0].shape == (2, 1000)
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-5)  # Of order 1, float32.


def test_a_training_step_goes_on_from_its_own_state(built):
    steps, losses = [], []
    for _ in range(4):
        step, metrics = built["train"].call()
        steps.append(int(step))
        assert int(metrics["loss"].count) == 2
        losses.append(float(metrics["loss"].total))
    assert np.diff(steps).tolist() == [1] * 3
    # The batch is the same each time, the weights are not. Two images leave a batch
    # norm too little for the loss to fall at every step.
    assert np.isfinite(losses).all()
    assert len(set(losses)) == 4


def test_the_record_of_a_contender_is_complete(built):
    record = contenders.row(built["unfused"], [0.5, 0.25, 1.0])
    assert record.keys() >= COMPLETE
    assert record["median_seconds"] == 0.5
    assert record["images_per_second"] == 4.0
    assert (record["layout"], record["rounds"]) == ("NHWC", 3)
    assert record["flops"] > 0
    # The arguments are the weights, the images and nothing that is as large.
    assert record["argument_bytes"] > record["weight_bytes"] > 0
    assert record["peak_bytes"] > record["argument_bytes"]
    json.dumps(record)


def test_constants_count_as_memory(built):
    fused = contenders.row(built["fused"], [1.0])
    assert fused["argument_bytes"] < fused["weight_bytes"] < fused["peak_bytes"]


def test_every_combination_is_a_setup():
    found = contenders.setups(
        ["lsnet_t", "fvnet_n"],
        fused=[True, False],
        dtypes=["float32", "bfloat16"],
        batch_sizes=[1, 16],
        image_sizes=[224],
        mode="inference",
        op_forms=["auto"],
    )
    assert len(found) == len({s.label for s in found}) == 16
    assert "lsnet_t/inference/fused/float32/b1/224px/auto" in {s.label for s in found}


def test_a_full_process_is_emptied_before_the_next_contender(capsys):
    setups = [setup(batch_size=size) for size in (1, 2, 3, 4)]
    shares = iter([0.2, 0.7, 0.1])
    seen = [
        dict(group) for group in latency.groups(setups, id, lambda: next(shares, None))
    ]
    assert [list(group) for group in seen] == [
        [s.label for s in setups[:2]],
        [s.label for s in setups[2:]],
    ]
    assert "timed first" in capsys.readouterr().err


def test_dropping_a_contender_makes_room():
    before = machine.mapped_share()
    contender = contenders.build(setup(batch_size=5), **FIELDS)
    jax.block_until_ready(contender.call())
    full = machine.mapped_share()
    made = [None, contender]
    del contender
    emptied = latency.groups([setup(), setup()], lambda _: made.pop(), lambda: 1.0)
    assert len(list(map(len, emptied))) == 2
    assert before <= machine.mapped_share() < full


def test_pairs_in_two_groups_are_not_compared(capsys):
    rows = [
        dict(label="a", group=0),
        dict(label="b", group=0),
        dict(label="c", group=1),
    ]
    assert latency._in_one_group([("a", "b"), ("a", "c")], rows) == [("a", "b")]
    assert "a and c did not fit into one process" in capsys.readouterr().err


def test_pairs_are_named_by_parts():
    setups = [setup(), setup(batch_size=4), setup(model="fvnet_n")]
    pair = latency.compared("lsnet_t/b2:fvnet_n", setups)
    assert pair == (setups[0].label, setups[2].label)
    with pytest.raises(ValueError, match="'lsnet_t' fits 2 contenders; name one"):
        latency.compared("lsnet_t:fvnet_n", setups)
    with pytest.raises(ValueError, match="is no pair; write A:B"):
        latency.compared("lsnet_t", setups)


def test_ratios_are_those_of_the_rounds():
    # Each round of the peer takes twice as long, however loaded the machine is.
    seconds = {"a": [1.0, 5.0, 2.0], "b": [2.0, 10.0, 4.0]}
    (ratio,) = latency.ratios([("a", "b")], seconds)
    assert (ratio["median"], ratio["of_minima"]) == (2.0, 2.0)


def test_report_shows_rows_ratios_and_the_roof(built, monkeypatch):
    monkeypatch.setattr(latency, "_macs", lambda row: 10**6)
    rows = [contenders.row(built[name], [1e-3]) for name in ("fused", "unfused")]
    labels = [row["label"] for row in rows]
    result = {
        "machine": {
            "processor": "a CPU",
            "device": "cpu",
            "threads": 2,
            "versions": {"jax": jax.__version__},
        },
        "commit": "0123456789",
        "warmup": 1,
        "rows": rows,
        "ratios": latency.ratios([labels], {labels[0]: [1e-3], labels[1]: [2e-3]}),
    }
    limits = {"limit/matmul": [2 * 2048**3 / 1e11], "limit/stream": [2**28 / 1e10]}
    latency.add_roofline(result, limits)
    # 2 images of a million multiply-adds on 100 GFLOP/s.
    assert rows[0]["roofline_flops"] == max(rows[0]["flops"], 4e6)
    text = latency_report.report(result)
    assert all(label in text for label in labels)
    assert "2.00x" in text
    assert "100 GFLOP/s" in text
    assert "commit 0123456;" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--latency --models resnet", "--models: 'resnet' is unknown; use some of"),
        ("--latency --mode train --fused", "a fused network has no batch norm"),
        ("--latency --dtypes float8", "--dtypes: 'float8' is unknown"),
        ("--latency --batch_sizes 0", "--batch_sizes=0: give positive numbers"),
        ("--latency --threads 4096", "use 1 to"),
        ("--latency --operators", "this names 2."),
        ("", "this names 0."),
        ("--operators --only pooling", "--only: 'pooling' is unknown"),
    ],
)
def test_what_does_not_fit_is_one_sentence(flags, message, capsys):
    assert benchmark.main(flags.split()) == 1
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "flag"),
    [("table", "--rows"), ("latency", "--compare"), ("operators", "--only")],
)
def test_each_kind_has_flags_of_its_own(kind, flag, capsys):
    with pytest.raises(SystemExit, match="0"):
        benchmark.main([f"--{kind}", "--help"])
    assert flag in capsys.readouterr().out


def test_rounds_must_be_there():
    with pytest.raises(ValueError, match="at least one round"):
        latency.measure({}, rounds=0, warmup=1, with_limits=False)
