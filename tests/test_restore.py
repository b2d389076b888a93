"""Which weights a path offers: last and best, raw and averaged, converted, exported."""

import jax
import numpy as np
import pytest
import tiny_model

import lvb
from lvb import restore
from lvb.training import checkpoint, sharding, weights

MODEL = tiny_model.options(3)
PREPROCESSING = {
    **{"size": 32, "crop_ratio": 0.9, "channels": 3, "interpolation": "bilinear"},
    **{"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
}
NOTES = {
    "model": MODEL,
    "preprocessing": PREPROCESSING,
    "class_names": ["a", "b", "c"],
    "use_ema": False,
}


@pytest.fixture(scope="module")
def variables():
    return tiny_model.random_variables(3)


def scaled(variables, factor):
    return {
        "params": jax.tree.map(lambda x: factor * x, variables["params"]),
        "batch_stats": variables["batch_stats"],
    }


def save_run(folder, variables, *, best_step, ema=True):
    """Checkpoints of steps 1 and 2 whose parameters are 1x and 2x, averages 10x."""
    with checkpoint.Saver(folder / "checkpoints", keep_last=2) as saver:
        for step in (1, 2):
            scores = {"step": best_step, "value": 0.5}
            state = scaled(variables, step)
            if ema:
                state["ema"] = scaled(variables, 10 * step)
            notes = {**NOTES, "step": step, "progress": {"best": scores}}
            saver.save(state, step=step, notes=notes, best_step=best_step)
    return folder


def test_four_rows_of_a_run(tmp_path, variables):
    run = save_run(tmp_path, variables, best_step=1)
    models = restore.restore(run)
    assert [model.row for model in models] == [
        *("last/raw", "last/ema", "best/raw", "best/ema")
    ]
    assert len({model.digest for model in models}) == 4
    for model in models:
        assert model.model == "lsnet_t"
        assert model.class_names == ("a", "b", "c")
        assert model.preprocessing == restore.Preprocessing(
            32, 3, 0.9, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
        )
    (only,) = restore.restore(run, rows=["best/ema"])
    assert only.digest == models[3].digest


def test_best_is_last(tmp_path, variables):
    run = save_run(tmp_path, variables, best_step=2, ema=False)
    (model,) = restore.restore(run)
    assert model.row == "last=best/raw"
    assert [m.row for m in restore.restore(run, rows=["best/raw"])] == [model.row]
    with pytest.raises(ValueError, match=r"has none of the rows last/ema"):
        restore.restore(run, rows=["last/ema"])


def test_one_checkpoint_of_a_run(tmp_path, variables):
    run = save_run(tmp_path, variables, best_step=1)
    models = restore.restore(run / "checkpoints" / "00000001")
    assert [model.row for model in models] == ["raw", "ema"]
    assert models[0].digest == restore.restore(run, rows=["best/raw"])[0].digest


def test_converted_weights_and_their_logits(tmp_path, variables):
    """A converter writes image_size and leaves the channels out."""
    notes = {k: v for k, v in PREPROCESSING.items() if k not in ("size", "channels")}
    weights.save_variables(
        tmp_path / "w",
        variables,
        model=MODEL,
        preprocessing={**notes, "image_size": 32},
    )
    (raw,) = restore.restore(tmp_path / "w")
    assert raw.row == "raw"
    assert raw.class_names == ()
    (fused,) = restore.restore(tmp_path / "w", fuse=True)
    assert fused.row == "raw fused"
    assert fused.digest != raw.digest
    images = np.random.default_rng(1).integers(0, 256, (8, 32, 32, 3), np.uint8)
    batch = {
        "image": images,
        "label": np.zeros(8, np.int32),
        "index": np.arange(8),
        "mask": np.ones(8, bool),
    }
    mesh = sharding.make_mesh(jax.devices()[:1])
    logits = [model.make_predictor(mesh)(batch)["logits"] for model in (raw, fused)]
    model = lvb.create_model(**MODEL)
    x = (images / 255 - 0.5) / 0.25
    apply = jax.jit(lambda v, x: model.apply(v, x, train=False))
    expected = apply(variables, x.astype(np.float32))
    np.testing.assert_allclose(logits[0], expected, rtol=1e-4, atol=1e-4)
    # Fusing reorders float32 sums.
    scale = np.abs(expected).max()
    np.testing.assert_allclose(logits[1], expected, atol=1e-4 * scale)


def test_refuses(tmp_path):
    with pytest.raises(ValueError, match="does not exist; check the path"):
        restore.restore(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        restore.restore(tmp_path)
    with pytest.raises(ValueError, match="row 'ema' is unknown; use last/raw"):
        restore.restore(tmp_path, rows=["ema"])
    empty = {"params": {"bias": np.zeros(3)}}
    weights.save_variables(tmp_path / "w", empty, model=MODEL, preprocessing={})
    with pytest.raises(ValueError, match="does not note the size of its images"):
        restore.restore(tmp_path / "w")
