"""Weights read from, and written as, checkpoints."""

import shutil

import jax
import numpy as np
import pytest

from lvb.training import checkpoint, weights, workdir

MODEL = {"name": "lsnet_t", "num_classes": 2}
PREPROCESSING = {"size": 32, "mean": [0.5], "std": [0.5]}


def variables(value):
    return {
        "params": {"head": {"kernel": np.full((2, 2), value, np.float32)}},
        "batch_stats": {"norm": {"mean": np.full(3, value, np.float32)}},
    }


def state(value):
    """What a train state becomes on disk, the averages being 100 more."""
    return {**variables(value), "ema": variables(value + 100), "step": np.int32(value)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with steps 2, 4, 6 of which 4 is the best."""
    folder = tmp_path_factory.mktemp("run")
    with checkpoint.Saver(folder / workdir.CHECKPOINTS, keep_last=9) as saver:
        for step in (2, 4, 6):
            best = {"best": {"step": min(step, 4), "value": 0.5}}
            notes = {"step": step, "progress": best, "use_ema": step == 6}
            notes |= {"model": MODEL, "preprocessing": PREPROCESSING}
            saver.save(state(step), step=step, notes=notes)
    return folder


def kernel(loaded):
    return float(loaded["params"]["head"]["kernel"][0, 0])


@pytest.mark.parametrize(("which", "value"), [("best", 4), ("latest", 6), (2, 2)])
@pytest.mark.parametrize("inside", ["", workdir.CHECKPOINTS])
def test_one_of_several_is_chosen(run, which, value, inside):
    notes, loaded = weights.load_checkpoint(run / inside, which=which, weights="raw")
    assert notes["step"] == value
    assert kernel(loaded) == value
    assert set(loaded) == {"params", "batch_stats"}


def test_a_single_one_is_read(run):
    path = run / workdir.CHECKPOINTS / "00000002"
    assert kernel(weights.load_checkpoint(path)[1]) == 2


@pytest.mark.parametrize(
    ("which", "kind", "value"),
    [(6, "auto", 106), (2, "auto", 2), (2, "ema", 102), (6, "raw", 6)],
)
def test_raw_or_averaged_as_the_run_evaluates(run, which, kind, value):
    loaded = weights.load_checkpoint(run, which=which, weights=kind)[1]
    assert kernel(loaded) == value
    assert loaded["batch_stats"]["norm"]["mean"][0] == value


def test_what_is_not_there_is_named(run, tmp_path):
    with pytest.raises(ValueError, match="has no step 3; it has 2, 4, 6"):
        weights.load_checkpoint(run, which=3)
    with pytest.raises(ValueError, match="holds no checkpoint"):
        weights.load_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="weights='best' is unknown"):
        weights.load_checkpoint(run, weights="best")


def test_variables_come_back_from_a_folder_of_their_own(tmp_path):
    path = tmp_path / "converted"
    weights.save_variables(
        path,
        jax.tree.map(jax.numpy.asarray, variables(1.5)),
        model=MODEL,
        preprocessing=PREPROCESSING,
        class_names=("a", "b"),
        source="a file",
    )
    notes, loaded = weights.load_checkpoint(path)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables(1.5))
    assert notes["model"] == MODEL
    assert notes["preprocessing"] == PREPROCESSING
    assert notes["class_names"] == ["a", "b"]
    assert notes["source"] == "a file"
    with pytest.raises(ValueError, match="keeps no averages"):
        weights.load_checkpoint(path, weights="ema")


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is not empty"):
        weights.save_variables(tmp_path, variables(1), model={}, preprocessing={})


def test_models_without_batch_statistics(tmp_path):
    only_params = {"params": variables(1)["params"], "batch_stats": {}}
    weights.save_variables(tmp_path / "x", only_params, model={}, preprocessing={})
    assert weights.load_checkpoint(tmp_path / "x")[1]["batch_stats"] == {}


def test_a_damaged_newest_one_does_not_hide_the_best(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / workdir.CHECKPOINTS / "00000006" / "metadata")
    assert weights.load_checkpoint(copy, which="best")[0]["step"] == 4
    with pytest.raises(checkpoint.CheckpointError, match="is damaged"):
        weights.load_checkpoint(copy, which="latest")
