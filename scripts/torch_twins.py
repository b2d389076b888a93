"""PyTorch networks that compute what lvb's do, to measure one against the other.

Written from the papers' equations, with modules named after lvb's, so that
`load_variables` fills a twin with lvb's weights. NCHW, as PyTorch code is written.
`deploy=True` is the fused form.
"""

import re
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvb.models import lsnet
from lvb.ops import relative_bias


class ConvNorm(nn.Module):
    """Convolution and batch norm; one convolution with bias when deployed."""

    def __init__(
        self,
        width: int,
        features: int,
        kernel: int = 1,
        *,
        deploy: bool,
        stride: int = 1,
        groups: int = 1,
        affine: bool = True,
    ) -> None:
        super().__init__()
        padding = (kernel - 1) // 2
        self.conv = nn.Conv2d(
            width, features, kernel, stride, padding, groups=groups, bias=deploy
        )
        self.norm = nn.Identity() if deploy else nn.BatchNorm2d(features, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, features, H', W')."""
        return self.norm(self.conv(x))


class RepDepthwise(nn.Module):
    """BN(DW 3x3(x)) + BN(DW 1x1(x)) + x; one convolution when deployed."""

    def __init__(self, width: int, *, deploy: bool) -> None:
        super().__init__()
        self.deploy = deploy
        if deploy:
            self.conv = nn.Conv2d(width, width, 3, 1, 1, groups=width)
        else:
            self.branch0 = ConvNorm(width, width, 3, groups=width, deploy=False)
            self.branch1 = ConvNorm(width, width, 1, groups=width, deploy=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.deploy:
            return self.conv(x)
        return self.branch0(x) + self.branch1(x) + x


class SqueezeExcite(nn.Module):
    """x * sigmoid(W2 relu(W1 mean(x)))."""

    def __init__(self, width: int, reduced: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, reduced, 1)
        self.expand = nn.Conv2d(reduced, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        gate = self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()


class Perception(nn.Module):
    """Large-kernel perception, LSNet Eq. (7)."""

    def __init__(self, width: int, *, deploy: bool) -> None:
        super().__init__()
        half = width // 2
        self.reduce = ConvNorm(width, half, deploy=deploy)
        self.depthwise = ConvNorm(half, half, 7, groups=half, deploy=deploy)
        self.mix = ConvNorm(half, half, deploy=deploy)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C / 2, H, W)."""
        return F.relu(self.mix(self.depthwise(F.relu(self.reduce(x)))))


def aggregate(x: Tensor, weights: Tensor) -> Tensor:
    """Small-kernel aggregation, LSNet Eq. (8), channel c with kernel c mod M.

    Args:
      x: (B, C, H, W).
      weights: (B, M, 9, H, W).

    Returns:
      (B, C, H, W).
    """
    batch, channels, height, width = x.shape
    kernels = weights.shape[1]
    padded = F.pad(x, (1, 1, 1, 1)).view(
        batch, channels // kernels, kernels, height + 2, width + 2
    )
    y = None
    for tap in range(9):
        row, column = divmod(tap, 3)
        shifted = padded[..., row : row + height, column : column + width]
        weight = weights[:, None, :, tap]  # (B, 1, M, H, W)
        y = shifted * weight if y is None else torch.addcmul(y, shifted, weight)
    return y.reshape(batch, channels, height, width)


