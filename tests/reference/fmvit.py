"""FMViT's blocks as loops, and its costs as arithmetic, written from Section 3.

Variables are those of the training form; batch norms use their stored statistics.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from reference import attention, reparam

Variables = Mapping[str, Mapping[str, Any]]


def sub(variables: Variables, *names: str) -> dict[str, Any]:
    """The subtree of both collections at a path."""
    trees = {"params": variables["params"], "batch_stats": variables["batch_stats"]}
    for name in names:
        trees = {key: tree.get(name, {}) for key, tree in trees.items()}
    return trees


def relu(x: np.ndarray) -> np.ndarray:
    """max(x, 0)."""
    return np.where(x > 0, x, 0.0)


def pointwise(
    x: np.ndarray, variables: Variables, *, groups: tuple[int, ...]
) -> np.ndarray:
    """CONV' = CONV(1, 1, 1) + sum_i CONV(1, 1, G_i), Eq. (2)."""
    return reparam.multi_branch_loops(x, variables, groups=(1, *groups))


def gmlp(x: np.ndarray, variables: Variables, *, groups: tuple[int, ...]) -> np.ndarray:
    """Two CONV' with a depthwise convolution and its shortcut between them."""
    h = relu(pointwise(x, sub(variables, "expand"), groups=groups))
    depthwise = (h.shape[-1],) * 2  # K x K and 1 x 1, both depthwise.
    h = relu(
        h + reparam.multi_branch_loops(h, sub(variables, "depthwise"), groups=depthwise)
    )
    return pointwise(h, sub(variables, "reduce"), groups=groups)


def cfb(x: np.ndarray, variables: Variables, *, groups: tuple[int, ...]) -> np.ndarray:
    """MetaFormer block: y = x + DW(x), y + gMLP(y)."""
    mixer = sub(variables, "token_mixer")
    y = x + reparam.multi_branch_loops(x, mixer, groups=(x.shape[-1],) * 2)
    return y + gmlp(y, sub(variables, "channel_mixer"), groups=groups)


def rlmhsa(
    x: np.ndarray, variables: Variables, *, groups: tuple[int, ...], head_dim: int
) -> np.ndarray:
    """Eq. (4) on a map, batch norm before and projection after."""
    norm = sub(variables, "prenorm", "norm")
    normed = reparam.batch_norm_loops(x, norm["params"], norm["batch_stats"])
    shared = pointwise(normed, sub(variables, "shared"), groups=groups)

    def heads(z: np.ndarray) -> np.ndarray:
        """Cells row by row, head h from channels h D to h D + D - 1."""
        tokens = [z[:, i, j] for i in range(z.shape[1]) for j in range(z.shape[2])]
        stacked = np.stack(tokens, axis=1)  # (B, N, C)
        starts = range(0, z.shape[-1], head_dim)
        return np.stack([stacked[..., s : s + head_dim] for s in starts], axis=2)

    mixed = attention.attention_loops(
        heads(normed), heads(shared), heads(shared), scale=head_dim**-0.5
    )  # (B, N, h, D)
    y = np.concatenate([mixed[:, :, h] for h in range(mixed.shape[2])], axis=-1)
    y = y.reshape(x.shape)
    return pointwise(y, sub(variables, "projection"), groups=groups)


def fmb(
    x: np.ndarray, variables: Variables, *, groups: tuple[int, ...], head_dim: int
) -> np.ndarray:
    """z_i = f_i(z_{i-1}), z = Concat(x, z1, z2, z3, z4), z + MLP(z)."""
    if "embed" in variables["params"]:
        x = pointwise(x, sub(variables, "embed"), groups=groups)
    z1 = cfb(x, sub(variables, "cfb0"), groups=groups)
    z2 = cfb(z1, sub(variables, "cfb1"), groups=groups)
    z3 = cfb(z2, sub(variables, "cfb2"), groups=groups)
    z4 = rlmhsa(z3, sub(variables, "attention"), groups=groups, head_dim=head_dim)
    parts = [
        pointwise(z, sub(variables, f"fusion{index}"), groups=groups)
        for index, z in enumerate((x, z1, z2, z3, z4))
    ]
    z = np.concatenate(parts, axis=-1)
    return z + gmlp(z, sub(variables, "channel_mixer"), groups=groups)


