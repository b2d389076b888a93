"""The converter's command line, from a file in to a checkpoint out."""

import importlib.util

import jax
import numpy as np
import pytest
from reference import lsnet_layout

from lvb.models import lsnet, lsnet_weights
from lvb.training import weights


@pytest.fixture(scope="module")
def script(repo_root):
    path = repo_root / "scripts" / "convert_torch_lsnet.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def state():
    shapes = lsnet_layout.layout(*lsnet.VARIANTS["T"], num_classes=3, two_heads=True)
    return {
        name: np.asarray(array, np.float32)
        for name, array in lsnet_layout.random_state(shapes).items()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory, state):
    """A checkpoint file and the outputs of the stem, right and wrong."""
    folder = tmp_path_factory.mktemp("convert")
    np.savez(folder / "lsnet_t.npz", **state)
    images = np.random.default_rng(0).standard_normal((1, 3, 64, 64))
    stem = lsnet_layout.Network(state, ()).conv_norm("patch_embed.0", images, strides=2)
    np.savez(folder / "right.npz", input=images, **{"patch_embed.0": stem})
    np.savez(folder / "wrong.npz", input=images, **{"patch_embed.0": stem + 1})
    np.savez(folder / "blind.npz", **{"patch_embed.0": stem})
    return folder


def test_writes_a_checkpoint_that_reads_back(script, folder, state, capsys):
    out = folder / "converted"
    call = [str(folder / "lsnet_t.npz"), "--out", str(out)]
    call += ["--reference", str(folder / "right.npz")]
    assert script.main(call) == 0
    assert "all compared layers agree" in capsys.readouterr().out
    notes, variables = weights.load_checkpoint(out)
    assert notes["model"] == {"name": "lsnet_t", "num_classes": 3, "distilled": True}
    assert notes["source"] == "lsnet_t.npz"
    expected = lsnet_weights.convert("lsnet_t", state)
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


@pytest.mark.parametrize(
    ("file", "extra", "message"),
    [
        ("absent.npz", [], "no such file"),
        ("right.npz", [], "not an unfused LSNet"),
        ("lsnet_t.npz", ["--weights", "model_ema"], "no 'model_ema' in this checkp"),
        ("lsnet_t.npz", ["--reference", "blind.npz"], "has no array 'input'"),
        (
            "lsnet_t.npz",
            ["--reference", "wrong.npz"],
            "patch_embed.0 (backbone/stem/conv0) is the first layer that differs: by 1",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_writes_nothing(
    script, folder, capsys, file, extra, message
):
    out = folder / "refused"
    if "--reference" in extra:
        extra = ["--reference", str(folder / extra[1])]
    assert script.main([str(folder / file), "--out", str(out), *extra]) == 1
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.strip().splitlines()) == 1
    assert not out.exists()


def test_a_folder_in_use_is_left_alone(script, folder, capsys):
    out = folder / "full"
    out.mkdir()
    (out / "precious").write_text("kept")
    assert script.main([str(folder / "lsnet_t.npz"), "--out", str(out)]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert (out / "precious").read_text() == "kept"
