"""The predict command on saved networks and real pictures."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from PIL import Image

import lvb
from lvb import predict
from lvb.training import checkpoint, process, weights

PREPROCESSING = {
    **{"size": 32, "crop_ratio": 1.0, "channels": 3, "interpolation": "bilinear"},
    **{"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
}
NAMES = ("cat", "dog", "eel", "n01440764", "fox", "gnu", "hen")


@pytest.fixture(scope="module")
def variables():
    return tiny_model.random_variables(len(NAMES))


@pytest.fixture(scope="module")
def saved(tmp_path_factory, variables):
    folder = tmp_path_factory.mktemp("saved") / "W"
    weights.save_variables(
        folder,
        variables,
        model=tiny_model.options(len(NAMES)),
        preprocessing=PREPROCESSING,
        class_names=NAMES,
    )
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three files of 32 x 32 pixels, so that no resampling comes in between."""
    folder = tmp_path_factory.mktemp("pictures")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    paths = [folder / f"{i}.png" for i in range(3)]
    for path, array in zip(paths, pixels, strict=True):
        Image.fromarray(array).save(path)
    return paths, pixels


def run(*words):
    return predict._main([str(word) for word in words])


def test_top_five_are_those_of_the_model(saved, variables, pictures, capsys):
    paths, pixels = pictures
    assert run(*paths, "--checkpoint", saved) == process.DONE
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 * 6
    model = lvb.create_model(**tiny_model.options(len(NAMES)))
    images = (jnp.asarray(pixels, jnp.float32) / 255 - 0.5) / 0.25
    apply = jax.jit(functools.partial(model.apply, train=False))
    expected = jax.nn.softmax(apply(variables, images))
    words = [name.replace("n01440764", "tench (n01440764)") for name in NAMES]
    for index, path in enumerate(paths):
        assert lines[6 * index] == str(path)
        order = np.argsort(-np.asarray(expected[index]))[:5]
        for line, k in zip(lines[6 * index + 1 :], order, strict=False):
            share, _, name = line.strip().partition("  ")
            assert name == words[k]
            # Two decimals are printed.
            assert float(share.rstrip("%")) == pytest.approx(
                100 * float(expected[index, k]), abs=0.006
            )


def test_more_pictures_than_a_batch_change_nothing(saved, pictures, monkeypatch):
    model = predict.choose(saved)
    images = [Image.fromarray(array) for array in pictures[1]]
    together = predict.predict(model, images)
    monkeypatch.setattr(predict, "_BATCH_SIZE", 2)
    apart = predict.predict(model, images)
    for one, other in zip(together, apart, strict=True):
        assert [guess.name for guess in one] == [guess.name for guess in other]
        np.testing.assert_allclose(
            [guess.probability for guess in one],
            [guess.probability for guess in other],
            rtol=1e-5,
        )


def test_fewer_classes_than_guesses(tmp_path, pictures):
    folder = tmp_path / "two"
    weights.save_variables(
        folder,
        tiny_model.random_variables(2),
        model=tiny_model.options(2),
        preprocessing=PREPROCESSING,
    )
    (row,) = predict.predict(
        predict.choose(folder), [Image.fromarray(pictures[1][0])], top=5
    )
    assert sorted(guess.name for guess in row) == ["class 0", "class 1"]
    assert sum(guess.probability for guess in row) == pytest.approx(1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "64"], "was validated with size=32, not 64; leave out --size"),
        (["--crop_ratio", "0.9"], "crop_ratio=1.0, not 0.9"),
        (["--interpolation", "bicubic"], "interpolation=bilinear, not bicubic"),
    ],
)
def test_another_preprocessing_is_refused_unless_told(
    saved, pictures, words, message, capsys
):
    command = [pictures[0][0], "--checkpoint", saved, *words]
    with pytest.raises(ValueError, match=message):
        run(*command)
    assert run(*command, "--allow_mismatch") == process.DONE
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_a_flag_that_agrees_is_no_mismatch(saved):
    model = predict.choose(saved)
    assert predict.override(model, size=32, crop_ratio=None) == model.preprocessing
    fixed = model._replace(fixed_size=True)
    with pytest.raises(ValueError, match="takes images of 32 px only"):
        predict.override(fixed, size=64, allow_mismatch=True)


@pytest.mark.parametrize(("use_ema", "kind"), [(False, "raw"), (True, "ema")])
def test_a_run_offers_what_it_evaluates(tmp_path, variables, use_ema, kind):
    notes = {
        "model": tiny_model.options(len(NAMES)),
        "preprocessing": PREPROCESSING,
        "class_names": list(NAMES),
        "use_ema": use_ema,
    }
    with checkpoint.Saver(tmp_path / "checkpoints", keep_last=2) as saver:
        for step in (1, 2):
            progress = {"best": {"step": 1, "value": 0.5}}
            saver.save(
                {**variables, "ema": variables},
                step=step,
                notes={**notes, "step": step, "progress": progress},
                best_step=1,
            )
    assert predict.choose(tmp_path).row == f"best/{kind}"
    assert predict.choose(tmp_path, "last/raw").row == "last/raw"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jpg", None, "does not exist"),
        ("text.jpg", b"hello", "cannot be read: the content is none of JPEG"),
        ("empty.png", b"", "the file is empty"),
    ],
)
def test_bad_pictures_are_named(tmp_path, saved, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        run(path, "--checkpoint", saved)
    assert str(path) in str(error.value)


def test_folders_and_missing_checkpoints_are_named(tmp_path, pictures):
    with pytest.raises(ValueError, match="is a folder; give picture files"):
        predict.read_image(tmp_path)
    with pytest.raises(ValueError, match="the checkpoint nowhere does not exist"):
        predict.choose(pathlib.Path("nowhere"))
