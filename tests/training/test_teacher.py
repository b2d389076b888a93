"""Exported teachers inside a compiled step, on one device and on eight."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from lvb.training import sharding, teacher

SHAPE = (8, 8, 3)
CLASSES = 5
WEIGHTS = np.random.default_rng(0).normal(size=(3, CLASSES)).astype(np.float32)
CERTIFICATE = {
    "preprocessing": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]},
    "class_names": list("abcde"),
}

needs_flatbuffers = pytest.mark.usefixtures("flatbuffers")


@pytest.fixture(scope="module")
def flatbuffers():
    return pytest.importorskip("flatbuffers", reason="comes with lvb[export]")


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(16, *SHAPE)).astype(np.float32)


def network(images):
    return jnp.mean(images, axis=(1, 2)) @ WEIGHTS


def expected(images):
    return images.mean(axis=(1, 2), dtype=np.float64) @ WEIGHTS.astype(np.float64)


def write_stablehlo(
    path, *, batch="b", dtype=np.float32, function=network, shape=SHAPE
):
    size = export.symbolic_shape(batch)[0] if isinstance(batch, str) else batch
    argument = jax.ShapeDtypeStruct((size, *shape), dtype)
    path.write_bytes(export.export(jax.jit(function))(argument).serialize())
    return path


def on_mesh(opened, images, mesh):
    """The logits of a step whose batch is split over the mesh."""
    split, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    step = jax.jit(opened.logits_of, in_shardings=(whole, split), out_shardings=split)
    return step(opened.variables, jax.device_put(images, split))


@needs_flatbuffers
def test_stablehlo_in_a_split_step_equals_the_network(tmp_path, mesh, images):
    path = write_stablehlo(tmp_path / "t.stablehlo")
    (tmp_path / "t.stablehlo.json").write_text(json.dumps(CERTIFICATE))
    opened = teacher.open_file(path, mesh=mesh)
    assert opened.num_classes == CLASSES
    assert opened.image_shape == SHAPE
    assert opened.class_names == tuple("abcde")
    assert (opened.mean, opened.std) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    logits = on_mesh(opened, images, mesh)
    assert logits.sharding.spec == sharding.batch_sharding(mesh).spec
    np.testing.assert_allclose(logits, expected(images), atol=1e-5)


@needs_flatbuffers
def test_channels_first_and_half_precision_files(tmp_path, mesh, images):
    path = write_stablehlo(
        tmp_path / "t.stablehlo",
        dtype=jnp.bfloat16,
        function=lambda x: network(jnp.transpose(x, (0, 2, 3, 1))),
        shape=(3, 8, 8),
    )
    opened = teacher.open_file(path, mesh=mesh)
    assert opened.image_shape == SHAPE
    assert (opened.mean, opened.class_names) == (None, ())
    logits = on_mesh(opened, images, mesh)
    assert logits.dtype == jnp.float32
    # bfloat16 keeps 8 bits of inputs up to 3, and 64 of them are averaged.
    np.testing.assert_allclose(logits, expected(images), atol=0.05)


@needs_flatbuffers
def test_a_fixed_batch_and_pixels_are_refused(tmp_path, mesh, images):
    fixed = write_stablehlo(tmp_path / "fixed.stablehlo", batch=4)
    with pytest.raises(ValueError, match="takes batches of 4 only, and gets 16"):
        on_mesh(teacher.open_file(fixed, mesh=mesh), images, mesh)
    pixels = write_stablehlo(tmp_path / "pixels.stablehlo", dtype=np.uint8)
    with pytest.raises(ValueError, match="--input float32"):
        teacher.open_file(pixels, mesh=mesh)


def write_onnx(path):
    """ReduceMean over rows and columns, then a matrix product; channels first."""
    onnx = pytest.importorskip("onnx", reason="comes with lvb[export]")
    pytest.importorskip("onnxruntime", reason="comes with lvb[export]")
    from onnx import helper, numpy_helper

    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=0),
            helper.make_node("MatMul", ["m", "w"], ["y"]),
        ],
        "teacher",
        [helper.make_tensor_value_info("x", kind, ["b", 3, 8, 8])],
        [helper.make_tensor_value_info("y", kind, ["b", CLASSES])],
        [
            numpy_helper.from_array(np.array([2, 3], np.int64), "axes"),
            numpy_helper.from_array(WEIGHTS, "w"),
        ],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


def test_onnx_on_the_host_equals_the_network(tmp_path, mesh, images):
    opened = teacher.open_file(write_onnx(tmp_path / "t.onnx"), mesh=mesh)
    assert (opened.num_classes, opened.image_shape) == (CLASSES, SHAPE)
    logits = on_mesh(opened, images, mesh)
    assert len(logits.addressable_shards) == mesh.devices.size
    np.testing.assert_allclose(logits, expected(images), atol=1e-5)


def make(**changes):
    known = teacher.Teacher(
        name="T",
        logits_of=lambda variables, images: network(images),
        variables={},
        num_classes=2,
        class_names=("cat", "dog"),
        image_shape=(32, 32, 3),
        any_size=True,
        mean=None,
        std=None,
    )
    return known._replace(**changes)


def test_a_teacher_that_fits_says_nothing():
    check = dict(image_shape=(32, 32, 3), class_names=("cat", "dog"))
    assert make().check(**check) == ""
    assert make(class_names=()).check(**check) == ""


def test_what_is_worth_knowing_is_said():
    other_size = make().check(image_shape=(64, 64, 3), class_names=("cat", "dog"))
    assert other_size == "it learnt from images of 32 x 32 x 3"
    other_names = make().check(image_shape=(32, 32, 3), class_names=("chat", "chien"))
    assert "'cat' for 'chat'" in other_names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_shape": (32, 32, 1)}, "takes images of 32 x 32 x 1"),
        (
            {"image_shape": (64, 64, 3), "any_size": False},
            "takes images of 64 x 64 x 3",
        ),
        ({"num_classes": 1000, "class_names": ()}, "knows 1000 classes and .* has 2"),
        ({"class_names": ("dog", "cat")}, "in another order"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes).check(image_shape=(32, 32, 3), class_names=("cat", "dog"))
