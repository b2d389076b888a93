import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest

from lvb.data import decode, imagenet, imagenet_labels, sources, tfds_source


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, write_tfds):
    """An ImageNet stand-in of 9 + 4 examples, and a set with a train split only."""
    root = tmp_path_factory.mktemp("tfds")
    write_tfds(root, {"train": 9, "validation": 4}, broken=(2,))
    write_tfds(root, {"train": 10}, set_name="lone")
    return root


@pytest.fixture
def changeable(data_dir, tmp_path):
    """A copy of the stand-in's version directory, to be damaged."""
    return shutil.copytree(
        data_dir / "imagenet2012" / "5.1.0", tmp_path / "imagenet2012" / "5.1.0"
    )


def gray_levels(source):
    """The level of each picture, or None of a broken one."""
    levels = []
    for index in range(len(source)):
        try:
            image = decode.decode_image(source[index].image)
        except decode.BrokenImage:
            levels.append(None)
        else:
            levels.append(round(float(np.asarray(image).mean())))
    return levels


def test_examples_stay_encoded_and_keep_their_labels(data_dir):
    train = sources.open_source("tfds:imagenet2012", "train", data_dir=data_dir)
    assert train.class_names == imagenet_labels.synsets()
    assert isinstance(train[0].image, bytes)
    levels = gray_levels(train)
    assert levels.count(None) == 1
    labels = [train[index].label for index in range(9)]
    # TFDS shuffles; level i goes with label 7 i.
    assert sorted(labels) == [7 * i for i in range(9)]
    assert all(
        label == 7 * (2 if level is None else level)
        for level, label in zip(levels, labels, strict=True)
    )


def test_val_is_the_validation_split(data_dir):
    spec = "tfds:imagenet2012:5.1.0"
    val = sources.open_source(spec, "val", data_dir=data_dir)
    assert len(val) == 4
    number = val[1].label // 7
    assert val.describe(1) == (
        f"imagenet2012/5.1.0/validation[1] (validation_{number}.JPEG)"
    )


def test_a_lone_train_split_is_divided(data_dir):
    train, val = (
        sources.open_source("tfds:lone", split, data_dir=data_dir)
        for split in sources.SPLITS
    )
    assert (len(train), len(val)) == (8, 2)
    assert sorted(gray_levels(train) + gray_levels(val)) == list(range(10))


def test_sources_travel_between_processes(data_dir):
    source = sources.open_source("tfds:lone", "train", data_dir=data_dir)
    source[0]
    again = pickle.loads(pickle.dumps(source))
    assert again[5] == source[5]


def test_tensorflow_is_not_imported(data_dir, repo_root):
    """Read end to end in a process from whose path TensorFlow is hidden."""
    script = f"""
import importlib.machinery, sys

class Hidden(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] == "tensorflow":
            return None
        return super().find_spec(name, path, target)

PathFinder = importlib.machinery.PathFinder
sys.meta_path = [Hidden if f is PathFinder else f for f in sys.meta_path]
from lvb.data import loader, sources, transforms
source = sources.open_source("tfds:imagenet2012", "train", data_dir={str(data_dir)!r})
batches = loader.train_batches(
    source, transforms.TrainTransform(8), batch_size=9, seed=0, max_broken=1.0
)
batch = next(batches)
batches.close()
assert "tensorflow" not in sys.modules
print(batch["image"].shape, int(batch["broken"].sum()), sorted(batch["index"].tolist()))
"""
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=repo_root,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "(9, 8, 8, 3) 1 [0, 1, 2, 3, 4, 5, 6, 7, 8]"


def open_changed(directory, split="train"):
    root = directory.parent.parent
    return sources.open_source("tfds:imagenet2012", split, data_dir=root)


def test_tfrecord_only_names_the_command(changeable, edit_info):
    edit_info(changeable, fileFormat="tfrecord")
    command = (
        f"tfds convert_format --dataset_version_dir={changeable} "
        "--out_file_format=array_record"
    )
    with pytest.raises(ValueError, match="holds tfrecord files only") as caught:
        open_changed(changeable)
    assert f"run '{command}' once." in str(caught.value)


