"""The command on real photographs, with a network fitted to some of them here."""

import json
import types

import jax
import numpy as np
import pytest
import tiny_model
from PIL import Image

import lvb
from lvb import evaluate
from lvb.data import transforms
from lvb.training import process, sharding, weights

TRANSFORM = transforms.EvalTransform(tiny_model.IMAGE_SIZE, crop_ratio=0.9)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def run(network, workdir, benchmark, *flags, data_dir):
    """Runs the command; returns evaluation.json."""
    argv = ["--checkpoint", str(network.path), "--workdir", str(workdir)]
    argv += ["--benchmark", benchmark, "--data_dir", str(data_dir), *flags]
    assert evaluate.main(argv) == process.DONE
    return json.loads((workdir / "evaluation.json").read_text())


def images_of(directory, transform):
    """Pixels and WordNet ids of all images below a directory."""
    paths = sorted(directory.glob("*/*.JPEG"))
    pixels = [transform(Image.open(path), None) for path in paths]
    return np.stack(pixels), [path.parent.name for path in paths]


def logits_of(variables, pixels, num_classes):
    """Without any of the machinery: one plain jitted call."""
    model = lvb.create_model(**tiny_model.options(num_classes))
    images = (pixels / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    apply = jax.jit(lambda v, x: model.apply(v, x, train=False))
    return np.asarray(apply(variables, images.astype(np.float32)))


@pytest.fixture(scope="module")
def network(tmp_path_factory, shared_data):
    """A small LSNet whose classifier was fitted to Imagenette's training images.

    The backbone is random: its features, read through a classifier that is the
    identity, are regressed on the ten classes.
    """
    width = tiny_model.options(10)["dims"][-1]
    variables = tiny_model.random_variables(width)
    classifier = variables["params"]["head"]["classifier"]
    classifier["kernel"], classifier["bias"] = np.eye(width), np.zeros(width)
    pixels, names = images_of(shared_data / "imagenette160" / "train", TRANSFORM)
    features = logits_of(variables, pixels, width)  # (250, 32)
    mean, scale = features.mean(axis=0), features.std(axis=0)
    classes = sorted(set(names))
    targets = np.array(names)[:, None] == np.array(classes)  # (250, 10)
    x = (features - mean) / scale
    fitted = np.linalg.solve(x.T @ x + 5 * np.eye(width), x.T @ (targets - 0.1))
    kernel = 5 * fitted / scale[:, None]
    classifier["kernel"] = kernel.astype(np.float32)
    classifier["bias"] = (-mean @ kernel).astype(np.float32)
    path = tmp_path_factory.mktemp("network") / "checkpoint"
    weights.save_variables(
        path,
        variables,
        model=tiny_model.options(len(classes)),
        preprocessing={"size": tiny_model.IMAGE_SIZE, "crop_ratio": 0.9},
        class_names=tuple(classes),
    )
    return types.SimpleNamespace(path=path, variables=variables, classes=classes)


def real_images(shared_data, root):
    """Imagenette's validation images and one image of every tenth class, by synset."""
    (root / "imagenette").mkdir(parents=True)
    (root / "imagenette" / "val").symlink_to(shared_data / "imagenette160" / "val")
    for path in (shared_data / "imagenet_samples" / "images").glob("*.JPEG"):
        folder = root / "samples" / "val" / path.name.partition("_")[0]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).symlink_to(path)


@pytest.mark.slow
def test_real_images_on_one_and_on_eight_devices(
    network, shared_data, tmp_path, monkeypatch
):
    real_images(shared_data, tmp_path)
    every_device = sharding.make_mesh()
    one_device = sharding.make_mesh(jax.devices()[:1])
    assert every_device.devices.size == 8
    for name in ("imagenette", "samples"):
        root, found, predicted = tmp_path / name, [], []
        for mesh, batch_size in ((every_device, 24), (one_device, 24), (one_device, 7)):
            monkeypatch.setattr(sharding, "make_mesh", lambda mesh=mesh: mesh)
            workdir = tmp_path / f"{name}_{mesh.devices.size}_{batch_size}"
            document = run(
                network,
                workdir,
                "imagenet_val",
                f"--batch_size={batch_size}",
                "--num_workers=1" if batch_size == 7 else "--num_workers=0",
                data_dir=root,
            )
            found.append(document["results"][0])
            (path,) = workdir.rglob("*.npz")
            with np.load(path) as arrays:
                predicted.append(arrays["0_prediction"])
        monkeypatch.undo()
        assert [result["images"] for result in found] == [100, 100, 100]
        for key in ("top1", "top5"):
            assert found[0][key] == found[1][key] == found[2][key]
        np.testing.assert_array_equal(predicted[0], predicted[1])
        np.testing.assert_array_equal(predicted[0], predicted[2])
        pixels, names = images_of((root / "val").resolve(), TRANSFORM)
        best = logits_of(network.variables, pixels, 10).argmax(axis=1)
        right = np.array(network.classes)[best] == np.array(names)
        assert found[0]["top1"]["correct"] == right.sum()
        assert "the model knows 10 of the 1,000 classes" in found[0]["protocol"]
        assert len(set(best)) > 5  # The classifier is none that always says the same.


@pytest.mark.slow
def test_raw_and_fused_checkpoints_agree_on_real_images(network, shared_data, tmp_path):
    real_images(shared_data, tmp_path)
    results = []
    for flags in ([], ["--fuse"]):
        document = run(
            network,
            tmp_path / f"w{len(flags)}",
            "imagenet_val,imagenet_c_generated",
            "--corruptions=gaussian_noise,jpeg_compression",
            "--severities=3",
            *flags,
            data_dir=tmp_path / "imagenette",
        )
        results.append([result["top1"]["percent"] for result in document["results"]])
    assert results[0] == results[1]
