import gzip
import io
import pickle
import struct

import numpy as np
import pytest
from PIL import Image

from lvb.data import decode, sources

# A changed split would make old accuracies incomparable.
PINNED_LABELS = [3, 7, 3, 9, 0, 8, 7, 0, 8, 0, 3, 3]
PINNED_SUM = 4256


def pixels(example):
    return np.asarray(example.image)


@pytest.fixture(scope="module")
def digits():
    return {split: sources.open_source("digits", split) for split in sources.SPLITS}


def test_digits_are_split_once_and_for_all(digits):
    assert [len(digits[split]) for split in sources.SPLITS] == [1437, 360]
    distinct = {
        pixels(source[index]).tobytes()
        for source in digits.values()
        for index in range(len(source))
    }
    # All 1,797 pictures differ, so one on both sides would be missing here.
    assert len(distinct) == 1797
    assert [digits["val"][i].label for i in range(12)] == PINNED_LABELS
    assert int(pixels(digits["val"][0]).sum()) == PINNED_SUM


def test_digits_are_stratified_bytes(digits):
    labels = np.array([digits["val"][i].label for i in range(360)])
    np.testing.assert_array_equal(np.bincount(labels), [36] * 10)
    first = pixels(digits["train"][0])
    assert first.shape == (8, 8, 1)
    assert first.dtype == np.uint8
    assert max(pixels(digits["train"][i]).max() for i in range(50)) == 255
    assert digits["train"].class_names == tuple("0123456789")


def test_digits_match_scikit_learn(digits):
    """Level 16 is 255, and the nearest byte gives the level back."""
    from sklearn import datasets

    levels = datasets.load_digits().images.astype(int)
    known = {level.tobytes() for level in levels}
    for index in range(0, 360, 30):
        picture = pixels(digits["val"][index])[..., 0]
        assert np.rint(picture * (16 / 255)).astype(int).tobytes() in known


def test_synthetic_is_a_function_of_seed_split_and_index():
    first = sources.open_source("synthetic", "train", seed=1, length=7, size=20)
    again = sources.open_source("synthetic", "train", seed=1, length=7, size=20)
    assert len(first) == 7
    for index in (6, 0):
        np.testing.assert_array_equal(pixels(first[index]), pixels(again[index]))
    others = [
        sources.open_source("synthetic", "train", seed=2, length=7, size=20),
        sources.open_source("synthetic", "val", seed=1, length=7, size=20),
    ]
    for other in others:
        assert (pixels(other[0]) != pixels(first[0])).any()
    assert (pixels(first[0]) != pixels(first[1])).any()


@pytest.mark.parametrize("channels", [1, 3])
def test_synthetic_has_the_size_asked_for(channels):
    source = sources.open_source(
        "synthetic", "train", length=9, size=13, num_classes=4, channels=channels
    )
    assert pixels(source[0]).shape == (13, 13, channels)
    assert pixels(source[0]).dtype == np.uint8
    assert [source[i].label for i in range(9)] == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert len(source.class_names) == 4


def test_synthetic_patterns_can_be_told_apart_and_noise_cannot():
    """Nearest class mean over held-out pictures, from means over training ones."""

    def accuracy(content):
        train, val = (
            sources.open_source(
                "synthetic", split, length=80, num_classes=4, size=8, content=content
            )
            for split in sources.SPLITS
        )
        means = [
            np.mean([pixels(train[i]).astype(float) for i in range(c, 80, 4)], axis=0)
            for c in range(4)
        ]
        guesses = [
            int(np.argmin([np.square(pixels(val[i]) - mean).sum() for mean in means]))
            for i in range(80)
        ]
        return np.mean([guess == i % 4 for i, guess in enumerate(guesses)])

    assert accuracy("patterns") == 1.0
    # Chance is 0.25 of 80, deviation 0.048: five of them.
    assert accuracy("noise") < 0.5


def test_fashion_mnist(shared_data):
    train, val = (
        sources.open_source("fashion_mnist", split, data_dir=shared_data)
        for split in sources.SPLITS
    )
    assert (len(train), len(val)) == (60_000, 10_000)
    assert pixels(val[0]).shape == (28, 28, 1)
    labels = [val[i].label for i in range(10_000)]
    np.testing.assert_array_equal(np.bincount(labels), [1000] * 10)
    assert val.class_names[val[0].label] == "Ankle boot"


def write_idx(path, magic, shape, data):
    path.write_bytes(
        gzip.compress(struct.pack(f">{1 + len(shape)}I", magic, *shape) + data)
    )


