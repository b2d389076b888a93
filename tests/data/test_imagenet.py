import numpy as np
import pytest

from lvb.data import folder, imagenet, imagenet_labels

SYNSETS = imagenet_labels.synsets()


def test_the_ids_are_a_thousand_in_sorted_order():
    assert len(SYNSETS) == len(set(SYNSETS)) == 1000
    assert list(SYNSETS) == sorted(SYNSETS)
    assert all(map(imagenet.is_wnid, SYNSETS))
    assert (SYNSETS[0], SYNSETS[999]) == ("n01440764", "n15075141")


def test_the_ids_are_the_published_ones(shared_data):
    path = shared_data / "imagenet_meta" / "imagenet_synsets.txt"
    assert tuple(path.read_text().split()) == SYNSETS


@pytest.mark.parametrize("name", ["n0144076", "n014407640", "m01440764", "tench", ""])
def test_other_names_are_no_ids(name):
    assert not imagenet.is_wnid(name)


@pytest.mark.parametrize(
    "names",
    [
        SYNSETS,
        SYNSETS[:10],
        SYNSETS[:100],
        ("cat", "dog"),
        (*SYNSETS, "cat"),  # Not all are ids: somebody's own classes.
        tuple(f"n{number:08}" for number in range(300)),
        SYNSETS + tuple(f"n{number:08}" for number in range(20_000)),  # ImageNet-21K.
    ],
)
def test_other_sets_and_the_whole_set_pass(names):
    imagenet.check_classes(names, where="here")


def test_missing_and_foreign_ids_are_named():
    with pytest.raises(ValueError, match=r"here holds 999 .* lacks n01443537;"):
        imagenet.check_classes(SYNSETS[:1] + SYNSETS[2:], where="here")
    swapped = (*SYNSETS[1:], "n99999999")
    message = "lacks n01440764 and has n99999999 besides; run 'python scripts/check"
    with pytest.raises(ValueError, match=message):
        imagenet.check_classes(swapped, where="here")


@pytest.mark.parametrize(("split", "official"), [("train", 1_281_167), ("val", 50_000)])
def test_a_full_split_has_the_official_size(split, official):
    def check(number, names=SYNSETS):
        imagenet.check_size(number, split=split, class_names=names, where="here")

    check(official)
    check(official // 10)  # A tenth is a deliberate subset.
    check(official - 1, names=SYNSETS[:999])
    for number in (official - 1, official + 1):
        with pytest.raises(ValueError, match=f"holds {number:,} .* has {official:,}"):
            check(number)


def test_folders_are_checked(tmp_path, monkeypatch):
    """999 of the ids are refused, all of them pass, and sizes are compared."""
    for split, ids in (("train", SYNSETS[:-1]), ("val", SYNSETS)):
        for wnid in ids:
            (tmp_path / split / wnid).mkdir(parents=True)
            (tmp_path / split / wnid / "1.JPEG").touch()
    with pytest.raises(ValueError, match=f"train holds 999 .* lacks {SYNSETS[-1]}"):
        folder.open_folder(tmp_path, "train")

    (tmp_path / "train" / SYNSETS[-1]).mkdir()
    (tmp_path / "train" / SYNSETS[-1] / "1.JPEG").touch()
    train = folder.open_folder(tmp_path, "train")
    assert train.class_names == SYNSETS
    np.testing.assert_array_equal(
        [train[i].label for i in (0, 500, 999)], [0, 500, 999]
    )

    monkeypatch.setitem(imagenet.NUM_EXAMPLES, "val", 1001)
    with pytest.raises(ValueError, match=r"val holds 1,000 pictures, where .* 1,001"):
        folder.open_folder(tmp_path, "val")


def test_lists_in_messages_are_short():
    assert imagenet.some(["a", "b"]) == "a, b"
    assert imagenet.some(list("abcdefg"), limit=3) == "a, b, c and 4 more"