class Cost(NamedTuple):
    """Fused parameters, and multiply-adds without attention products."""

    params: int
    macs: int

    def __add__(self, other: "Cost") -> "Cost":
        """Both sums."""
        return Cost(self.params + other.params, self.macs + other.macs)


class Layout(NamedTuple):
    """The choices that change a cost; fields as in `lvb.models.fmvit`."""

    stem_dim: int
    stage1_dim: int
    embed_dims: tuple[int, ...]
    attention_dims: tuple[int, ...]
    frequency_dims: tuple[int, ...]
    depths: tuple[int, ...]
    token_kernel: int = 3
    mlp_kernel: int = 7
    attn_out_proj: bool = True
    stage_pe_always: bool = True
    fm_x_from: str = "pe"
    cfb_width: str = "inner"
    block_pe_to_stage_width: bool = False
    first_cfb_at_stem_width: bool = False
    attention: str = "rlmhsa"
    channel_mixer: str = "gmlp"  # No effect on the fused cost.
    mix_frequencies: bool = True


def network_cost(layout: Layout, *, image_size: int, num_classes: int = 1000) -> Cost:
    """Cost of the fused classifier; `image_size` is a multiple of 32."""
    cells = (image_size // 2) ** 2
    stem, width = layout.stem_dim, layout.stage1_dim
    total = Cost(27 * stem + stem, 27 * stem * cells)
    cells //= 4
    total += _depthwise(stem, 3, cells) + _linear(stem, stem, cells)
    first = width
    if stem != width:
        total += _linear(stem, width, cells)
        first = stem if layout.first_cfb_at_stem_width else width
    for index in range(layout.depths[0]):
        total += _cfb(layout, width if index else first, cells)
    for index in range(3):
        cells //= 4
        embed = layout.embed_dims[index]
        if layout.stage_pe_always or width != embed:
            total += _linear(width, embed, cells)
        width = embed
        for _ in range(layout.depths[index + 1]):
            total += _fmb(layout, index, width, cells)
            width = 5 * layout.frequency_dims[index]
    return total + _linear(width, num_classes, 1)


def _linear(inputs: int, outputs: int, cells: int) -> Cost:
    return Cost(inputs * outputs + outputs, inputs * outputs * cells)


def _depthwise(channels: int, kernel: int, cells: int) -> Cost:
    return Cost(channels * (kernel**2 + 1), channels * kernel**2 * cells)


def _mlp(layout: Layout, channels: int, cells: int) -> Cost:
    return (
        _linear(channels, 2 * channels, cells)
        + _depthwise(2 * channels, layout.mlp_kernel, cells)
        + _linear(2 * channels, channels, cells)
    )


def _cfb(layout: Layout, channels: int, cells: int) -> Cost:
    mixer = _depthwise(channels, layout.token_kernel, cells)
    return mixer + _mlp(layout, channels, cells)


def _fmb(layout: Layout, index: int, width: int, cells: int) -> Cost:
    embed, inner = layout.embed_dims[index], layout.attention_dims[index]
    part = layout.frequency_dims[index]
    total, raw = Cost(0, 0), width
    if layout.block_pe_to_stage_width and width != embed:
        total += _linear(width, embed, cells)
        width = embed
    local = embed if layout.cfb_width == "pe" else inner
    if width != local:
        total += _linear(width, local, cells)
    for _ in range(3):
        total += _cfb(layout, local, cells)
    if local != inner:
        total += _linear(local, inner, cells)
    total += Cost(2 * inner, 0)  # The norm before the attention stays.
    projections = (1 if layout.attention == "rlmhsa" else 3) + layout.attn_out_proj
    for _ in range(projections):
        total += _linear(inner, inner, cells)
    if not layout.mix_frequencies:
        return total + _mlp(layout, inner, cells) + _linear(inner, 5 * part, cells)
    sources = (raw if layout.fm_x_from == "input" else local, *[local] * 3, inner)
    for source in sources:
        total += _linear(source, part, cells)
    return total + _mlp(layout, 5 * part, cells)
