"""Words for people in place of WordNet ids.

`imagenet_names.txt` holds a short English name for each ImageNet-1K class, in class
order: github.com/anishathalye/imagenet-simple-labels, public domain.
"""

import functools
import pathlib
from collections.abc import Sequence

from lvb.data import imagenet_labels

_FILE = pathlib.Path(__file__).parent / "imagenet_names.txt"


@functools.cache
def imagenet_names() -> tuple[str, ...]:
    """The 1,000 names, all different, in class order."""
    return tuple(_FILE.read_text().splitlines())


def readable(class_names: Sequence[str], *, num_classes: int) -> tuple[str, ...]:
    """Names to show for the logits of a model.

    Args:
      class_names: as a checkpoint notes them; a WordNet id of ImageNet-1K becomes
        its English name with the id behind it, other names stay.
      num_classes: number of logits.

    Returns:
      One name per logit; "class 7" and so on where none were noted. A model of
      1,000 nameless logits is not taken for one of ImageNet.

    Raises:
      ValueError: if there are names, but not one per logit.
    """
    if not class_names:
        return tuple(f"class {index}" for index in range(num_classes))
    if len(class_names) != num_classes:
        raise ValueError(
            f"the model has {num_classes} logits and {len(class_names)} class names; "
            "save it again with the names of its classes, in order."
        )
    words = dict(zip(imagenet_labels.synsets(), imagenet_names(), strict=True))
    return tuple(
        f"{words[name]} ({name})" if name in words else name for name in class_names
    )
