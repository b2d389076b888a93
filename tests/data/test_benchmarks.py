"""The registry of benchmarks against the published protocols."""

import json

from lvb.data import benchmarks, imagenet_labels


def test_every_benchmark_is_complete():
    assert set(benchmarks.BENCHMARKS) == {
        *("imagenet_val", "imagenet_real", "imagenet_v2", "imagenet_a", "imagenet_r"),
        *("imagenet_sketch", "imagenet_c", "imagenet_c_generated"),
    }
    for name, benchmark in benchmarks.BENCHMARKS.items():
        assert benchmark.name == name
        assert benchmark.images > 0
        assert benchmark.crop in ("own", "256/224", "stored")
        assert benchmark.folders
        assert benchmark.tfds
        assert "{data_dir}" in benchmark.get
        assert len({view.name for view in benchmark.views}) == len(benchmark.views)


def test_subset_benchmarks_report_200_and_1000_classes():
    for name in ("imagenet_a", "imagenet_r"):
        few, all_classes = benchmarks.BENCHMARKS[name].views
        assert few.name == "200 classes"
        assert len(imagenet_labels.subset(few.subset)) == 200
        assert all_classes.name == "1,000 classes"
        assert all_classes.subset is None


def test_crops_are_the_published_ones(shared_data):
    path = shared_data / "imagenet_c" / "robustness_protocol.json"
    published = json.loads(path.read_text())
    for name in ("imagenet_a", "imagenet_r"):
        assert published[name]["test_transform"].startswith(
            "Resize(256)+CenterCrop(224)"
        )
        assert benchmarks.BENCHMARKS[name].crop == "256/224"
    assert "CenterCrop(224) only" in published["imagenet_c"]["test_transform"]
    assert benchmarks.BENCHMARKS["imagenet_c"].crop == "stored"


def test_only_imagenet_c_is_corrupted():
    corrupted = {
        name
        for name, benchmark in benchmarks.BENCHMARKS.items()
        if benchmarks.is_corrupted(benchmark)
    }
    assert corrupted == {"imagenet_c", "imagenet_c_generated"}
    assert not benchmarks.is_corrupted(benchmarks.custom("digits"))
