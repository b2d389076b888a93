import io
import os
import pickle
import re

import numpy as np
import pytest
from PIL import Image

from lvb.data import folder, sources


def png(value=0):
    file = io.BytesIO()
    Image.new("L", (2, 2), value).save(file, "PNG")
    return file.getvalue()


PNG = png()


def make(root, tree):
    """Writes files; a value of None makes a directory."""
    for path, content in tree.items():
        target = root / path
        if content is None:
            target.mkdir(parents=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    return root


def names(source):
    """Relative paths and labels."""
    return [
        (os.path.relpath(source.describe(i), source._root), source[i].label)
        for i in range(len(source))
    ]


def test_classes_and_files_are_sorted_whatever_the_disk_says(tmp_path):
    tree = {"b/2.PNG": PNG, "b/10.jpeg": PNG, "a/x.JPG": PNG, "a/.hidden.jpg": PNG}
    tree |= {"a/notes.txt": b"", ".git/x.jpg": PNG, "readme.jpg.txt": b""}
    source = folder.FolderSource(make(tmp_path, tree))
    assert source.class_names == ("a", "b")
    assert names(source) == [("a/x.JPG", 0), ("b/10.jpeg", 1), ("b/2.PNG", 1)]


def test_files_in_nested_directories_belong_to_the_class(tmp_path):
    make(tmp_path, {"a/deep/er/1.jpg": PNG, "a/0.jpg": PNG, "b/1.jpg": PNG})
    source = folder.FolderSource(tmp_path)
    assert names(source) == [("a/0.jpg", 0), ("a/deep/er/1.jpg", 0), ("b/1.jpg", 1)]


def test_examples_are_the_bytes_of_the_files(tmp_path):
    make(tmp_path, {"a/1.png": png(1), "b/2.png": png(2)})
    source = pickle.loads(pickle.dumps(folder.FolderSource(tmp_path)))
    assert source[1] == sources.Example(png(2), 1)


def test_names_need_not_be_text(tmp_path):
    os.makedirs(tmp_path / "a")
    odd = os.path.join(os.fsencode(tmp_path), b"a", b"\xff caf\xe9 \n.png")
    with open(odd, "wb") as file:
        file.write(PNG)
    make(tmp_path, {"b/1.png": PNG})
    source = folder.FolderSource(tmp_path)
    assert source[0].image == PNG


def test_links_are_followed_once_and_loops_end(tmp_path):
    make(tmp_path, {"a/1.jpg": PNG, "b/1.jpg": PNG, "elsewhere/.x/2.jpg": PNG})
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "twice1").symlink_to(tmp_path / "elsewhere" / ".x")
    (tmp_path / "a" / "twice2").symlink_to(tmp_path / "elsewhere" / ".x")
    (tmp_path / "a" / "ring").symlink_to("ring")
    (tmp_path / "b" / "linked.jpg").symlink_to(tmp_path / "a" / "1.jpg")
    (tmp_path / "elsewhere" / "3.jpg").write_bytes(PNG)
    source = folder.FolderSource(tmp_path)
    assert source.class_names == ("a", "b", "elsewhere")
    files = [name for name, _ in names(source)]
    assert len(files) == 5
    assert {"a/1.jpg", "b/1.jpg", "b/linked.jpg", "elsewhere/3.jpg"} < set(files)


def test_a_class_that_is_only_a_loop_is_named(tmp_path):
    make(tmp_path, {"a/1.jpg": PNG, "b/1.jpg": PNG})
    (tmp_path / "loop").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"class folders loop in .* hold no images"):
        folder.FolderSource(tmp_path)


