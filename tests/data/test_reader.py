import pickle
from concurrent import futures

import numpy as np
import pytest
from PIL import Image

from lvb.data import decode, folder, reader, sources, transforms

EVAL = transforms.EvalTransform(8, channels=1, crop_ratio=1.0)


def levels(number):
    """A source whose example i is a flat picture of level i and label i mod 3."""
    images = np.broadcast_to(
        np.arange(number, dtype=np.uint8)[:, None, None, None], (number, 8, 8, 1)
    )
    labels = np.arange(number) % 3
    return sources.ArraySource(images, labels, class_names="abc", name="levels")


class Damaged:
    """A source some of whose pictures are broken."""

    def __init__(self, number, broken):
        self._whole, self._broken = levels(number), set(broken)
        self.class_names, self.describe = self._whole.class_names, self._whole.describe

    def __len__(self):
        return len(self._whole)

    def __getitem__(self, index):
        example = self._whole[index]
        return example._replace(image=b"") if index in self._broken else example


def train_rows(source, *, seed=0, repeats=1, transform=EVAL):
    return reader.TrainRows(
        source,
        transform,
        rows=reader.HostRows(4, reader.Shard()),
        seed=seed,
        repeats=repeats,
    )


@pytest.mark.parametrize("count", [1, 2, 4])
def test_hosts_divide_every_step_without_overlap(count):
    steps = []
    for index in range(count):
        rows = reader.HostRows(8, reader.Shard(index, count), start_step=5)
        assert rows.per_step == 8 // count
        mine = [rows.position(row) for row in range(3 * rows.per_step)]
        steps.append(np.reshape(mine, (3, -1)))
    np.testing.assert_array_equal(
        np.concatenate(steps, axis=1), np.arange(40, 64).reshape(3, 8)
    )


@pytest.mark.parametrize("number", [1, 2, 3, 7, 64])
def test_every_epoch_is_a_permutation(number):
    order = reader.EpochOrder(number, seed=4)
    stream = np.array([order[draw] for draw in range(3 * number)])
    for epoch in stream.reshape(3, number):
        assert sorted(epoch) == list(range(number))


def test_order_is_a_pure_function_of_seed_and_position():
    order = reader.EpochOrder(50, seed=4)
    straight = [order[position] for position in range(400)]
    jumping = pickle.loads(pickle.dumps(order))
    places = np.random.default_rng(0).permutation(400)
    assert [jumping[int(p)] for p in places] == [straight[p] for p in places]
    assert straight[:50] != straight[50:100]
    other = reader.EpochOrder(50, seed=5)
    assert [other[position] for position in range(50)] != straight[:50]


def test_seeds_do_not_share_epochs():
    """Epoch 1 of seed 0 is not epoch 0 of seed 1."""
    first, second = (reader.EpochOrder(20, seed=seed) for seed in (0, 1))
    assert [first[20 + i] for i in range(20)] != [second[i] for i in range(20)]


def test_a_row_equals_its_definition():
    """The streams are part of what a checkpoint means, so they are spelled out."""
    source = sources.open_source("synthetic", "train", length=10, size=12)
    transform = transforms.TrainTransform(8)
    rows = train_rows(source, seed=3, transform=transform)
    for position in (0, 9, 10, 25):
        epoch, place = divmod(position, 10)
        index = np.random.default_rng((3, 0, epoch)).permutation(10)[place]
        image = Image.fromarray(source[index].image)
        expected = transform(image, np.random.default_rng((3, 1, position)))
        row = rows(position)
        np.testing.assert_array_equal(row["image"], expected)
        assert row["index"] == index
        assert row["label"] == source[index].label
        assert row["mask"]
        assert not row["broken"]


def test_a_broken_image_is_replaced_by_the_next_good_one_in_the_order():
    order = reader.EpochOrder(9, seed=0)
    drawn = [order[position] for position in range(10)]
    rows = train_rows(Damaged(9, broken=drawn[2:4]))
    for position, shown in ((1, drawn[1]), (2, drawn[4]), (3, drawn[4]), (4, drawn[4])):
        row = rows(position)
        assert (row["image"] == shown).all()
        assert row["label"] == shown % 3
        # The index names the picture drawn, so that it can be reported.
        assert row["index"] == drawn[position]
        assert row["broken"] == (position in (2, 3))


