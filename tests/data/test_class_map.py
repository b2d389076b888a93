"""Logits and labels brought to one numbering."""

import numpy as np
import pytest

from lvb.data import class_map, imagenet_labels

SYNSETS = imagenet_labels.synsets()


def match(data_names, model_names, num_logits, of_imagenet=True):
    return class_map.match_classes(
        data_names, model_names, num_logits=num_logits, of_imagenet=of_imagenet
    )


def test_imagenet_labels_follow_the_sorted_ids():
    found = match(("n03888257", "n01440764"), (), 1000)
    assert found.labels.tolist() == [701, 0]  # Parachute and tench.
    np.testing.assert_array_equal(found.columns, np.arange(1000))
    assert found.num_classes == 1000
    assert found.note == ""


def test_class_numbers_are_not_sorted_as_text():
    """ImageNet-V2's folders: 10 comes before 2 as text."""
    found = match(("0", "1", "10", "2"), SYNSETS, 1000)
    assert found.labels.tolist() == [0, 1, 10, 2]


def test_a_model_of_other_order_and_of_few_classes():
    shuffled = SYNSETS[::-1]
    found = match(("n01440764",), shuffled, 1000)
    np.testing.assert_array_equal(found.columns, np.arange(1000)[::-1])
    few = match(("n01440764",), ("n03888257", "cat", "n01440764"), 3)
    assert few.columns.tolist() == [701, -1, 0]
    assert few.note == "the model knows 2 of the 1,000 classes"


def test_own_data_is_numbered_by_itself():
    found = match(("a", "b", "c"), ("c", "a", "x"), 3, of_imagenet=False)
    assert found.columns.tolist() == [2, 0, -1]
    assert found.labels.tolist() == [0, 1, 2]
    assert found.note == "the model knows 2 of the 3 classes"
    unnamed = match(("a", "b"), (), 2, of_imagenet=False)
    assert unnamed.columns.tolist() == [0, 1]
    assert unnamed.note == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("n01440764", "cats"), (), 1000), "classes cats are none of ImageNet's"),
        ((("n01440764",), (), 10), "10 logits without names; an ImageNet benchmark"),
        ((("n01440764",), ("a", "b"), 2), r"no class of the model \(a, b\)"),
        ((("n01440764",), ("a", "b"), 3), "3 logits and 2 class names"),
        ((("a", "b"), (), 3, False), "3 logits without names and the data 2 classes"),
        ((("a", "b"), ("c",), 1, False), r"no class of the model \(c\)"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        match(*arguments)
