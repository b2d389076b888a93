"""Exported classifiers: StableHLO for real, ONNX through a stand-in of its runtime."""

import json
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from lvb.training import exported

WEIGHTS = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def classify(images):
    return images.astype(jnp.float32).mean(axis=(1, 2)) @ WEIGHTS


@pytest.fixture
def write_stablehlo():
    """Exports `classify`; needs what lvb[export] brings."""
    pytest.importorskip("flatbuffers", reason="jax.export writes with flatbuffers")
    return export_to


def export_to(path, shape="b, 8, 8, 3", dtype=jnp.uint8, **options):
    sizes = export.symbolic_shape(shape)
    argument = jax.ShapeDtypeStruct(sizes, dtype)
    path.write_bytes(export.export(jax.jit(classify), **options)(argument).serialize())
    return path


def test_stablehlo(tmp_path, write_stablehlo):
    path = write_stablehlo(tmp_path / "model.stablehlo")
    certificate = {"class_names": list("abcd"), "preprocessing": {"crop_ratio": 0.9}}
    (tmp_path / "model.stablehlo.json").write_text(json.dumps(certificate))
    model = exported.open_exported(path)
    assert model.batch_size is None
    assert model.image_shape == (8, 8, 3)
    assert model.dtype == "uint8"
    assert model.certificate == certificate
    for rows in (1, 5):
        images = np.random.default_rng(1).integers(0, 256, (rows, 8, 8, 3), np.uint8)
        np.testing.assert_allclose(
            model.logits_of(images), classify(jnp.asarray(images)), rtol=1e-5
        )


def test_fixed_batch_and_digest(tmp_path, write_stablehlo):
    path = write_stablehlo(tmp_path / "a.stablehlo", "4, 8, 8, 3", jnp.float32)
    model = exported.open_exported(path)
    assert model.batch_size == 4
    assert model.dtype == "float32"
    other = write_stablehlo(tmp_path / "b.stablehlo", "4, 16, 16, 3", jnp.float32)
    assert model.digest != exported.open_exported(other).digest
    assert model.digest == exported.open_exported(path).digest


def test_open_sizes_come_from_the_certificate(tmp_path, write_stablehlo):
    path = write_stablehlo(tmp_path / "model.stablehlo", "b, h, w, 3")
    with pytest.raises(ValueError, match="takes images of any size; name the one"):
        exported.open_exported(path)
    certificate = {"input": {"shape": [None, 8, 8, 3], "dtype": "uint8"}}
    (tmp_path / "model.stablehlo.json").write_text(json.dumps(certificate))
    assert exported.open_exported(path).image_shape == (8, 8, 3)


def test_refuses_what_is_no_file_of_ours(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"model\.onnx does not exist"):
        exported.open_exported(tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"is no exported model; use \.stablehlo"):
        exported.open_exported(tmp_path / "model.pt")
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    monkeypatch.delitem(sys.modules, "jax._src.export.serialization", raising=False)
    path = tmp_path / "model.stablehlo"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"needs flatbuffers; run pip install"):
        exported.open_exported(path)


def test_refuses_what_does_not_fit(tmp_path, write_stablehlo):
    broken = tmp_path / "broken.stablehlo"
    broken.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"is not what jax\.export wrote"):
        exported.open_exported(broken)
    elsewhere = write_stablehlo(tmp_path / "tpu.stablehlo", platforms=["tpu"])
    with pytest.raises(ValueError, match="exported for tpu, and this is cpu"):
        exported.open_exported(elsewhere)
    path = write_stablehlo(tmp_path / "model.stablehlo")
    (tmp_path / "model.stablehlo.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        exported.open_exported(path)
    (tmp_path / "model.stablehlo.json").write_text("[]")
    with pytest.raises(ValueError, match="is no JSON object"):
        exported.open_exported(path)


def stand_in(shape, kind="tensor(float)", inputs=1):
    """A module with the part of onnxruntime that is used."""

    class Session:
        def __init__(self, path, options, providers):
            assert options.log_severity_level == 3
            if not pathlib.Path(path).read_bytes().startswith(b"onnx"):
                raise RuntimeError("INVALID_PROTOBUF\nmore lines")

        def get_inputs(self):
            named = types.SimpleNamespace(name="images", shape=shape, type=kind)
            return [named] * inputs

        def get_outputs(self):
            return [types.SimpleNamespace(name="logits")]

        def run(self, outputs, feeds):
            assert outputs == ["logits"]
            (images,) = feeds.values()
            assert images.shape[1:] == tuple(shape[1:])
            axes = (2, 3) if shape[1] == 3 else (1, 2)
            return [images.mean(axis=axes) @ WEIGHTS]

    return types.SimpleNamespace(
        InferenceSession=Session,
        SessionOptions=types.SimpleNamespace,
        get_available_providers=lambda: ["CPU"],
    )


@pytest.mark.parametrize("shape", [["N", 8, 8, 3], ["N", 3, 8, 8]])
def test_onnx_of_either_layout(shape, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", stand_in(shape))
    path = tmp_path / "model.onnx"
    path.write_bytes(b"onnx")
    model = exported.open_exported(path)
    assert model.image_shape == (8, 8, 3)
    assert model.batch_size is None
    assert model.dtype == "float32"
    images = np.random.default_rng(2).normal(size=(3, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(
        model.logits_of(images), images.mean(axis=(1, 2)) @ WEIGHTS, rtol=1e-4
    )


def test_onnx_refusals(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"needs onnxruntime; run pip install"):
        exported.open_exported(path)
    cases = [
        (stand_in(["N", 8, 8, 3], kind="tensor(int64)"), r"takes tensor\(int64\)"),
        (stand_in(["N", 8, 8, 3], inputs=2), "takes 2 inputs"),
        (stand_in(["N", 192]), "the first of rank 2"),
    ]
    for runtime, message in cases:
        monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
        with pytest.raises(ValueError, match=message):
            exported.open_exported(path)
    path.write_bytes(b"other")
    with pytest.raises(ValueError, match=r"does not load .* \(INVALID_PROTOBUF\)"):
        exported.open_exported(path)
