"""How a benchmark's images become pixels, and how the protocol is put into words."""

import jax
import numpy as np
import pytest

from lvb import protocol, restore
from lvb.data import benchmark_parts, benchmarks, sources
from lvb.metrics import label_sets, records
from lvb.training import sharding

OWN = restore.Preprocessing(224, 3, 0.9, "bicubic", (0.5,) * 3, (0.2,) * 3)


def a_model(**changes):
    model = restore.Restored(
        row="best/ema",
        model="lsnet_t",
        digest="abc",
        class_names=(),
        preprocessing=OWN,
        make_predictor=lambda mesh: None,
    )
    return model._replace(**changes)


def settle(name, method="own", model=None, **options):
    benchmark = benchmarks.BENCHMARKS.get(name) or benchmarks.custom(name)
    return protocol.make_protocol(
        benchmark, model or a_model(), protocol.Options(**options), method=method
    )


@pytest.mark.parametrize(
    ("name", "ratio"),
    [
        *(("imagenet_val", 0.9), ("imagenet_real", 0.9), ("imagenet_v2", 0.9)),
        *(("imagenet_a", 0.875), ("imagenet_r", 0.875), ("imagenet_sketch", 0.875)),
        *(("imagenet_c", 1.0), ("imagenet_c_generated", 1.0), ("digits", 0.9)),
    ],
)
def test_crop_of_each_benchmark(name, ratio):
    transform = settle(name).transform
    assert (transform.size, transform.crop_ratio) == (224, ratio)
    assert (transform.method, transform.channels) == ("bicubic", 3)
    overridden = settle(name, crop_ratio=0.8, image_size=288, crops=5).transform
    assert overridden.crop_ratio == (1.0 if ratio == 1 else 0.8)
    assert (overridden.size, overridden.crops) == (288, 5)


def test_rows_of_preprocessing():
    assert settle("imagenet_val").row == "best/ema"
    other = settle("imagenet_val", method="opencv_bilinear")
    assert other.row == "best/ema opencv_bilinear"
    assert other.transform.method == "opencv_bilinear"


def test_an_exported_model_keeps_its_size():
    fixed = a_model(fixed_size=True, row="file")
    assert settle("imagenet_val", model=fixed).transform.size == 224
    with pytest.raises(ValueError, match="takes images of 224 px only; leave out"):
        settle("imagenet_val", model=fixed, image_size=256)


def a_record(count=2, **changes):
    scores = label_sets.score_labels(np.eye(count, 10), np.arange(count))
    views = {"200 classes": scores, "1,000 classes": scores}
    return records.Record(np.arange(count), views, 10)._replace(**changes)


def a_part(name="", origin="folder imagenet-a", note=""):
    return benchmark_parts.Part(name, origin, lambda: None, note)


def test_the_protocol_in_words():
    found = [protocol.Found(a_part(), a_record())]
    assert protocol.describe(settle("imagenet_a"), found) == (
        "ImageNet-A, natural adversarial examples (Hendrycks et al., CVPR 2021);"
        " folder imagenet-a; resize 256 (bicubic), centre crop 224;"
        " PARTIAL: 2 of 7,500 images"
    )
    noted = [
        protocol.Found(a_part("frost/1", note="frost: procedural"), a_record()),
        protocol.Found(a_part("fog/1"), a_record(note="knows 10 classes")),
    ]
    words = protocol.describe(settle("imagenet_c"), noted)
    assert words.count("folder imagenet-a") == 1
    assert "; frost: procedural; " in words
    assert "CVPR" not in protocol.describe(settle("digits"), found)
    assert "PARTIAL" not in protocol.describe(settle("digits"), found)


def test_results_of_each_view():
    found = [protocol.Found(a_part(), a_record())]
    results = protocol.results(settle("imagenet_a"), found, seed=0)
    assert [result["view"] for result in results] == ["200 classes", "1,000 classes"]
    for result in results:
        assert result["benchmark"] == "imagenet_a"
        assert result["weights"] == "best/ema"
        assert result["digest"] == "abc"
        assert result["top1"]["percent"] == 100


def count_rows(batch):
    """A predictor that always says class 0 and remembers its batches."""
    rows = {name: batch[name] for name in ("label", "index", "mask")}
    count_rows.batches.append(int(batch["mask"].sum()))
    return {**rows, "logits": np.eye(1, 10).repeat(len(batch["mask"]), axis=0)}


@pytest.mark.parametrize("batch_size", [1, 7, 360, 500])
def test_every_image_counts_once(batch_size, tmp_path):
    count_rows.batches = []
    digits = sources.open_source("digits", "val")
    zeros = sum(digits[i].label == 0 for i in range(len(digits)))
    own = OWN._replace(size=8, channels=1, mean=(0.5,), std=(0.5,))
    settled = settle("digits", model=a_model(preprocessing=own))
    (found,) = protocol.evaluate_benchmark(
        settled,
        count_rows,
        options=protocol.Options(batch_size=batch_size),
        folder=tmp_path,
        mesh=sharding.make_mesh(jax.devices()[:1]),
    )
    assert sum(count_rows.batches) == 360
    assert len(count_rows.batches) == -(-360 // batch_size)
    scores = found.record.views["all classes"]
    assert scores.top1.sum() == zeros == 36
    labels = [digits[i].label for i in range(len(digits))]
    assert found.record.label.tolist() == labels


def test_a_missing_source_says_so(tmp_path):
    settled = settle("folder:/nowhere")
    with pytest.raises(benchmark_parts.MissingData, match="/nowhere does not exist"):
        protocol.evaluate_benchmark(
            settled,
            count_rows,
            options=protocol.Options(),
            folder=tmp_path,
            mesh=sharding.make_mesh(),
        )
