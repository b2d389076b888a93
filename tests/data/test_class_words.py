"""Readable names, in the order of the WordNet ids."""

import pytest

from lvb.data import class_words, imagenet_labels


def test_names_stand_beside_their_ids():
    words = dict(
        zip(imagenet_labels.synsets(), class_words.imagenet_names(), strict=True)
    )
    assert len(words) == len(set(words.values())) == 1000
    # Spread over the list, so that a line lost or gained shows.
    assert words["n01440764"] == "tench"
    assert words["n02099601"] == "Golden Retriever"
    assert words["n02979186"].lower().startswith("cassette")
    assert words["n03888257"] == "parachute"
    assert words["n15075141"] == "toilet paper"
    assert all(name and name == name.strip() for name in words.values())


def test_known_ids_are_translated_and_other_names_stay():
    shown = class_words.readable(["n01440764", "my cat", "n99999999"], num_classes=3)
    assert shown == ("tench (n01440764)", "my cat", "n99999999")


def test_nameless_logits_are_numbered():
    assert class_words.readable((), num_classes=2) == ("class 0", "class 1")


def test_a_wrong_number_of_names_is_refused():
    with pytest.raises(ValueError, match="3 logits and 2 class names"):
        class_words.readable(["a", "b"], num_classes=3)
