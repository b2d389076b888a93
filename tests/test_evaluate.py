"""The command, end to end, on a small world whose every answer is known.

Classes are colours: an image of one colour belongs to the class of that colour, or to
another one when it is painted wrong on purpose. The model, an ONNX file whose runtime
is replaced, answers with the class of the nearest colour.
"""

import contextlib
import json
import sys
import types

import numpy as np
import pytest
from PIL import Image

from lvb import evaluate
from lvb.data import corruptions, imagenet_labels
from lvb.training import process

SYNSETS = imagenet_labels.synsets()
# Six classes; 6 (stingray) and 11 (goldfinch) are in ImageNet-A, 1 (goldfish) is not.
CLASSES = (0, 1, 6, 11, 500, 999)
COLOURS = {k: (40 * i + 20, 220 - 35 * i, 90) for i, k in enumerate(CLASSES)}


class Colours:
    """Logits of 1,000 classes: minus the distance to the class's colour."""

    def __init__(self, calls):
        self.calls = calls

    def __call__(self, images):
        self.calls.append(len(images))
        mean = images.reshape(len(images), -1, 3).mean(axis=1)  # (B, 3)
        logits = np.full((len(images), 1000), -1e3, np.float32)
        for k, colour in COLOURS.items():
            logits[:, k] = -np.abs(mean - colour).sum(axis=1) / 10
        return logits


