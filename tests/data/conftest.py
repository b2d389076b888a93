"""Small data sets that several tests of this folder write to disk."""

import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from lvb.data import imagenet_labels


def jpeg(value=0, size=(12, 10)):
    """A JPEG of one gray level in RGB."""
    file = io.BytesIO()
    Image.new("RGB", size, (value,) * 3).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="session")
def write_tfds():
    """A function that writes a prepared TFDS set without TensorFlow.

    Example i of a split has gray level i and label 7 i mod 1,000; the classes are those
    of ImageNet.
    """
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()

    def write(data_dir, sizes, *, set_name="imagenet2012", broken=()):
        class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version("5.1.0")
            name = set_name

            def _info(self):
                features = tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(encoding_format="jpeg"),
                        "label": tfds.features.ClassLabel(
                            names=imagenet_labels.synsets()
                        ),
                        "file_name": tfds.features.Text(),
                        # Not read by us, and must not be in the way.
                        "boxes": tfds.features.Sequence(tfds.features.BBoxFeature()),
                    }
                )
                return tfds.core.DatasetInfo(builder=self, features=features)

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(split) for split in sizes}

            def _generate_examples(self, split):
                for i in range(sizes[split]):
                    data = jpeg(i)[:100] if i in broken else jpeg(i)
                    yield (
                        i,
                        {
                            "image": io.BytesIO(data),
                            "label": 7 * i % 1000,
                            "file_name": f"{split}_{i}.JPEG",
                            "boxes": [tfds.features.BBox(0.0, 0.0, 1.0, 0.5)],
                        },
                    )

        Builder(
            data_dir=os.fspath(data_dir), file_format="array_record"
        ).download_and_prepare()
        return data_dir / set_name / "5.1.0"

    return write


@pytest.fixture(scope="session")
def edit_info():
    """A function that changes dataset_info.json of a prepared set."""

    def edit(directory, **changes):
        path = directory / "dataset_info.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


@pytest.fixture
def jpeg_folder(tmp_path):
    """Two classes of ten noisy JPEGs; a/3.jpg and b/7.jpg are truncated."""
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(10):
            file = io.BytesIO()
            noise = rng.integers(0, 256, (20, 24, 3), np.uint8)
            Image.fromarray(noise).save(file, "JPEG")
            data = file.getvalue()
            if (name, number) in (("a", 3), ("b", 7)):
                data = data[: len(data) // 2]
            (tmp_path / name / f"{number}.jpg").write_bytes(data)
    return tmp_path
