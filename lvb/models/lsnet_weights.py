"""Official LSNet checkpoints as variables of lvb, and back.

The two trees hold the same numbers: this file gives the PyTorch name of each of our
leaves (`torch_name`) and transposes kernels. Nothing is converted silently: every key
and every shape of a checkpoint must be one that the network has.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from numpy.typing import ArrayLike

from lvb.models import lsnet, torch_file
from lvb.ops import relative_bias

# Counters and index tables that PyTorch stores and we recompute.
_BUFFERS = ("num_batches_tracked", "attention_bias_idxs")
_OPTIONAL = ".mixer.conv1."  # The released LSNet-B has no 1x1 branch; zero is the same.


def _block_name(match: re.Match[str]) -> str:
    """Stages 2-4 of the PyTorch network start with two downsampling convolutions."""
    stage, block = int(match[1]), int(match[2])
    return f"blocks{stage}.{block + (2 if stage > 1 else 0)}"


# From our path to PyTorch's name, applied in this order.
_RULES = (
    (r"^backbone/stem/conv(\d)", lambda match: f"patch_embed.{2 * int(match[1])}"),
    (r"^backbone/stage(\d)/downsample/depthwise", r"blocks\1.0"),
    (r"^backbone/stage(\d)/downsample/pointwise", r"blocks\1.1"),
    (r"^backbone/stage(\d)/block(\d+)", _block_name),
    (r"/token_mixer/branch0", ".mixer.conv"),
    (r"/token_mixer/branch1", ".mixer.conv1"),
    (r"/token_mixer/perception/reduce", ".mixer.lkp.cv1"),
    (r"/token_mixer/perception/depthwise", ".mixer.lkp.cv2"),
    (r"/token_mixer/perception/mix", ".mixer.lkp.cv3"),
    (r"/token_mixer/weights", ".mixer.lkp.cv4"),
    (r"/token_mixer/weight_norm", ".mixer.lkp.norm"),
    (r"/token_mixer/bn", ".mixer.bn"),
    (r"/token_mixer/qkv", ".mixer.m.qkv"),
    (r"/token_mixer/query", ".mixer.m.dw"),
    (r"/token_mixer/project", ".mixer.m.proj.1"),
    (r"/token_mixer/attention_biases", ".mixer.m.attention_biases"),
    (r"/squeeze_excite/reduce", ".se.fc1"),
    (r"/squeeze_excite/expand", ".se.fc2"),
    (r"/squeeze_excite$", ".se"),
    (r"/channel_mixer/expand", ".ffn.m.pw1"),
    (r"/channel_mixer/project", ".ffn.m.pw2"),
    (r"/channel_mixer$", ".ffn.m"),
    (r"^head/distill_norm", "head_dist.bn"),
    (r"^head/distill_classifier", "head_dist.l"),
    (r"^head/classifier", "head.l"),
    (r"/conv(?=/|$)", ".c"),
    (r"/norm(?=/|$)", ".bn"),
    (r"/(kernel|scale)$", ".weight"),
    (r"/bias$", ".bias"),
    (r"/(mean|var)$", r".running_\1"),
)


def torch_name(path: str) -> str | None:
    """PyTorch's name of a leaf or a module.

    Args:
      path: of a leaf or a module in the tree of an `ImageClassifier`, without the
        collection: "backbone/stage2/block1/token_mixer/weights/kernel".

    Returns:
      The name ("blocks2.3.mixer.lkp.cv4.weight"); None if PyTorch's network has none.
    """
    for pattern, replacement in _RULES:
        path = re.sub(pattern, replacement, path)
    return None if "/" in path or path in ("backbone", "head") else path


def load_torch(
    name: str, path: str | pathlib.Path, *, weights: str = "model", **options: Any
) -> dict[str, Any]:
    """Reads an official checkpoint, see `convert`.

    Args:
      name: "lsnet_t", "lsnet_s" or "lsnet_b".
      path: see `lvb.models.torch_file.read_state`.
      weights: "model" or "model_ema".
      **options: fields of `LSNet`, such as `bias_table_size=14`.

    Returns:
      {"params": ..., "batch_stats": ...} of an `ImageClassifier` in training form.

    Raises:
      ValueError: if the name is no LSNet, the file cannot be read or does not fit.
    """
    known = [f"lsnet_{variant.lower()}" for variant in lsnet.VARIANTS]
    if name not in known:
        raise ValueError(
            f"load_torch: {name!r} has no official PyTorch checkpoints; use one of "
            f"{', '.join(known)}."
        )
    return convert(name, torch_file.read_state(path, weights=weights), **options)


def convert(
    name: str, state: Mapping[str, ArrayLike], **options: Any
) -> dict[str, Any]:
    """Converts a state dict of a published size.

    The numbers of classes, of input channels and of heads are those of the state dict.

    Args:
      name: "lsnet_t", "lsnet_s" or "lsnet_b".
      state: arrays by PyTorch name.
      **options: fields of `LSNet`, such as `bias_table_size=14`.

    Returns:
      {"params": ..., "batch_stats": ...} of an `ImageClassifier` in training form.

    Raises:
      ValueError: if the state dict is of another network.
    """
    variant = variant_of(state)
    found = f"lsnet_{variant.lower()}"
    if found != name:
        raise ValueError(
            f"lsnet checkpoint: these are weights of {found}, not of {name}; pass the "
            "name that fits."
        )
    backbone = lsnet.LSNet(**{**lsnet.VARIANTS[variant]._asdict(), **options})
    return jax.tree.map(jnp.asarray, from_torch(state, template(backbone, state)))


def variant_of(state: Mapping[str, ArrayLike]) -> str:
    """The variant ("T", "S", "B") of a state dict, by its stem's width.

    Raises:
      ValueError: if it is none of them.
    """
    stem = state.get("patch_embed.4.c.weight")
    width = None if stem is None else np.shape(stem)[0]
    for variant, fields in lsnet.VARIANTS.items():
        if fields.dims[0] == width:
            return variant
    raise ValueError(
        "lsnet checkpoint: 'patch_embed.4.c.weight' is missing or has an unknown "
        "width; this is not an unfused LSNet."
    )


def template(backbone: lsnet.LSNet, state: Mapping[str, ArrayLike]) -> dict[str, Any]:
    """Shapes of the variables that a state dict should fill.

    Args:
      backbone: the network.
      state: a state dict; it decides input channels, classes and number of heads.

    Returns:
      {"params": ..., "batch_stats": ...} of `jax.ShapeDtypeStruct`s.
    """
    channels = np.shape(state.get("patch_embed.0.c.weight", np.empty((0, 3))))[1]
    images = jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32)
    shapes = jax.eval_shape(
        lambda x: backbone.init(jax.random.key(0), x, train=False), images
    )
    params, stats = {"backbone": shapes["params"]}, {"backbone": shapes["batch_stats"]}
    num_classes = len(state.get("head.l.bias", ()))
    width = backbone.dims[-1]

    def leaf(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, backbone.param_dtype)

    params["head"], stats["head"] = {}, {}
    two_heads = any(name.startswith("head_dist.") for name in state)
    for prefix in ("", "distill_") if two_heads else ("",):
        params["head"][f"{prefix}norm"] = {"scale": leaf(width), "bias": leaf(width)}
        params["head"][f"{prefix}classifier"] = {
            "kernel": leaf(width, num_classes),
            "bias": leaf(num_classes),
        }
        stats["head"][f"{prefix}norm"] = {"mean": leaf(width), "var": leaf(width)}
    return {"params": params, "batch_stats": stats}


def from_torch(
    state: Mapping[str, ArrayLike], wanted: Mapping[str, Any]
) -> dict[str, Any]:
    """Converts a state dict.

    A state dict without any 1x1 branch of the local mixers fills those with zeros, and
    a table of attention biases of another side is resized.

    Args:
      state: arrays by PyTorch name.
      wanted: variables of the network or their shapes.

    Returns:
      NumPy variables of `wanted`'s tree, shapes and types.

    Raises:
      ValueError: if a key is missing or unknown, or a shape does not fit.
    """
    leaves = _named_leaves(wanted)
    has_branch = any(_OPTIONAL in name for name in state)
    _check_names(state, leaves, has_branch)
    converted = {}
    for name, (path, leaf) in leaves.items():
        if name not in state:
            value = np.full(leaf.shape, float(path[-1] in ("scale", "var")))
        else:
            value = _from_layout(name, np.asarray(state[name]), leaf.shape)
        converted[path] = np.asarray(value, leaf.dtype)
    return traverse_util.unflatten_dict(converted)


def to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts variables to a state dict that PyTorch's network loads strictly.

    Args:
      variables: {"params": ..., "batch_stats": ...} of an `ImageClassifier` on LSNet in
        training form.

    Returns:
      Arrays by PyTorch name, with the buffers that PyTorch expects.

    Raises:
      ValueError: if a leaf has no counterpart (an ablation, a fused network).
    """
    state = {}
    for name, (_, leaf) in _named_leaves(variables).items():
        state[name] = _to_layout(np.asarray(leaf))
        owner, _, last = name.rpartition(".")
        if last == "attention_biases":
            side = relative_bias.table_side(leaf)
            index = relative_bias.offset_index(side, side).astype(np.int64)
            state[f"{owner}.attention_bias_idxs"] = index
            state[name] = np.asarray(leaf)  # A table, not a matrix to transpose.
        elif last == "running_var":
            state[f"{owner}.num_batches_tracked"] = np.zeros((), np.int64)
    return state


