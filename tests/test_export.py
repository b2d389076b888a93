"""Exports a checkpoint and opens the files again, each in its own runtime."""

import json

import numpy as np
import pytest
import tiny_model
from sizes import slow_but

from lvb import export
from lvb.training import exporting, weights

CLASSES = ("cat", "dog", "fish")
PREPROCESSING = {
    "size": tiny_model.IMAGE_SIZE,
    "channels": 3,
    "crop_ratio": 0.875,
    "interpolation": "bicubic",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
}
NEEDED = {"stablehlo": ("flatbuffers",), "onnx": ("jax2onnx", "onnxruntime")}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    weights.save_variables(
        folder / "w",
        tiny_model.random_variables(len(CLASSES)),
        model=tiny_model.options(len(CLASSES)),
        preprocessing=PREPROCESSING,
        class_names=CLASSES,
    )
    return str(folder / "w")


@pytest.fixture(scope="module", params=slow_but(["stablehlo"], sorted(NEEDED)))
def files(request, checkpoint, tmp_path_factory):
    """The folder of an export that takes pixels, its format and its certificate."""
    for package in NEEDED[request.param]:
        pytest.importorskip(package, reason="comes with lvb[export]")
    out = tmp_path_factory.mktemp(request.param)
    certificates = export.export_checkpoint(
        checkpoint, out, formats=[request.param], input_dtype="uint8"
    )
    return out, request.param, certificates[f"lsnet_t.{request.param}"]


def test_file_computes_what_the_model_does(files):
    _, _, certificate = files
    # Logits of a random network, relative to the largest: float32 of two compilers.
    assert certificate["max_abs_error"] < 1e-4 * certificate["largest_logit"]
    assert certificate["mean_abs_error"] <= certificate["max_abs_error"]
    assert certificate["top1_agreement"] == 1.0
    assert certificate["num_images"] == 16


def test_certificate_tells_what_the_file_cannot(files):
    out, kind, certificate = files
    size = tiny_model.IMAGE_SIZE
    assert certificate["input"] == {"shape": [None, size, size, 3], "dtype": "uint8"}
    assert certificate["class_names"] == list(CLASSES)
    assert certificate["preprocessing"] == PREPROCESSING
    assert certificate["images"] == "noise"
    assert certificate["exported_with"]["jax"]
    written = json.loads((out / f"lsnet_t.{kind}.json").read_text())
    assert written == json.loads(json.dumps(certificate))


def test_operators_are_stock(files):
    _, kind, certificate = files
    operators = certificate["operators"]
    if kind == "onnx":
        assert operators["Conv"] > 10
    else:
        products = ("stablehlo.convolution", "stablehlo.dot_general")
        assert all(operators[name] > 2 for name in products)
        calls = {name for name in operators if "custom_call" in name}
        # JAX's own check that the batch is not empty; no kernel of anybody's.
        assert calls <= {"stablehlo.custom_call @shape_assertion"}


def test_certify_repeats_and_refuses_other_bytes(files, tmp_path):
    out, kind, certificate = files
    for path in out.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    copy = tmp_path / f"lsnet_t.{kind}"
    assert export.certify_file(copy)["max_abs_error"] == certificate["max_abs_error"]
    content = bytearray(copy.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    with pytest.raises(ValueError, match="its certificate is for"):
        exporting.certify(copy, lambda images: images)


def test_missing_sample_is_named(files, tmp_path):
    out, kind, _ = files
    copy = tmp_path / f"lsnet_t.{kind}"
    copy.write_bytes((out / copy.name).read_bytes())
    with pytest.raises(ValueError, match=r"npz is missing; export the model again"):
        exporting.certify(copy, lambda images: images)


def test_photographs_are_prepared_as_for_evaluation(tmp_path):
    from PIL import Image

    for index in range(2):
        pixels = np.full((64, 48, 3), 40 * index, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    pixels = export.sample_pixels(str(tmp_path), PREPROCESSING)
    assert pixels.shape == (2, 32, 32, 3)
    assert pixels.dtype == np.uint8
    assert [int(image.max()) for image in pixels] == [0, 40]


@pytest.mark.parametrize(
    ("formats", "images", "message"),
    [
        (["tflite"], None, "--format=tflite is unknown"),
        (["stablehlo"], "empty", "holds 0 JPEG or PNG files"),
    ],
)
def test_what_does_not_fit_is_named(checkpoint, tmp_path, formats, images, message):
    folder = str(tmp_path) if images else None
    with pytest.raises(ValueError, match=message):
        export.export_checkpoint(
            checkpoint,
            tmp_path / "out",
            formats=formats,
            input_dtype="float32",
            images=folder,
        )
