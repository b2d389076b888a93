"""Is it ImageNet-1K (ILSVRC 2012), and is it whole? Checks of classes and of sizes.

Labels are positions in the sorted list of the 1,000 WordNet ids, the order of every
published checkpoint; `imagenet_labels.synsets` is that list.
"""

import re
from collections.abc import Sequence

from lvb.data import imagenet_labels

NUM_EXAMPLES = {"train": 1_281_167, "val": 50_000}

# A split with more than this share of the official size is meant to be whole, and one
# with more than this share of the classes to have all of them. Subsets that people
# train on deliberately (1 %, 10 %, 100 classes) are far below. Ours.
_MEANT_WHOLE = 0.9

_WNID = re.compile(r"n\d{8}")

_CHECK = "run 'python scripts/check_data.py imagenet2012 --data_dir DIR' for what to do"


def is_wnid(name: str) -> bool:
    """Whether a name has the form of a WordNet id, "n" and eight digits."""
    return _WNID.fullmatch(name) is not None


def check_classes(class_names: Sequence[str], *, where: str) -> None:
    """Refuses class folders that are ImageNet-1K but for a few missing or wrong ids.

    Sets with other names, with few of the ids, or with ids beyond the thousand in
    number (ImageNet-21K) pass.

    Args:
      class_names: names of the class folders.
      where: what the message calls their place.

    Raises:
      ValueError: naming the ids that are missing and those that do not belong.
    """
    if not all(is_wnid(name) for name in class_names):
        return
    expected = set(imagenet_labels.synsets())
    found = set(class_names)
    nearly_whole = len(found & expected) > _MEANT_WHOLE * len(expected)
    if not nearly_whole or found == expected or len(found) > 2 * len(expected):
        return
    problems = []
    if expected - found:
        problems.append(f"lacks {some(sorted(expected - found))}")
    if found - expected:
        problems.append(f"has {some(sorted(found - expected))} besides")
    raise ValueError(
        f"{where} holds {len(found)} WordNet ids but is not ImageNet-1K: it "
        f"{' and '.join(problems)}; {_CHECK}."
    )


def check_size(
    num_examples: int, *, split: str, class_names: Sequence[str], where: str
) -> None:
    """Refuses a split of the full ImageNet-1K that lost or gained some pictures.

    Args:
      num_examples: number of pictures found.
      split: "train" or "val".
      class_names: classes of the source; other sets than the 1,000 ids pass.
      where: what the message calls their place.

    Raises:
      ValueError: the split is nearly whole but its size is not the official one.
    """
    expected = NUM_EXAMPLES[split]
    if tuple(class_names) != imagenet_labels.synsets():
        return
    if num_examples > _MEANT_WHOLE * expected and num_examples != expected:
        raise ValueError(
            f"{where} holds {num_examples:,} pictures, where ImageNet-1K's {split} "
            f"split has {expected:,}; {_CHECK}."
        )


def some(names: Sequence[str], limit: int = 5) -> str:
    """Lists names for a message, the first few of many."""
    text = ", ".join(names[:limit])
    return text if len(names) <= limit else f"{text} and {len(names) - limit:,} more"
