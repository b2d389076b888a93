"""Workdirs and checkpoints of others: refused in a sentence, and nothing is lost."""

import contextlib
import json

import flax.serialization
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import runs
import tiny_model

from lvb import train, transfer
from lvb.training import checkpoint, history, metric_writer, process, weights, workdir

NOTES = {"total_steps": 24, "progress": {}, "model": {"name": "lsnet_t"}}
PREPROCESSING = {"size": 32, "channels": 1, "mean": [0.3], "std": [0.4]}


@pytest.fixture(autouse=True)
def micro_net(monkeypatch):
    runs.use_micro_net(monkeypatch)


@pytest.fixture(scope="module")
def arrays():
    """The state that a run begins with, as it is saved."""
    with pytest.MonkeyPatch.context() as patch:
        runs.use_micro_net(patch)
        return start_arrays(runs.tiny_config())


def start_arrays(config):
    mesh = train.sharding.make_mesh()
    run = train.assembly.assemble(config, num_classes=10, num_train=96, mesh=mesh)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), run.state)
    return flax.serialization.to_state_dict(zeros)


def begin(folder, **changes):
    """Runs up to the state that training begins with; nothing is compiled."""

    class Begun(BaseException):
        pass

    def stop(*unused, **options):
        raise Begun

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.bookends, "say_start", stop)
        with contextlib.suppress(Begun):
            train.train_and_evaluate(runs.tiny_config(**changes), workdir=str(folder))


def save(folder, arrays, **notes):
    """Puts a checkpoint of step 4 into a workdir; returns its folder."""
    path = folder / workdir.CHECKPOINTS
    with checkpoint.Saver(path, keep_last=1) as saver:
        saver.save(arrays, step=4, notes={"step": 4, **notes})
    return checkpoint.step_folder(path, 4)


def told(folder, **changes):
    """The sentence that a run in the folder ends with."""
    with pytest.raises((ValueError, RuntimeError, OSError)) as error:
        begin(folder, **changes)
    return str(error.value)


def without(arrays, *names):
    return {key: value for key, value in arrays.items() if key not in names}


def test_its_own_checkpoint_is_taken(tmp_path, arrays):
    save(tmp_path, arrays, **NOTES)
    begin(tmp_path)


def with_kernel(arrays, change):
    kernel = arrays["params"]["conv"]["kernel"]
    conv = {**arrays["params"]["conv"], "kernel": change(kernel)}
    return {**arrays, "params": {**arrays["params"], "conv": conv}}


