"""Images of benchmarks are found in folders and in TFDS sets, or asked for."""

import io
import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from lvb.data import benchmark_parts, benchmarks, corruptions, imagenet_labels

CLASSES = ("n01440764", "n03888257")


def fill(directory, classes=CLASSES, *, count=1, prefix="image"):
    for number, name in enumerate(classes):
        (directory / name).mkdir(parents=True)
        for i in range(count):
            level = 40 * number + i
            image = Image.new("RGB", (30, 40), (level, level, level))
            image.save(directory / name / f"{prefix}_{i}.png")


def find(name, data_dir, **options):
    benchmark = benchmarks.BENCHMARKS.get(name) or benchmarks.custom(name)
    return benchmark_parts.find_parts(benchmark, data_dir=data_dir, **options)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("imagenet_val", "val"),
        ("imagenet_val", "imagenet/val"),
        ("imagenet_val", "."),
        ("imagenet_v2", "imagenetv2-matched-frequency-format-val"),
        ("imagenet_a", "imagenet-a"),
        ("imagenet_r", "imagenet_r"),
        ("imagenet_sketch", "sketch"),
    ],
)
def test_folders_are_found(name, folder, tmp_path):
    classes = ("0", "1", "10", "2") if name == "imagenet_v2" else CLASSES
    fill(tmp_path / folder, classes, count=2)
    (part,) = find(name, tmp_path)
    assert part.name == ""
    source = part.open()
    assert len(source) == 2 * len(classes)
    assert source.class_names == classes
    assert str(tmp_path) not in part.origin


def test_stored_corruptions_may_lie_in_their_groups(tmp_path):
    names, severities = ("fog", "spatter"), (1, 5)
    for severity in severities:
        fill(tmp_path / "imagenet-c" / "weather" / "fog" / str(severity))
        fill(tmp_path / "imagenet-c" / "spatter" / str(severity), count=2)
    parts = find("imagenet_c", tmp_path, names=names, severities=severities)
    assert [part.name for part in parts] == ["fog/1", "fog/5", "spatter/1", "spatter/5"]
    assert {part.origin for part in parts} == {"published files, folder imagenet-c"}
    assert [len(part.open()) for part in parts] == [2, 2, 4, 4]
    with pytest.raises(benchmark_parts.MissingData, match=r"unpack noise\.tar"):
        find("imagenet_c", tmp_path)


def test_generated_corruptions(tmp_path, shared_data):
    fill(tmp_path / "val")
    parts = find("imagenet_c_generated", tmp_path, seed=7)
    assert len(parts) == 75
    assert {part.origin for part in parts} == {
        "generated with seed 7 from folder val, JPEG quality 85"
    }
    noted = {part.name for part in parts if part.note}
    assert noted == {f"frost/{severity}" for severity in range(1, 6)}
    assert "not the published photographs" in parts[40].note
    real = find(
        "imagenet_c_generated", tmp_path, frost_dir=shared_data / "imagenet_c" / "frost"
    )
    assert not any(part.note for part in real)
    source = pickle.loads(pickle.dumps(parts[0].open()))
    image = Image.open(io.BytesIO(source[1].image))
    assert image.size == (224, 224)
    assert image.format == "JPEG"
    assert source.class_names == CLASSES


def test_tfds_sets_are_found(tmp_path, write_tfds):
    write_tfds(tmp_path, {"test": 6}, set_name="imagenet_a")
    (part,) = find("imagenet_a", tmp_path)
    assert part.origin == "tfds:imagenet_a"
    assert len(part.open()) == 6
    corrupted = tmp_path / "imagenet2012_corrupted"
    write_tfds(corrupted, {"validation": 3}, set_name="fog_2")
    (part,) = find("imagenet_c", tmp_path, names=("fog",), severities=(2,))
    assert part.origin == "made by TFDS, tfds:imagenet2012_corrupted"
    assert len(part.open()) == 3


def test_what_is_missing_says_what_to_run(tmp_path):
    with pytest.raises(benchmark_parts.MissingData) as error:
        find("imagenet_a", tmp_path)
    assert f"nothing in {tmp_path}; unpack imagenet-a.tar" in str(error.value)
    assert f"tfds build imagenet_a --data_dir={tmp_path}" in str(error.value)
    with pytest.raises(benchmark_parts.MissingData, match="needs --data_dir"):
        find("imagenet_r", None)
    # A TFDS set that is not ready is not taken for a folder of classes.
    (tmp_path / "imagenet_a" / "0.1.0").mkdir(parents=True)
    with pytest.raises(
        benchmark_parts.MissingData, match=r"imagenet_a: .*dataset_info"
    ):
        find("imagenet_a", tmp_path)