class Counted:
    """A source that counts its reads."""

    def __init__(self, source):
        self.class_names, self._source, self.reads = source.class_names, source, 0

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        self.reads += 1
        return self._source[index]


def test_repeats_fill_rows_side_by_side_and_read_once():
    source = Counted(levels(9))
    rows = train_rows(source, repeats=3)
    order = reader.EpochOrder(9, seed=0)
    found = [int(rows(position)["index"]) for position in range(54)]
    assert found == [order[draw] for draw in range(18) for _ in range(3)]
    assert source.reads == 18
    again = pickle.loads(pickle.dumps(rows))
    assert int(again(7)["index"]) == found[7]


def test_threads_that_make_batches_side_by_side_read_once_each():
    """Two threads take turns in the middle of their pictures' copies."""
    source = Counted(levels(9))
    rows = train_rows(source, repeats=4)
    with (
        futures.ThreadPoolExecutor(1) as first,
        futures.ThreadPoolExecutor(1) as second,
    ):
        for column in range(4):
            first.submit(rows, column).result()
            second.submit(rows, 4 + column).result()
    assert source.reads == 2


def test_every_copy_of_a_broken_image_is_replaced():
    order = reader.EpochOrder(9, seed=0)
    rows = train_rows(Damaged(9, broken=[order[0]]), repeats=3)
    for position in range(3):
        row = rows(position)
        assert (row["image"] == order[1]).all()
        assert row["broken"]
    assert not rows(3)["broken"]


def test_only_broken_images_is_an_error():
    rows = train_rows(Damaged(9, broken=range(9)))
    with pytest.raises(ValueError, match=r"16 images in a row .* the file is empty"):
        rows(0)


def test_eval_rows_come_in_order_then_padding():
    rows = reader.EvalRows(
        levels(5),
        EVAL,
        rows=reader.HostRows(4, reader.Shard(1, 2)),
        seed=0,
        image_shape=(8, 8, 1),
    )
    found = [rows(row) for row in range(4)]  # Positions 2, 3, 6 and 7 of 5.
    assert [int(row["index"]) for row in found] == [2, 3, -1, -1]
    assert [bool(row["mask"]) for row in found] == [True, True, False, False]
    assert [int(row["image"].max()) for row in found] == [2, 3, 0, 0]
    assert {row["image"].shape for row in found} == {(8, 8, 1)}
    assert {row["image"].dtype for row in found} == {np.dtype(np.uint8)}


def test_eval_transforms_that_draw_depend_on_seed_and_example():
    def rows(seed, transform):
        return reader.EvalRows(
            levels(3),
            transform,
            rows=reader.HostRows(1, reader.Shard()),
            seed=seed,
            image_shape=(8, 8, 1),
        )

    noise = transforms.EvalTransform(
        8,
        channels=1,
        ops=(
            lambda image, rng: Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)),
        ),
    )
    first = rows(0, noise)
    assert (first(1)["image"] == rows(0, noise)(1)["image"]).all()
    assert (first(1)["image"] != first(2)["image"]).any()
    assert (first(1)["image"] != rows(1, noise)(1)["image"]).any()


def test_an_image_broken_in_evaluation_is_an_error():
    rows = reader.EvalRows(
        Damaged(5, broken=[3]),
        EVAL,
        rows=reader.HostRows(1, reader.Shard()),
        seed=0,
        image_shape=(8, 8, 1),
    )
    rows(2)
    with pytest.raises(ValueError, match=r"levels\[3\] is broken: the file is empty; "):
        rows(3)


def test_unreadable_files_are_broken_images(jpeg_folder):
    (jpeg_folder / "a" / "0.jpg").unlink()
    (jpeg_folder / "a" / "0.jpg").symlink_to("nowhere")
    source = folder.FolderSource(jpeg_folder)
    with pytest.raises(decode.BrokenImage, match=r"cannot be read \(No such file"):
        reader.load(source, 0)
    image, label = reader.load(source, 12)
    assert (image.size, label) == ((24, 20), 1)


def test_unlabelled_examples_are_named():
    source = sources.ArraySource(
        np.zeros((2, 4, 4, 1), np.uint8), np.array([0, -1]), class_names="ab", name="x"
    )
    reader.load(source, 0)
    with pytest.raises(ValueError, match=r"x\[1\] has label -1, where labels 0 to 1"):
        reader.load(source, 1)