class LSConv(nn.Module):
    """LS convolution, LSNet Eqs. (6)-(8)."""

    def __init__(self, width: int, *, deploy: bool) -> None:
        super().__init__()
        self.kernels = width // 8
        self.perception = Perception(width, deploy=deploy)
        self.weights = nn.Conv2d(width // 2, 9 * self.kernels, 1)
        self.weight_norm = nn.GroupNorm(self.kernels, 9 * self.kernels)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        weights = self.weight_norm(self.weights(self.perception(x)))
        weights = weights.view(x.shape[0], self.kernels, 9, *x.shape[2:])
        return self.bn(aggregate(x, weights))


class Attention(nn.Module):
    """Attention of LSNet's stage 4, 4 heads of width 16."""

    def __init__(self, width: int, *, deploy: bool) -> None:
        super().__init__()
        self.heads, self.key_width = 4, 64
        self.qkv = ConvNorm(width, 2 * self.key_width + width, deploy=deploy)
        self.query = ConvNorm(
            self.key_width, self.key_width, 3, groups=self.key_width, deploy=deploy
        )
        self.project = ConvNorm(width, width, deploy=deploy)
        self.attention_biases = nn.Parameter(torch.zeros(self.heads, 16))
        index = torch.from_numpy(relative_bias.offset_index(4, 4).astype(np.int64))
        self.register_buffer("index", index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 4, 4) -> (B, C, 4, 4)."""
        batch, channels, height, width = x.shape
        query, key, value = self.qkv(x).split(
            (self.key_width, self.key_width, channels), dim=1
        )
        query, key, value = (
            y.reshape(batch, self.heads, -1, height * width)
            for y in (self.query(query), key, value)
        )
        scores = query.transpose(-2, -1) @ key * 16**-0.5
        scores = scores + self.attention_biases[:, self.index]
        y = value @ scores.softmax(dim=-1).transpose(-2, -1)
        return self.project(F.relu(y.reshape(x.shape)))


class FeedForward(nn.Module):
    """Two pointwise convolutions."""

    def __init__(self, width: int, hidden: int, *, deploy: bool, gelu: bool) -> None:
        super().__init__()
        self.expand = ConvNorm(width, hidden, deploy=deploy)
        self.project = ConvNorm(hidden, width, deploy=deploy)
        self.activation = F.gelu if gelu else F.relu

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.project(self.activation(self.expand(x)))


class LSBlock(nn.Module):
    """Local, LS or attention mixing, then the feed-forward network."""

    def __init__(self, width: int, mixer: str, *, deploy: bool) -> None:
        super().__init__()
        mixers = {"local": RepDepthwise, "large_small": LSConv, "attention": Attention}
        self.mixer = mixer
        self.token_mixer = mixers[mixer](width, deploy=deploy)
        if mixer == "local":
            reduced = max(8, (width // 4 + 4) // 8 * 8)
            self.squeeze_excite = SqueezeExcite(width, reduced)
        self.channel_mixer = FeedForward(width, 2 * width, deploy=deploy, gelu=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.mixer == "local":
            x = self.squeeze_excite(self.token_mixer(x))
        else:
            x = x + self.token_mixer(x)
        return x + self.channel_mixer(x)


class Downsample(nn.Module):
    """Depthwise convolution of stride 2, then a pointwise one."""

    def __init__(self, width: int, features: int, *, deploy: bool) -> None:
        super().__init__()
        self.depthwise = ConvNorm(
            width, width, 3, stride=2, groups=width, deploy=deploy
        )
        self.pointwise = ConvNorm(width, features, deploy=deploy)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, features, H', W')."""
        return self.pointwise(self.depthwise(x))


class BatchNormHead(nn.Module):
    """Mean over positions, batch norm unless deployed, linear layer."""

    def __init__(self, width: int, num_classes: int, *, deploy: bool) -> None:
        super().__init__()
        self.norm = nn.Identity() if deploy else nn.BatchNorm1d(width)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes)."""
        return self.classifier(self.norm(x.mean((2, 3))))


class LSNet(nn.Module):
    """LSNet, CVPR 2025, as a classifier of 224 px images."""

    def __init__(self, variant: str, *, deploy: bool, num_classes: int = 1000) -> None:
        super().__init__()
        dims, depths = lsnet.VARIANTS[variant]
        backbone = nn.Module()
        widths = (3, dims[0] // 4, dims[0] // 2, dims[0])
        backbone.stem = nn.Module()
        for index in range(3):
            conv = ConvNorm(
                widths[index], widths[index + 1], 3, stride=2, deploy=deploy
            )
            backbone.stem.add_module(f"conv{index}", conv)
        for index, (width, depth) in enumerate(zip(dims, depths, strict=True)):
            stage = nn.Module()
            if index:
                stage.downsample = Downsample(dims[index - 1], width, deploy=deploy)
            odd = "attention" if index == 3 else "large_small"
            for number in range(depth):
                block = LSBlock(width, odd if number % 2 else "local", deploy=deploy)
                stage.add_module(f"block{number}", block)
            backbone.add_module(f"stage{index + 1}", stage)
        self.backbone = backbone
        self.head = BatchNormHead(dims[-1], num_classes, deploy=deploy)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 224, 224) -> (B, num_classes)."""
        stem = self.backbone.stem
        x = stem.conv2(F.relu(stem.conv1(F.relu(stem.conv0(x)))))
        for index in range(1, 5):
            for module in getattr(self.backbone, f"stage{index}").children():
                x = module(x)
        return self.head(x)


def load_variables(module: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Fills a twin with lvb's variables.

    Args:
      module: the twin, in the form that the variables have.
      arrays: by path, "params/backbone/stem/conv0/conv/kernel".

    Raises:
      RuntimeError: if a name is missing, unknown or of another shape.
    """
    state = {}
    for path, value in arrays.items():
        name = path.split("/", 1)[1].replace("/", ".")
        name = re.sub(r"\.(kernel|scale)$", ".weight", name)
        name = re.sub(r"\.(mean|var)$", r".running_\1", name)
        if path.endswith("/kernel"):
            value = value.transpose((3, 2, 0, 1) if value.ndim == 4 else (1, 0))
        state[name] = torch.from_numpy(np.ascontiguousarray(value))
    counters = {
        name: value
        for name, value in module.state_dict().items()
        if name.endswith("num_batches_tracked")
    }
    module.load_state_dict({**counters, **state})