def test_own_sources():
    (part,) = find("digits", None)
    assert len(part.open()) == 360
    assert part.origin == "digits source, val"


def write_val(directory, numbers):
    folder = directory / "val" / "n01440764"
    folder.mkdir(parents=True)
    (directory / "val" / "n03888257").mkdir()
    for number in numbers:
        image = Image.new("RGB", (30, 40))
        image.save(folder / f"ILSVRC2012_val_{number:08d}.JPEG")
    image.save(directory / "val" / "n03888257" / "ILSVRC2012_val_00000001.JPEG")


def test_real_labels_follow_the_file_names(tmp_path, shared_data):
    write_val(tmp_path, (50_000, 2))
    (part,) = find("imagenet_real", tmp_path)
    source = part.open()
    with pytest.raises(benchmark_parts.MissingData, match=r"lacks real\.json"):
        benchmark_parts.load_label_sets(source, tmp_path)
    real = shared_data / "imagenet_meta" / "real.json"
    (tmp_path / "real.json").write_text(real.read_text())
    published = json.loads(real.read_text())
    ours = benchmark_parts.load_label_sets(source, tmp_path)
    assert ours == [published[1], published[-1], published[0]]
    Image.new("RGB", (30, 40)).save(tmp_path / "val" / "n01440764" / "photo.png")
    with pytest.raises(benchmark_parts.MissingData, match=r"photo\.png is no image"):
        benchmark_parts.load_label_sets(part.open(), tmp_path)


def test_generated_noise_belongs_to_the_example(tmp_path):
    fill(tmp_path / "val", count=2)
    options = {"names": ("gaussian_noise",), "severities": (3,)}
    (part,) = find("imagenet_c_generated", tmp_path, **options)
    one, again = part.open(), part.open()
    assert one[0].image == again[0].image
    (other,) = find("imagenet_c_generated", tmp_path, seed=1, **options)
    assert one[0].image != other.open()[0].image
    # The noise of examples 0 and 1 is not the same noise.
    pixels = [
        np.asarray(Image.open(io.BytesIO(one[i].image))).astype(int) for i in (0, 1)
    ]
    assert np.corrcoef(pixels[0].ravel(), pixels[1].ravel())[0, 1] < 0.1
    assert corruptions.CORRUPTIONS["gaussian_noise"].group in "noise"
    assert one.describe(0).endswith("image_0.png with gaussian_noise/3")


def write_tfds_real(data_dir, labels):
    """A prepared imagenet2012_real, image k + 1 with the label set labels[k]."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    names = imagenet_labels.synsets()

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        name = "imagenet2012_real"

        def _info(self):
            label = tfds.features.ClassLabel(names=names)
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "original_label": label,
                    "real_label": tfds.features.Sequence(label),
                    "file_name": tfds.features.Text(),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"validation": self._generate_examples()}

        def _generate_examples(self):
            for k, row in enumerate(labels):
                file = io.BytesIO()
                Image.new("RGB", (8, 8)).save(file, "JPEG")
                record = {
                    "image": io.BytesIO(file.getvalue()),
                    "original_label": k,
                    "real_label": row,
                    "file_name": f"ILSVRC2012_val_{k + 1:08d}.JPEG",
                }
                yield k, record

    builder = Builder(data_dir=os.fspath(data_dir), file_format="array_record")
    builder.download_and_prepare()


def test_real_labels_of_the_tfds_set(tmp_path):
    labels = [[5, 7], [], [999], [0]]
    write_tfds_real(tmp_path, labels)
    (part,) = find("imagenet_real", tmp_path)
    assert part.origin == "tfds:imagenet2012_real"
    source = part.open()
    ours = benchmark_parts.load_label_sets(source, tmp_path)
    # TFDS shuffles; example i has the original label k of its file.
    assert [labels[source[i].label] for i in range(4)] == ours
    assert sorted(map(tuple, ours)) == sorted(map(tuple, labels))
