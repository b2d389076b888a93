"""Which logit stands for which class of a data set: matched by name."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lvb.data import imagenet, imagenet_labels


class ClassMap(NamedTuple):
    """Brings a model's logits and a data set's labels to one numbering.

    Attributes:
      columns: the class of each logit, -1 for none, (num_logits,).
      labels: the class of each label of the data set.
      num_classes: of the common numbering.
      note: what a reader of the figures must know, else "".
    """

    columns: np.ndarray
    labels: np.ndarray
    num_classes: int
    note: str = ""


def match_classes(
    data_names: Sequence[str],
    model_names: Sequence[str],
    *,
    num_logits: int,
    of_imagenet: bool,
) -> ClassMap:
    """Matches class names.

    On an ImageNet benchmark the numbering is that of the 1,000 sorted WordNet ids, so a
    model that names some of them can be scored; elsewhere it is the data set's.

    Args:
      data_names: of the data set, in label order.
      model_names: of the logits, in order; empty when nobody noted them, which means
        the data set's own order.
      num_logits: width of the logits.
      of_imagenet: whether the data set is an ImageNet benchmark.

    Raises:
      ValueError: when names or numbers do not fit.
    """
    if model_names and len(model_names) != num_logits:
        raise ValueError(
            f"the model has {num_logits} logits and {len(model_names)} class names; its"
            " checkpoint or certificate is not in order."
        )
    if of_imagenet:
        return _match_imagenet(data_names, model_names, num_logits)
    labels = np.arange(len(data_names))
    if not model_names:
        if num_logits != len(data_names):
            raise ValueError(
                f"the model has {num_logits} logits without names and the data"
                f" {len(data_names)} classes; evaluate data of the model's classes."
            )
        return ClassMap(labels, labels, len(data_names))
    known = {name: index for index, name in enumerate(data_names)}
    columns = np.array([known.get(name, -1) for name in model_names])
    return _checked(ClassMap(columns, labels, len(data_names)), data_names, model_names)


def _match_imagenet(
    data_names: Sequence[str], model_names: Sequence[str], num_logits: int
) -> ClassMap:
    labels = imagenet_labels.class_indices(data_names)
    foreign = [name for name, k in zip(data_names, labels, strict=True) if k < 0]
    if foreign:
        raise ValueError(
            f"the classes {imagenet.some(foreign)} are none of ImageNet's 1,000 WordNet"
            " ids; remove their folders."
        )
    num_classes = imagenet_labels.NUM_CLASSES
    if not model_names:
        if num_logits != num_classes:
            raise ValueError(
                f"the model has {num_logits} logits without names; an ImageNet"
                " benchmark needs 1,000 logits, or names that are WordNet ids."
            )
        return ClassMap(np.arange(num_classes), labels, num_classes)
    columns = imagenet_labels.class_indices(model_names)
    named = ClassMap(columns, labels, num_classes)
    return _checked(named, imagenet_labels.synsets(), model_names)


def _checked(
    result: ClassMap, data_names: Sequence[str], model_names: Sequence[str]
) -> ClassMap:
    common = int((result.columns >= 0).sum())
    if common == 0:
        raise ValueError(
            f"no class of the model ({imagenet.some(model_names)}) is a class of the"
            f" data ({imagenet.some(data_names)}); evaluate other data."
        )
    if common == result.num_classes:
        return result
    return result._replace(
        note=f"the model knows {common:,} of the {result.num_classes:,} classes"
    )
