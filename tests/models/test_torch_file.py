"""Reading PyTorch checkpoints without running code from them."""

import argparse
import contextlib
import pickle
import subprocess
import sys
import types

import numpy as np
import pytest

from lvb.models import torch_file


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    arrays = {"a.weight": np.ones((2, 1), np.float16), "n": np.asarray(3)}
    np.savez(folder / "plain.npz", **arrays)
    wrapped = {f"model.module.{name}": array for name, array in arrays.items()}
    wrapped["model_ema.a.weight"] = np.zeros((2, 1))
    np.savez(folder / "wrapped.npz", **wrapped)
    np.savez(folder / "code.npz", a=np.asarray([print], object))
    (folder / "broken.npz").write_bytes(b"PK\x03\x04 not an archive")
    (folder / "weights.h5").write_bytes(b"")
    return folder


def test_plain_and_wrapped(files):
    for name in ("plain.npz", "wrapped.npz"):
        state = torch_file.read_state(files / name)
        assert list(state) == ["a.weight", "n"]
        assert state["a.weight"].dtype == np.float32
    average = torch_file.read_state(files / "wrapped.npz", weights="model_ema")
    np.testing.assert_array_equal(average["a.weight"], 0)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("code.npz", "model", "cannot be read as an archive of plain arrays"),
        ("broken.npz", "model", "cannot be read as an archive of plain arrays"),
        ("weights.h5", "model", "suffix '.h5' is unknown; use one of .pth"),
        ("absent.npz", "model", "no such file"),
        (
            "plain.npz",
            "model_ema",
            "no 'model_ema' in this checkpoint; it has a, n",
        ),
        ("wrapped.npz", "best", "no 'best' in this checkpoint; it has model, mod"),
    ],
)
def test_refusals(files, name, weights, message):
    with pytest.raises(ValueError, match=message):
        torch_file.read_state(files / name, weights=weights)


def test_missing_libraries_are_named(tmp_path, monkeypatch):
    for suffix, library in ((".pth", "torch"), (".safetensors", "safetensors")):
        path = tmp_path / f"weights{suffix}"
        path.write_bytes(b"")
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(ImportError, match=rf"needs {library}; pip install"):
            torch_file.read_state(path)


def test_pickles_are_read_as_weights_only(tmp_path, monkeypatch):
    """The switch that keeps code out is on, and its refusal is one sentence."""
    calls = []

    def load(path, **options):
        calls.append(options)
        raise pickle.UnpicklingError("Weights only load failed")

    fake = types.ModuleType("torch")
    fake.load = load
    fake.serialization = types.SimpleNamespace(
        safe_globals=lambda allowed: contextlib.nullcontext()
    )
    monkeypatch.setitem(sys.modules, "torch", fake)
    path = tmp_path / "weights.pth"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="which could run code"):
        torch_file.read_state(path)
    assert calls == [{"map_location": "cpu", "weights_only": True}]


def test_safetensors(tmp_path):
    numpy_io = pytest.importorskip("safetensors.numpy", reason="needs lvb[torch]")
    arrays = {"model.a": np.arange(6.0).reshape(2, 3)}
    numpy_io.save_file(arrays, tmp_path / "weights.safetensors")
    state = torch_file.read_state(tmp_path / "weights.safetensors")
    np.testing.assert_array_equal(state["a"], arrays["model.a"])
    (tmp_path / "bad.safetensors").write_bytes(b"no header")
    with pytest.raises(ValueError, match="not a safetensors file"):
        torch_file.read_state(tmp_path / "bad.safetensors")


def test_reads_a_training_checkpoint(tmp_path):
    """Tensors of one of its state dicts, past counters, flags and optimiser state."""
    torch = pytest.importorskip("torch", reason="needs lvb[torch]")
    tensors = {"a": torch.ones(2, dtype=torch.bfloat16), "n": torch.tensor(3)}
    stored = {
        "model": tensors,
        "model_ema": {"a": torch.zeros(2)},
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}},
        "epoch": 3,
        "args": argparse.Namespace(lr=1.0),
    }
    torch.save(stored, tmp_path / "lsnet.pth")
    read = torch_file.read_state(tmp_path / "lsnet.pth")
    assert {name: array.dtype for name, array in read.items()} == {
        "a": np.float32,
        "n": np.int64,
    }
    np.testing.assert_array_equal(read["a"], 1)
    average = torch_file.read_state(tmp_path / "lsnet.pth", weights="model_ema")
    np.testing.assert_array_equal(average["a"], 0)


def test_refuses_code(tmp_path):
    torch = pytest.importorskip("torch", reason="needs lvb[torch]")
    torch.save({"model": subprocess.run}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="which could run code"):
        torch_file.read_state(tmp_path / "code.pth")
