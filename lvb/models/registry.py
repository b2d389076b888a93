"""The models by name: "<family>_<variant>", such as "lsnet_t"."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lvb.layers import module
from lvb.models import convneur, convneur_counts, fmvit, fvnet, lsnet


class Counts(NamedTuple):
    """Parameters of the training form and of the fused one, and multiply-adds."""

    params: int
    deploy_params: int
    macs: int


class Family(NamedTuple):
    """What the names of one family stand for.

    Attributes:
      backbone: the backbone's class.
      variants: fields of the backbone by variant, from the paper's size table.
      head_norm: `ClassifierHead.norm`.
      no_decay: names of parameters the recipe leaves undecayed besides 1-D ones.
      paper_counts: backbone, our counts and image size in pixels to parameters and
        multiply-adds as the paper counts them.
    """

    backbone: type[module.Layer]
    variants: Mapping[str, Any]
    head_norm: str
    no_decay: tuple[str, ...]
    paper_counts: Callable[[Any, Counts, int], tuple[int, int]]


def _fused(backbone: Any, counts: Counts, image_size: int) -> tuple[int, int]:
    """LSNet and FMViT publish the fused network; FMViT without attention products."""
    unpublished = backbone.unpublished_macs((image_size, image_size))
    return counts.deploy_params, counts.macs - unpublished


def _trained(backbone: Any, counts: Counts, image_size: int) -> tuple[int, int]:
    """FVNet's figures fit the parameters of the training form."""
    unpublished = backbone.unpublished_macs((image_size, image_size))
    return counts.params, counts.macs - unpublished


def _convneur(backbone: Any, counts: Counts, image_size: int) -> tuple[int, int]:
    unpublished = convneur_counts.unpublished_macs(backbone, image_size)
    params = convneur_counts.paper_params(backbone, counts.params)
    return params, counts.macs - unpublished


FAMILIES = {
    "convneur": Family(
        convneur.ConvNeur, convneur.VARIANTS, "layer", convneur.NO_DECAY, _convneur
    ),
    "fmvit": Family(
        fmvit.FMViT, fmvit.VARIANTS, "batch_before_pool", fmvit.NO_DECAY, _fused
    ),
    "fvnet": Family(fvnet.FVNet, fvnet.VARIANTS, "batch", fvnet.NO_DECAY, _trained),
    "lsnet": Family(lsnet.LSNet, lsnet.VARIANTS, "batch", lsnet.NO_DECAY, _fused),
}


def list_models() -> list[str]:
    """The names of all models, sorted."""
    return sorted(
        f"{name}_{variant.lower()}"
        for name, family in FAMILIES.items()
        for variant in family.variants
    )


def family_of(name: str) -> Family:
    """The family of a model name.

    Raises:
      ValueError: if the name is unknown; the nearest known one is suggested.
    """
    if name not in list_models():
        raise ValueError(
            f"model {name!r} is unknown{_nearest(name, list_models())}; "
            f"known are {', '.join(list_models())}."
        )
    return FAMILIES[name.split("_")[0]]


def build_backbone(name: str, **options: Any) -> module.Layer:
    """Builds a backbone.

    Args:
      name: one of `list_models()`.
      **options: fields of the backbone's class, over those of the variant.

    Returns:
      A module: (B, H, W, 1 or 3) -> {"stage1": ..., ..., "stage4": ...}, NHWC.

    Raises:
      ValueError: if the name or an option is unknown.
    """
    family = family_of(name)
    variant = family.variants[name.split("_")[1].upper()]
    fields = [
        field.name
        for field in dataclasses.fields(family.backbone)
        if field.name not in ("parent", "name")
    ]
    for option in options:
        if option not in fields:
            raise ValueError(
                f"{name}: option {option!r} is unknown{_nearest(option, fields)}; "
                f"{family.backbone.__name__} has {', '.join(sorted(fields))}."
            )
    return family.backbone(**{**variant._asdict(), **options})


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