def test_pipes_are_left_out_and_dangling_links_are_listed(tmp_path):
    make(tmp_path, {"a/1.jpg": PNG, "b/1.jpg": PNG})
    os.mkfifo(tmp_path / "a" / "pipe.jpg")  # Reading it would block for ever.
    (tmp_path / "b" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    source = folder.FolderSource(tmp_path)
    assert len(source) == 3
    assert source.describe(2).endswith("b/gone.jpg")
    with pytest.raises(FileNotFoundError):
        source[2]


def test_a_giant_file_is_not_read(tmp_path):
    make(tmp_path, {"a/1.jpg": PNG, "b/1.jpg": PNG})
    os.truncate(tmp_path / "a" / "1.jpg", 1 << 33)
    with pytest.raises(OSError, match="too many for a picture"):
        folder.FolderSource(tmp_path)[0]


def test_a_folder_of_many_files(tmp_path):
    make(tmp_path, {"a/x.jpg": PNG, "b/x.jpg": PNG})
    for number in range(30_000):
        os.mknod(tmp_path / "a" / f"{number}.jpg")
    source = folder.FolderSource(tmp_path)
    assert len(source) == 30_002
    # The names travel to workers as one block, not as objects.
    assert len(pickle.dumps(source)) < 1_000_000


def split_tree(num=10):
    return {f"{c}/{i}.jpg": PNG for c in "abc" for i in range(num)}


def test_train_and_val_are_used_when_present(tmp_path):
    make(tmp_path, {f"train/{c}/{c}.jpg": PNG for c in "abc"})
    make(tmp_path, {"val/c/x.jpg": PNG, "val/a/y.jpg": PNG})
    train = folder.open_folder(tmp_path, "train")
    val = folder.open_folder(tmp_path, "val")
    assert names(train) == [("a/a.jpg", 0), ("b/b.jpg", 1), ("c/c.jpg", 2)]
    # Labels are those of train/, though val/ lacks a class.
    assert val.class_names == train.class_names
    assert names(val) == [("a/y.jpg", 0), ("c/x.jpg", 2)]


@pytest.mark.parametrize("below", ["", "train/"])
def test_a_folder_without_val_is_divided_by_the_seed(tmp_path, below):
    make(tmp_path, {below + path: png(i) for i, path in enumerate(split_tree())})

    def parts(seed):
        return [
            set(names(folder.open_folder(tmp_path, split, seed=seed)))
            for split in ("train", "val")
        ]

    train, val = parts(0)
    assert not train & val
    assert len(train | val) == 30
    assert np.bincount([label for _, label in val]).tolist() == [2, 2, 2]
    assert parts(0) == [train, val]
    assert parts(1)[1] != val
    # Removing a file moves no other file of its class by more than the quota.
    removed = next(iter(train))
    os.remove(tmp_path / below / removed[0])
    assert parts(0) == [train - {removed}, val]


def test_each_class_is_on_both_sides_if_it_can_be(tmp_path):
    make(tmp_path, {"a/1.jpg": PNG, "a/2.jpg": PNG, "b/1.jpg": PNG})
    train, val = (folder.open_folder(tmp_path, s) for s in ("train", "val"))
    assert [label for _, label in names(train)] == [0, 1]
    assert [label for _, label in names(val)] == [0]


def test_imagenette(shared_data):
    train, val = (
        folder.open_folder(shared_data / "imagenette160", s) for s in ("train", "val")
    )
    assert (len(train), len(val)) == (250, 100)
    assert train.class_names == val.class_names == tuple(sorted(train.class_names))
    assert train.class_names[0] == "n01440764"


ONE_CLASS = {"a/1.jpg": PNG}
WRONG = {
    "flat": ({"1.jpg": PNG, "2.jpg": PNG}, "holds 2 images and no class folders"),
    "empty": ({".x": b""}, "holds no images; put them into one folder per class"),
    "no images": ({"a/1.txt": b"", "b": None}, "no images in its 2 class folders"),
    "one class": (ONE_CLASS, "holds one class folder, 'a'; training needs at least"),
    "one train class": (
        {"train/a/1.jpg": PNG, "val/a/1.jpg": PNG},
        "train holds one class folder, 'a'",
    ),
    "empty class": (split_tree(2) | {"d": None}, "class folders d in .* no images"),
    "test for val": (
        {"train/a/1.jpg": PNG, "train/b/1.jpg": PNG, "test/a/1.jpg": PNG},
        "has train/ and test/; rename test/ to val/",
    ),
    "val alone": ({"val/a/1.jpg": PNG, "val/b/1.jpg": PNG}, "has val/ but no train/"),
    "flat ILSVRC": (
        {"train/a/1.jpg": PNG, "val/ILSVRC2012_val_00000001.JPEG": PNG},
        "validation images without class folders; run 'python scripts/check_data.py",
    ),
    "flat val": (
        {"train/a/1.jpg": PNG, "train/b/1.jpg": PNG, "val/1.jpg": PNG},
        "holds 1 images and no class folders",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_layouts_get_one_sentence(tmp_path, case):
    tree, message = WRONG[case]
    with pytest.raises(ValueError, match=message) as caught:
        folder.open_folder(make(tmp_path, tree), "train")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_val_alone_serves_evaluation(tmp_path):
    make(tmp_path, {"val/a/1.jpg": PNG, "val/b/1.jpg": PNG})
    assert len(folder.open_folder(tmp_path, "val")) == 2


def test_a_class_of_val_that_train_lacks_is_named(tmp_path):
    make(tmp_path, {f"train/{c}/1.jpg": PNG for c in "ab"} | {"val/z/1.jpg": PNG})
    with pytest.raises(ValueError, match="class folders z, which the training split"):
        folder.open_folder(tmp_path, "val")


def test_missing_directory_and_file(tmp_path):
    missing = tmp_path / "missing"
    with pytest.raises(FileNotFoundError, match="missing does not exist; check"):
        folder.open_folder(missing, "train")
    missing.write_bytes(b"")
    with pytest.raises(NotADirectoryError, match=re.escape(f"{missing} is a file")):
        folder.open_folder(missing, "train")