@pytest.fixture
def model(tmp_path, monkeypatch):
    """An .onnx file of 32 px uint8 input, and the sizes of the batches it was given."""
    calls = []
    colours = Colours(calls)

    class Session:
        def __init__(self, path, options, providers):
            named = types.SimpleNamespace(
                name="images", shape=["N", 32, 32, 3], type="tensor(uint8)"
            )
            self.get_inputs = lambda: [named]
            self.get_outputs = lambda: [types.SimpleNamespace(name="logits")]

        def run(self, outputs, feeds):
            return [colours(feeds["images"])]

    runtime = types.SimpleNamespace(
        InferenceSession=Session,
        SessionOptions=types.SimpleNamespace,
        get_available_providers=lambda: ["CPU"],
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    path = tmp_path / "colours.onnx"
    path.write_bytes(b"onnx")
    return types.SimpleNamespace(path=path, calls=calls)


def paint(directory, painted, *, size=(40, 36), name="{label}_{i}.png"):
    """Writes images: (label, painted as) pairs, counted from i = 0."""
    for i, (label, colour) in enumerate(painted):
        folder = directory / SYNSETS[label]
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", size, COLOURS[colour])
        image.save(folder / name.format(label=label, i=i), quality=95)


def run(model, workdir, benchmark, *flags, data_dir=None):
    """Runs the command; returns (exit code, evaluation.json)."""
    argv = ["--checkpoint", str(model.path), "--workdir", str(workdir)]
    argv += ["--benchmark", benchmark, "--batch_size", "8", *flags]
    if data_dir is not None:
        argv += ["--data_dir", str(data_dir)]
    code = evaluate.main(argv)
    path = workdir / "evaluation.json"
    return code, json.loads(path.read_text()) if path.is_file() else None


def by_name(document):
    return {(r["benchmark"], r["view"]): r for r in document["results"]}


# Ten of thirteen right: a number of images that no batch divides.
VAL = [(k, k) for k in CLASSES] + [(k, k) for k in CLASSES[:4]]
VAL += [(0, 1), (6, 11), (999, 0)]


@pytest.fixture
def data_dir(tmp_path):
    root = tmp_path / "data"
    paint(root / "val", VAL)
    # Painted as goldfish, which is not among the 200: masked, the nearest of them wins.
    paint(root / "imagenet-a", [(6, 6), (11, 11), (6, 11), (6, 1), (11, 1)])
    return root


def test_counts_are_exact(model, tmp_path, data_dir, capsys):
    code, document = run(model, tmp_path / "w", "imagenet_val", data_dir=data_dir)
    assert code == process.DONE
    (result,) = document["results"]
    assert result["images"] == 13
    assert result["top1"]["correct"] == 10
    assert result["top1"]["percent"] == pytest.approx(1000 / 13)
    assert result["top1"]["low"] < 1000 / 13 < result["top1"]["high"]
    assert result["top5"]["correct"] >= 12
    assert 0 < result["ece"]["percent"] < 50
    assert result["weights"] == "file"
    assert "PARTIAL: 13 of 50,000 images" in result["protocol"]
    assert "resize 36 (bicubic), centre crop 32" in result["protocol"]
    printed = capsys.readouterr().out
    assert (tmp_path / "w" / "evaluation.md").read_text().strip() in printed
    assert "76.92" in printed


def test_a_subset_masks_before_argmax(model, tmp_path, data_dir):
    _, document = run(model, tmp_path / "w", "imagenet_a", data_dir=data_dir)
    results = by_name(document)
    assert results["imagenet_a", "1,000 classes"]["top1"]["correct"] == 2
    # Colour 1 is as far from 0 as from 6; of the 200, 6 is the nearest: one more right.
    assert results["imagenet_a", "200 classes"]["top1"]["correct"] == 3
    assert results["imagenet_a", "200 classes"]["images"] == 5
    assert "resize 36" in results["imagenet_a", "200 classes"]["protocol"]


def test_missing_benchmarks_are_reported_and_the_rest_goes_on(
    model, tmp_path, data_dir, capsys
):
    code, document = run(
        model, tmp_path / "w", "imagenet_r,imagenet_val,imagenet_c", data_dir=data_dir
    )
    assert code == process.DONE
    assert [r["benchmark"] for r in document["results"]] == ["imagenet_val"]
    assert [m["benchmark"] for m in document["missing"]] == ["imagenet_r", "imagenet_c"]
    assert "unpack imagenet-r.tar" in document["missing"][0]["advice"]
    assert "imagenet_r is not evaluated:" in capsys.readouterr().out
    code, _ = run(model, tmp_path / "w2", "imagenet_r", data_dir=data_dir)
    assert code == process.FAILED


def test_finished_benchmarks_are_read_back(model, tmp_path, data_dir):
    _, first = run(model, tmp_path / "w", "imagenet_val", data_dir=data_dir)
    assert model.calls == [8, 8]
    _, again = run(model, tmp_path / "w", "imagenet_val", data_dir=data_dir)
    assert model.calls == [8, 8]
    assert again["results"] == first["results"]
    # Another benchmark joins the same table.
    _, both = run(model, tmp_path / "w", "imagenet_a", data_dir=data_dir)
    assert len(both["results"]) == 3
    assert model.calls == [8, 8, 8]
    # Other weights, crops or images are evaluated anew.
    model.path.write_bytes(b"onnx 2")
    run(model, tmp_path / "w", "imagenet_val", data_dir=data_dir)
    assert len(model.calls) == 5
    run(model, tmp_path / "w", "imagenet_val", "--crop_ratio=0.5", data_dir=data_dir)
    assert len(model.calls) == 7
    paint(data_dir / "val", [(500, 500)], name="new.png")
    _, last = run(model, tmp_path / "w", "imagenet_val", data_dir=data_dir)
    assert len(model.calls) == 9
    assert by_name(last)["imagenet_val", "1,000 classes"]["top1"]["correct"] == 11


def test_real(model, tmp_path, shared_data):
    """Images 1 to 3 of the validation set, painted as one of their labels or not."""
    root = tmp_path / "data"
    labels = json.loads((shared_data / "imagenet_meta" / "real.json").read_text())
    known = [k for k, row in enumerate(labels) if set(row) & set(CLASSES)][:3]
    empty = labels.index([])
    for number, right in ((known[0], True), (known[1], True), (known[2], False)):
        own = next(k for k in CLASSES if k in labels[number])
        other = next(k for k in CLASSES if k not in labels[number])
        name = f"ILSVRC2012_val_{number + 1:08d}.png"
        # The folder, a wrong single label, does not matter.
        paint(root / "val", [(other, own if right else other)], name=name)
    paint(root / "val", [(1, 1)], name=f"ILSVRC2012_val_{empty + 1:08d}.png")
    (root / "real.json").write_text(json.dumps(labels))
    _, document = run(model, tmp_path / "w", "imagenet_real", data_dir=root)
    (result,) = document["results"]
    assert result["images"] == 3
    assert result["top1"]["correct"] == 2


def store_corruptions(root, right_below):
    """ImageNet-C of four images per part; those with i < severity are painted wrong."""
    for name in corruptions.BENCHMARK:
        for severity in corruptions.SEVERITIES:
            painted = [
                (k, k if i >= right_below(severity) else 500)
                for i, k in enumerate(CLASSES[:4])
            ]
            folder = root / "imagenet-c" / name / str(severity)
            paint(folder, painted, size=(32, 32))


def test_stored_imagenet_c(model, tmp_path, data_dir):
    store_corruptions(data_dir, lambda severity: min(severity - 1, 3))
    code, document = run(
        model, tmp_path / "w", "imagenet_val,imagenet_c", data_dir=data_dir
    )
    assert code == process.DONE
    result = by_name(document)["imagenet_c", "1,000 classes"]
    assert result["images"] == 75 * 4
    facts = corruptions.imagenet_c_facts()
    error = np.mean([0, 0.25, 0.5, 0.75, 0.75])
    figures = result["corruption_error"]
    expected = 100 * np.mean([error / b for b in facts["alexnet_error"].values()])
    assert figures["mce"]["value"] == pytest.approx(expected)
    clean, alexnet = 3 / 13, facts["alexnet_clean_error"]
    relative = 100 * np.mean(
        [(error - clean) / (b - alexnet) for b in facts["alexnet_error"].values()]
    )
    assert figures["relative_mce"] == pytest.approx(relative)
    assert figures["corruptions"]["snow"]["accuracy"]["3"] == 50
    assert "published files, folder imagenet-c" in result["protocol"]
    text = (tmp_path / "w" / "evaluation.md").read_text()
    assert "| jpeg_compression" in text


def test_generated_imagenet_c(model, tmp_path, data_dir):
    flags = ["--corruptions=contrast,frost", "--severities=1,5", "--seed=3"]
    code, document = run(
        model, tmp_path / "w", "imagenet_c_generated", *flags, data_dir=data_dir
    )
    assert code == process.DONE
    (result,) = document["results"]
    assert result["images"] == 4 * 13
    # Less contrast leaves the mean colour; frost does not.
    contrast = result["corruption_error"]["corruptions"]["contrast"]["accuracy"]
    assert contrast == pytest.approx({"1": 1000 / 13, "5": 1000 / 13})
    frost = result["corruption_error"]["corruptions"]["frost"]
    assert frost["accuracy"]["5"] < 50
    assert result["corruption_error"]["mce"] is None
    assert (
        "generated with seed 3 from folder val, JPEG quality 85" in result["protocol"]
    )
    assert "frost: procedural, not the published" in result["protocol"]


def test_an_interrupted_benchmark_continues(model, tmp_path, data_dir, monkeypatch):
    flags = ["--corruptions=contrast", "--severities=1,2"]

    def stop_at_second_part(images, *, real=Colours.__call__):
        if len(model.calls) == 3:
            raise KeyboardInterrupt
        return real(types.SimpleNamespace(calls=model.calls), images)

    with monkeypatch.context() as patch:
        patch.setattr(Colours, "__call__", lambda self, x: stop_at_second_part(x))
        code, _ = run(
            model, tmp_path / "w", "imagenet_c_generated", *flags, data_dir=data_dir
        )
    assert code == process.STOPPED
    assert len(model.calls) == 3  # Two batches of the first part, one of the second.
    code, document = run(
        model, tmp_path / "w", "imagenet_c_generated", *flags, data_dir=data_dir
    )
    assert code == process.DONE
    assert len(model.calls) == 5  # Only the second part was made again.
    assert document["results"][0]["images"] == 26


def test_preprocessing_rows(model, tmp_path, data_dir):
    methods = ["own", "bicubic", "opencv_bilinear", "bicubic_no_antialias"]
    _, document = run(
        model,
        tmp_path / "w",
        "imagenet_val",
        f"--resampling={','.join(methods)}",
        data_dir=data_dir,
    )
    rows = {r["weights"]: r for r in document["results"]}
    assert list(rows) == ["file", *(f"file {method}" for method in methods[1:])]
    assert "(opencv_bilinear)" in rows["file opencv_bilinear"]["protocol"]
    assert all(row["top1"]["correct"] == 10 for row in rows.values())


def test_crops_and_resolution(model, tmp_path, data_dir):
    _, document = run(
        model, tmp_path / "w", "imagenet_val", "--crops=10", data_dir=data_dir
    )
    assert document["results"][0]["top1"]["correct"] == 10
    assert "10 crops 32" in document["results"][0]["protocol"]
    assert len(model.calls) == 20
    code, document = run(
        model, tmp_path / "w2", "imagenet_val", "--image_size=64", data_dir=data_dir
    )
    assert code == process.FAILED
    assert "takes images of 32 px only" in document["missing"][0]["advice"]


def test_own_folders(model, tmp_path, data_dir):
    """Any source, by the names of its classes."""
    certificate = {"class_names": list(SYNSETS)}
    model.path.with_name("colours.onnx.json").write_text(json.dumps(certificate))
    _, document = run(model, tmp_path / "w", f"folder:{data_dir}")
    (result,) = document["results"]
    assert result["images"] == 13
    assert result["top1"]["correct"] == 10
    assert result["view"] == "all classes"
    code, document = run(model, tmp_path / "w2", "digits")
    assert code == process.FAILED
    assert "no class of the model" in document["missing"][0]["advice"]


def test_a_broken_image_is_named_and_the_rest_goes_on(model, tmp_path, data_dir):
    broken = data_dir / "imagenet-a" / SYNSETS[6] / "broken.png"
    broken.write_bytes(b"no picture")
    code, document = run(
        model, tmp_path / "w", "imagenet_a,imagenet_val", data_dir=data_dir
    )
    assert code == process.DONE
    assert "broken.png" in document["missing"][0]["advice"]
    assert document["results"][0]["benchmark"] == "imagenet_val"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--benchmark=imagenet_q"], "'imagenet_q' is unknown (did you mean"),
        (["--benchmark=imagenet_a", "--severities=0"], "--severities has '0'; use 1,"),
        (["--benchmark=imagenet_a", "--corruptions=rain"], "--corruptions has 'rain'"),
        (["--benchmark=imagenet_a", "--resampling=area"], "--resampling has 'area'"),
        (["--benchmark=imagenet_a", "--frost_dir=/nowhere"], "lacks frost1.png"),
        (["--benchmark=imagenet_a", "--batch_size=0"], "--batch_size=0; give 1"),
        (["--benchmark=imagenet_a"], "--checkpoint is missing"),
        (
            ["--benchmark=imagenet_a", "--checkpoint=/nowhere"],
            "/nowhere does not exist",
        ),
    ],
)
def test_refuses(flags, message, capsys):
    assert evaluate.main(flags) == process.FAILED
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_list_and_help(capsys):
    assert evaluate.main(["--benchmark", "list"]) == process.DONE
    listed = capsys.readouterr().out
    for name in ("imagenet_real", "imagenet_c_generated", "folder:/path"):
        assert name in listed
    with contextlib.suppress(SystemExit):
        evaluate.main(["--help"])
    text = capsys.readouterr().out
    for flag in ("--frost_dir", "--resampling", "--crops", "--rows", "--distributed"):
        assert flag in text
    assert "75 after Ctrl-C" in text