def _named_leaves(
    variables: Mapping[str, Any],
) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Path and leaf by PyTorch name."""
    leaves = {}
    for collection in ("params", "batch_stats"):
        for path, leaf in traverse_util.flatten_dict(variables[collection]).items():
            name = torch_name("/".join(path))
            if name is None:
                raise ValueError(
                    f"{'/'.join(path)} has no counterpart in the official LSNet; use "
                    "its training form without ablations."
                )
            leaves[name] = ((collection, *path), leaf)
    return leaves


def _check_names(
    state: Mapping[str, ArrayLike], wanted: Mapping[str, Any], has_branch: bool
) -> None:
    missing = [
        name
        for name in wanted
        if name not in state and (has_branch or _OPTIONAL not in name)
    ]
    unknown = [
        name for name in state if name not in wanted and not name.endswith(_BUFFERS)
    ]
    for names, problem, advice in (
        (missing, "misses", "it is incomplete, or of another variant"),
        (unknown, "has the unknown", "it is of another variant or fused"),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(
                f"lsnet checkpoint: it {problem} key {names[0]!r}{more}; {advice}."
            )


def _from_layout(name: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """One array in our layout and of our shape."""
    if name.endswith("attention_biases"):
        is_table = value.ndim == 2 and len(value) == shape[0]
        if is_table and value.shape != shape:
            side = round(shape[1] ** 0.5)
            value = relative_bias.resize_table(jnp.asarray(value), size=(side, side))
        converted = np.asarray(value)
    else:
        converted = _to_ours(value)
    if converted.shape != tuple(shape):
        raise ValueError(
            f"lsnet checkpoint: key {name!r} has shape {value.shape}, which becomes "
            f"{converted.shape}, but the network needs {tuple(shape)}; it is of "
            "another variant."
        )
    return converted


def _to_ours(value: np.ndarray) -> np.ndarray:
    """OIHW to HWIO, (out, in) to (in, out); vectors as they are."""
    return np.transpose(value, (2, 3, 1, 0)) if value.ndim == 4 else value.T


def _to_layout(value: np.ndarray) -> np.ndarray:
    """The inverse of `_to_ours`."""
    return np.transpose(value, (3, 2, 0, 1)) if value.ndim == 4 else value.T
