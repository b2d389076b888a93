"""The public functions of `lvb`: build, fuse, measure and convert models by name."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from lvb.analysis import flops, param_table
from lvb.heads import classifier
from lvb.layers import fusion
from lvb.models import lsnet_weights, registry
from lvb.tasks import classification

# Settings that backbone and head share; see lvb.layers.module.
_SHARED = ("dtype", "param_dtype", "deploy", "frozen_batch_norm", "op_form")


class Stage(NamedTuple):
    """One feature map of a backbone: its name, its stride and its channels."""

    name: str
    stride: int
    channels: int


class Profile(NamedTuple):
    """The size of a model.

    Attributes:
      params: parameters of the training form.
      deploy_params: parameters of the fused form.
      macs: all multiply-adds of one image, fused.
      paper_params: parameters as the paper counts them.
      paper_macs: multiply-adds as the paper counts them.
    """

    params: int
    deploy_params: int
    macs: int
    paper_params: int
    paper_macs: int


def create_model(
    name: str, *, num_classes: int = 1000, distilled: bool = False, **options: Any
) -> classification.ImageClassifier:
    """Builds a classifier.

    Args:
      name: one of `list_models()`.
      num_classes: width of the logits, at least 1.
      distilled: add the second head of LSNet*; in training the model then returns
        a pair of logits, at evaluation their mean.
      **options: fields of the family's backbone (`drop_path_rate`, `dtype`, ...).

    Returns:
      A module: (B, H, W, 1 or 3) normalised float -> (B, num_classes) logits. H and W
      are 32 px or more; its parameters lie under "backbone" and "head".

    Raises:
      ValueError: if the name, an option or the number of classes does not fit.
    """
    if num_classes < 1:
        raise ValueError(f"{name}: num_classes={num_classes}; use 1 or more.")
    shared = {key: options[key] for key in _SHARED if key in options}
    head = classifier.ClassifierHead(
        num_classes,
        norm=registry.family_of(name).head_norm,
        distilled=distilled,
        **shared,
    )
    return classification.ImageClassifier(create_backbone(name, **options), head)


def create_backbone(name: str, **options: Any) -> nn.Module:
    """Builds a backbone without a classifier.

    Args:
      name: one of `list_models()`.
      **options: fields of the family's backbone.

    Returns:
      A module: (B, H, W, 1 or 3) -> {"stage1": ..., ..., "stage4": ...}, NHWC.

    Raises:
      ValueError: if the name or an option is unknown.
    """
    return registry.build_backbone(name, **options)


def list_models() -> list[str]:
    """The names of all models, sorted: "convneur_m1", ..., "lsnet_t"."""
    return registry.list_models()


def feature_info(name: str, **options: Any) -> list[Stage]:
    """Name, stride and channels of each map a backbone returns, without tracing it."""
    backbone = create_backbone(name, **options)
    return [
        Stage(f"stage{index}", stride, channels)
        for index, (stride, channels) in enumerate(
            zip(backbone.strides, backbone.dims, strict=True), start=1
        )
    ]


def fuse(
    model: nn.Module, variables: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """Fuses a classifier or a backbone for inference.

    Batch norms, parallel branches and shortcuts become single convolutions; the
    result computes what the model does at evaluation. Nothing is changed in place, and
    a fused model is returned as it is.

    Args:
      model: from `create_model` or `create_backbone`.
      variables: {"params": ..., "batch_stats": ...} of that model.

    Returns:
      The model with `deploy=True` and its variables.

    Raises:
      ValueError: if the variables are not the model's, or the model has no fused form.
    """
    if isinstance(model, classification.ImageClassifier):
        if model.backbone.deploy:
            return model, dict(variables)
        # Rematerialisation serves training only.
        model = model.clone(backbone=model.backbone.clone(remat=False))
        deployed = model.clone(
            backbone=model.backbone.clone(deploy=True),
            head=model.head.clone(deploy=True),
        )
    elif isinstance(model, tuple(f.backbone for f in registry.FAMILIES.values())):
        if model.deploy:
            return model, dict(variables)
        model = model.clone(remat=False)
        deployed = model.clone(deploy=True)
    else:
        raise ValueError(
            f"fuse: {type(model).__name__} has no fused form; pass a model from "
            "create_model or create_backbone."
        )
    return deployed, fusion.fuse_variables(model, deployed, variables)


def profile_model(name: str, *, image_size: int = 224, **options: Any) -> Profile:
    """Counts parameters and multiply-adds; nothing is computed.

    Args:
      name: one of `list_models()`.
      image_size: side of a square image, in pixels.
      **options: as for `create_model`.

    Returns:
      The counts of one image.
    """
    options["op_form"] = "reference"
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    shapes = []
    for deploy in (False, True):
        model = create_model(name, **{**options, "deploy": deploy})
        shapes.append(
            jax.eval_shape(
                lambda x, m=model: m.init(jax.random.key(0), x, train=False), images
            )
        )
    macs = flops.count_macs(
        lambda v, x: model.apply(v, x, train=False), shapes[1], images
    )
    counts = registry.Counts(
        params=param_table.count_params(shapes[0]["params"]),
        deploy_params=param_table.count_params(shapes[1]["params"]),
        macs=macs,
    )
    paper_counts = registry.family_of(name).paper_counts
    return Profile(*counts, *paper_counts(model.backbone, counts, image_size))


def load_torch(name: str, path: str | pathlib.Path) -> dict[str, Any]:
    """Reads an official LSNet checkpoint as variables of `create_model(name)`.

    A checkpoint with two heads fits `create_model(name, distilled=True)`.

    Args:
      name: "lsnet_t", "lsnet_s" or "lsnet_b".
      path: a .pth (needs `lvb[torch]`), .safetensors or .npz file.

    Returns:
      {"params": ..., "batch_stats": ...}.

    Raises:
      ValueError: if a key or a shape does not fit, or the file holds code.
    """
    return lsnet_weights.load_torch(name, path)


def reset_head(
    variables: Mapping[str, Any], *, num_classes: int, rng: jax.Array
) -> dict[str, Any]:
    """Replaces the classifier for another number of classes.

    Args:
      variables: of a model from `create_model`, with one head or two.
      num_classes: width of the new logits.
      rng: key of the new weights.

    Returns:
      New variables; every leaf but the linear layers of the head is the same array.

    Raises:
      ValueError: if the variables have no head.
    """
    head = traverse_util.flatten_dict(variables["params"].get("head", {}))
    linear = [path[:-1] for path in head if path[-1] == "kernel" and len(path) > 1]
    if not linear:
        raise ValueError(
            "reset_head: params have no head/classifier; pass the variables of a model "
            "from create_model."
        )
    for index, path in enumerate(linear):
        kernel = head[(*path, "kernel")]
        fresh = nn.Dense(num_classes, kernel_init=nn.initializers.normal(0.02)).init(
            jax.random.fold_in(rng, index), jnp.zeros((1, kernel.shape[0]))
        )["params"]
        for leaf, value in fresh.items():
            head[(*path, leaf)] = value.astype(kernel.dtype)
    params = {**variables["params"], "head": traverse_util.unflatten_dict(head)}
    return {**variables, "params": params}