def test_fashion_mnist_reads_idx(tmp_path):
    folder = tmp_path / "fashion_mnist"
    folder.mkdir()
    images = np.arange(12, dtype=np.uint8)
    write_idx(folder / "train-images-idx3-ubyte.gz", 2051, (2, 3, 2), images.tobytes())
    write_idx(folder / "train-labels-idx1-ubyte.gz", 2049, (2,), bytes([3, 9]))
    source = sources.open_source("fashion_mnist", "train", data_dir=tmp_path)
    np.testing.assert_array_equal(pixels(source[1])[..., 0], images[6:].reshape(3, 2))
    assert source[1].label == 9
    first = sources.open_source("fashion_mnist:1", "train", data_dir=tmp_path)
    assert [example.label for example in first] == [3]
    with pytest.raises(ValueError, match=r"fashion_mnist:3' asks for more .* the 2 "):
        sources.open_source("fashion_mnist:3", "train", data_dir=tmp_path)

    write_idx(folder / "train-labels-idx1-ubyte.gz", 2051, (2,), bytes([3, 9]))
    with pytest.raises(ValueError, match=r"labels-idx1-ubyte.gz is damaged .*2051"):
        sources.open_source("fashion_mnist", "train", data_dir=tmp_path)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"not gzip")
    with pytest.raises(ValueError, match=r"images-idx3-ubyte.gz is damaged"):
        sources.open_source("fashion_mnist", "train", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"t10k-images.* is missing"):
        sources.open_source("fashion_mnist", "val", data_dir=tmp_path)


def png(value):
    file = io.BytesIO()
    Image.new("L", (3, 2), value).save(file, "PNG")
    return file.getvalue()


def test_decoded_source_holds_pixels_and_leaves_broken_ones():
    encoded = sources.ArraySource(
        [png(3), b"broken", png(5)], np.arange(3), class_names="abc", name="test"
    )
    decoded = sources.DecodedSource(encoded)
    assert len(decoded) == 3
    assert pixels(decoded[2]).shape == (2, 3, 1)
    assert (pixels(decoded[2]) == 5).all()
    assert decoded[1] == sources.Example(b"broken", 1)
    assert decoded.describe(1) == encoded.describe(1) == "test[1]"
    assert decoded.class_names == encoded.class_names


def test_in_memory_decodes(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(5):
            (tmp_path / name / f"{number}.png").write_bytes(png(number))
    source = sources.open_source(f"folder:{tmp_path}", "train", in_memory=True)
    assert isinstance(source[0].image, np.ndarray)
    assert len(source) == 8


def test_array_source_counts_labels():
    with pytest.raises(ValueError, match="2 images came with 1 labels"):
        sources.ArraySource(
            np.zeros((2, 1, 1, 1)), np.zeros(1), class_names="a", name="test"
        )


@pytest.mark.parametrize("spec", ["digits", "synthetic"])
def test_sources_travel_between_processes(spec):
    source = sources.open_source(spec, "val")
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(pixels(again[3]), pixels(source[3]))
    assert again.describe(3) == source.describe(3) == f"{spec}/val[3]"
    assert decode.decode_image(again[3].image).width in (8, 32)


@pytest.mark.parametrize(
    ("spec", "split", "options", "message"),
    [
        ("digit", "train", {}, r"'digit' is unknown; did you mean 'digits'\?"),
        ("xyz", "train", {}, r"'xyz' is unknown; use one of \['digits'"),
        ("digits", "test", {}, r"split 'test' is unknown; use one of \['train', 'val'"),
        ("digits:3", "train", {}, "'digits:3' has something after 'digits'"),
        ("digits", "train", {"size": 3}, r"takes no options, but \['size'\] came"),
        ("folder:", "train", {}, "'folder:' names no directory"),
        ("fashion_mnist", "train", {}, "needs --data_dir"),
        ("fashion_mnist:0", "train", {}, "'fashion_mnist:0' names no number of"),
        ("fashion_mnist:few", "train", {}, "'fashion_mnist:few' names no number of"),
        ("synthetic", "train", {"length": 0, "size": -1}, "length=0, size=-1 must be"),
        ("synthetic", "train", {"channels": 2}, "channels=2"),
        ("synthetic", "train", {"content": "cats"}, "'cats' is unknown"),
    ],
)
def test_errors_say_what_fits(spec, split, options, message):
    with pytest.raises(ValueError, match=message):
        sources.open_source(spec, split, **options)