def test_array_record_beside_tfrecord_is_read(changeable, edit_info):
    edit_info(
        changeable, fileFormat="tfrecord", alternativeFileFormats=["array_record"]
    )
    assert len(open_changed(changeable, "val")) == 4
    assert isinstance(open_changed(changeable, "val")[0].image, bytes)


def test_missing_version_lists_what_is_there(changeable):
    shutil.copytree(changeable, changeable.parent / "10.0.0")
    shutil.copytree(changeable, changeable.parent / "5.0.0")
    root = changeable.parent.parent
    with pytest.raises(FileNotFoundError, match=r"there is 5\.0\.0, 5\.1\.0, 10\.0\.0"):
        tfds_source.open_tfds("imagenet2012:4.0.0", "train", data_dir=root)


def test_the_newest_version_is_the_default(changeable, edit_info):
    newest = shutil.copytree(changeable, changeable.parent / "10.0.0")
    edit_info(newest, version="10.0.0")
    assert open_changed(changeable).describe(0).startswith("imagenet2012/10.0.0/train")


def test_configs_are_listed(changeable):
    root = changeable.parent.parent
    os.renames(changeable, root / "c" / "jpeg" / "5.1.0")
    with pytest.raises(FileNotFoundError, match="has configs; write tfds:c/jpeg"):
        tfds_source.open_tfds("c", "train", data_dir=root)
    assert len(tfds_source.open_tfds("c/jpeg", "train", data_dir=root)) == 9
    assert len(tfds_source.open_tfds("c/jpeg:5.1.0", "train", data_dir=root)) == 9


def test_missing_set_names_the_build_command(tmp_path):
    message = (
        f"run 'tfds build food101 --data_dir={tmp_path} --file_format=array_record'"
    )
    with pytest.raises(FileNotFoundError, match="food101 is not prepared") as caught:
        tfds_source.open_tfds("food101", "train", data_dir=tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["", "a b", "a:b:c", "a:1.0/x"])
def test_names_that_do_not_parse(name):
    with pytest.raises(ValueError, match="does not parse; write 'tfds:name'"):
        tfds_source.open_tfds(name, "train", data_dir="/data")


def test_data_dir_is_needed():
    with pytest.raises(ValueError, match="'tfds:food101' needs --data_dir"):
        sources.open_source("tfds:food101", "train")


def test_damaged_sets_get_one_sentence(changeable):
    records = changeable / "imagenet2012-train.array_record-00000-of-00001"
    records.rename(changeable / "elsewhere")
    with pytest.raises(ValueError, match=f"lacks 1 of .* instance {records.name}"):
        open_changed(changeable)
    (changeable / "dataset_info.json").write_text('{"name": "imagenet2012"')
    with pytest.raises(ValueError, match=r"dataset_info.json cannot be read .* again"):
        open_changed(changeable)
    (changeable / "dataset_info.json").unlink()
    with pytest.raises(ValueError, match=r"dataset_info.json cannot be read"):
        open_changed(changeable)


def test_a_damaged_record_is_a_broken_image(changeable):
    source = open_changed(changeable, "val")
    source._records = {1: b"\xff\xff not an example"}
    with pytest.raises(decode.BrokenImage, match="the record is damaged"):
        source[1]
    assert source.describe(1) == "imagenet2012/5.1.0/validation[1]"


def test_sets_without_labelled_pictures_are_refused(changeable):
    path = changeable / "features.json"
    path.write_text(path.read_text().replace('"label"', '"other"'))
    # Any single class label will do.
    assert len(open_changed(changeable)) == 9
    path.write_text(
        path.read_text().replace("image_feature.Image", "text_feature.Text")
    )
    with pytest.raises(ValueError, match=r"has 0 Image features among \['boxes'"):
        open_changed(changeable)


def test_missing_split_is_named(changeable, edit_info):
    edit_info(changeable, splits=[{"name": "test", "shardLengths": ["4"]}])
    with pytest.raises(ValueError, match="has the splits test and none for 'train'"):
        open_changed(changeable)


def test_full_imagenet_has_the_official_size(changeable, monkeypatch):
    monkeypatch.setitem(imagenet.NUM_EXAMPLES, "train", 10)
    monkeypatch.setattr(imagenet, "_MEANT_WHOLE", 0.8)
    with pytest.raises(ValueError, match=r"holds 9 pictures, where .* has 10;"):
        open_changed(changeable)