FOREIGN = {
    "shape": (lambda a: with_kernel(a, lambda k: k[:2]), "conv/kernel is (2, 4,"),
    "type": (lambda a: with_kernel(a, np.float16), "float16, not (4, 4,"),
    "missing": (lambda a: without(a, "opt_state"), "is nothing, not"),
    "extra": (lambda a: {**a, "more": np.ones(2)}, "the model, which has no more"),
    "empty": (lambda a: {"x": np.ones(1)}, "does not fit the model"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_another_models_checkpoint_is_refused_and_kept(tmp_path, arrays, kind):
    change, message = FOREIGN[kind]
    path = save(tmp_path, change(arrays), **NOTES)
    sentence = told(tmp_path)
    assert f"checkpoint {path} does not fit the model" in sentence
    assert message in sentence
    assert checkpoint.read(path).notes["step"] == 4


def test_converted_weights_are_no_run(tmp_path):
    variables = tiny_model.random_variables(10)
    weights.save_variables(
        tmp_path,
        variables,
        model=tiny_model.options(10),
        preprocessing=PREPROCESSING,
    )
    sentence = told(tmp_path)
    assert "does not note its 'total_steps', so that it cannot serve here" in sentence


@pytest.mark.parametrize("metadata", [{}, {"notes": 3}, {"notes": {}, "digest": None}])
def test_a_checkpoint_of_other_software_is_refused(tmp_path, arrays, metadata):
    path = checkpoint.step_folder(tmp_path / "run" / workdir.CHECKPOINTS, 4)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as other:
        other.save(
            path,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave({"x": np.ones(3)}),
                metadata=ocp.args.JsonSave(metadata),
            ),
        )
    with pytest.raises(checkpoint.CheckpointError, match="is not of lvb: notes and"):
        weights.load_checkpoint(path)
    assert "were damaged and are kept in" in told(tmp_path / "run")
    assert (tmp_path / "run" / checkpoint.DAMAGED / path.name / "state").is_dir()


@pytest.mark.parametrize("what", ["run", "notes", "params", "file", "nothing"])
def test_a_start_from_what_is_no_model_is_refused(tmp_path, arrays, what):
    source = tmp_path / "source"
    source.mkdir()
    noted = {"model": {"name": "x"}, "preprocessing": {}}
    expected = {
        "run": "start from one of the same model",
        "notes": "does not note its 'model'",
        "params": "holds no parameters of a model",
        "file": "holds no checkpoint",
        "nothing": "holds no checkpoint",
    }[what]
    match what:
        case "run":
            save(source, with_kernel(arrays, lambda k: k[:2]), **noted)
        case "notes":
            save(source, arrays)
        case "params":
            save(source, without(arrays, "params"), **noted)
        case "file":
            source = source / "W"
            source.write_bytes(b"PK\x03\x04")
    assert expected in told(tmp_path / "run", **{"init.checkpoint": str(source)})


def test_a_network_that_no_one_notes_is_asked_for(tmp_path, arrays):
    save(tmp_path / "source", arrays)
    start = {"model.name": "", "init.checkpoint": str(tmp_path / "source")}
    assert "set --config.model.name" in told(tmp_path / "run", **start)
    config = runs.tiny_config(**{"model.name": ""})
    for saved in ({}, {"model": 3}, {"model": {}}):
        with pytest.raises(ValueError, match=r"set --config\.model\.name"):
            transfer.resolve_model(config, saved=saved)


GARBAGE = [
    *(b"", b"{", b"[]", b"5", b"null", b'"text"', b"\xff\xfe\x00", b"[" * 100_000),
    bytes(range(256)),
]


@pytest.mark.parametrize("content", GARBAGE, ids=lambda c: ascii(c[:9]))
def test_garbage_for_a_config_is_told(tmp_path, content):
    (tmp_path / workdir.CONFIG).write_bytes(content)
    sentence = told(tmp_path)
    assert f"{workdir.CONFIG} is damaged" in sentence
    assert "choose another --workdir" in sentence
    assert (tmp_path / workdir.CONFIG).read_bytes() == content


@pytest.mark.parametrize("config", [{}, {"model": 3}, {"seed": [1, {"a": 2}]}])
def test_the_workdir_of_another_run_is_refused(tmp_path, config):
    text = json.dumps(config)
    (tmp_path / workdir.CONFIG).write_text(text)
    assert "holds a run with another config" in told(tmp_path)
    assert (tmp_path / workdir.CONFIG).read_text() == text


LINES = [
    *("{", "[]", "5", "null", '"step"', "{}", '{"step": "4"}', '{"step": null}'),
    *('{"step": [4]}', '{"step": 1e999}', "\udcff", "\x00", "[" * 50_000),
    *('{"step": 3, "val/top1": "high"}', '{"step": 4, "val/top1": 0.5}', '{"step": 9}'),
]


def test_garbage_among_metrics_is_left_out_and_kept_aside(tmp_path, arrays):
    """Also through a run, which reads them to find its best evaluation."""
    path = tmp_path / workdir.METRICS
    content = "\n".join(LINES).encode(errors="surrogateescape") + b'\n{"step": '
    path.write_bytes(content)
    lines = metric_writer.read_metrics(path)
    assert [line["step"] for line in lines] == [3, 4, 9]
    scores = history.History().catch_up(lines, metric="val/top1", until=8)
    assert (scores.last, scores.best) == (history.Score(4, 0.5),) * 2
    save(tmp_path, arrays, **NOTES)
    begin(tmp_path)
    assert path.read_bytes() == content
    metric_writer.MetricWriter(path, last_step=4, tensorboard=False).close()
    assert [line["step"] for line in metric_writer.read_metrics(path)] == [3, 4]
    assert path.with_name(f"{path.name}.damaged").read_bytes() == content


def test_a_file_of_metrics_with_a_half_written_end_is_not_kept_twice(tmp_path):
    path = tmp_path / workdir.METRICS
    path.write_text('{"step": 1}\n{"st')
    metric_writer.MetricWriter(path, last_step=4, tensorboard=False).close()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("a\x1b[2J\udcff\u202eb"), "a\\x1b[2J\\udcff\\u202eb"),
        (
            MemoryError(),
            "this machine's memory is full; use smaller batches or images.",
        ),
        (ValueError("x" * 10**6), f"{'x' * 2000} ... {'x' * 2000}"),
        (OSError(), "OSError"),
    ],
)
def test_a_message_is_fit_for_a_terminal(capsys, error, sentence):
    def fail():
        raise error

    assert process.run(fail, name="x") == process.FAILED
    said = capsys.readouterr().err
    assert said.startswith(f"x: error: {sentence}")
    assert said.removesuffix("\n").isprintable()


def test_a_line_of_the_log_may_quote_any_name(capsys):
    train.report.say("class \udcff")
    assert capsys.readouterr().out == "class \\udcff\n"
