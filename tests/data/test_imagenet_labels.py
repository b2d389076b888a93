"""ImageNet's class order, subsets and ReaL labels against the shared lists."""

import json

import pytest

from lvb.data import imagenet_labels


def test_class_order(shared_data):
    listed = (
        (shared_data / "imagenet_meta" / "imagenet_synsets.txt").read_text().split()
    )
    assert list(imagenet_labels.synsets()) == listed == sorted(listed)
    assert len(set(listed)) == 1000


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_r"])
def test_subsets_are_the_published_ones(name, shared_data):
    path = shared_data / "imagenet_meta" / f"{name}_synsets.txt"
    ours = [imagenet_labels.synsets()[k] for k in imagenet_labels.subset(name)]
    assert ours == path.read_text().split()
    assert len(ours) == 200


def test_real_labels(shared_data, tmp_path):
    labels = imagenet_labels.load_real_labels(
        shared_data / "imagenet_meta" / "real.json"
    )
    assert len(labels) == 50_000
    assert sum(not row for row in labels) == 3_163
    short = tmp_path / "real.json"
    for content in ("[[1], [2]]", "no JSON", json.dumps([[1000]] * 50_000)):
        short.write_text(content)
        with pytest.raises(ValueError, match="does not hold 50,000 lists"):
            imagenet_labels.load_real_labels(short)


def test_names_of_validation_images():
    number = imagenet_labels.val_image_number
    assert number("/data/n01440764/ILSVRC2012_val_00000293.JPEG") == 293
    assert number("imagenet2012/validation[3] (ILSVRC2012_val_00050000.JPEG)") == 50_000
    assert number("n01440764_10026.JPEG") is None


def test_class_indices():
    names = ("n15075141", "dog", "n01440764")
    assert imagenet_labels.class_indices(names).tolist() == [999, -1, 0]
    assert imagenet_labels.class_indices(("999", "7", "1000")).tolist() == [999, 7, -1]
