"""PyTorch twins of ConvNeur without its memory and of FVNet; see `torch_twins`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_twins import BatchNormHead, ConvNorm, Downsample, FeedForward

from lvb.models import convneur, fvnet, fvnet_fluid


class GlobalResponseNorm(nn.Module):
    """GRN of ConvNeXt V2 on (B, H, W, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        norm = x.norm(p=2, dim=(1, 2), keepdim=True)
        relative = norm / (norm.mean(dim=-1, keepdim=True) + 1e-6)
        return x + self.weight * (x * relative) + self.bias


class LocalBranch(nn.Module):
    """Depthwise 7x7, layer norm, expand, GELU, GRN, project; ConvNeur §3.2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, 1, 3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, 4 * width)
        self.grn = GlobalResponseNorm(4 * width)
        self.project = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))  # (B, H, W, C)
        y = self.project(self.grn(F.gelu(self.expand(y))))
        return y.permute(0, 3, 1, 2)


class LocalBlock(nn.Module):
    """x + LocalBranch(x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.local = LocalBranch(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + self.local(x)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LocalNetwork(nn.Module):
    """ConvNeur with `memory_at="none"`, a ConvNeXt-style network, as a classifier."""

    def __init__(self, variant: str, *, deploy: bool, num_classes: int = 1000) -> None:
        super().__init__()
        del deploy  # There is nothing to fuse.
        depths, dims, _ = convneur.VARIANTS[variant]
        self.backbone = nn.Module()
        self.backbone.stem = nn.Module()
        self.backbone.stem.conv = nn.Conv2d(3, dims[0], 4, 4)
        self.backbone.stem.norm = ChannelNorm(dims[0], eps=1e-6)
        for index, (width, depth) in enumerate(zip(dims, depths, strict=True)):
            stage = nn.Module()
            if index:
                stage.downsample = nn.Sequential()
                norm = ChannelNorm(dims[index - 1], eps=1e-6)
                stage.downsample.add_module("norm", norm)
                conv = nn.Conv2d(dims[index - 1], width, 2, 2)
                stage.downsample.add_module("conv", conv)
            for number in range(depth):
                stage.add_module(f"block{number}", LocalBlock(width))
            self.backbone.add_module(f"stage{index + 1}", stage)
        self.head = nn.Module()
        self.head.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.head.classifier = nn.Linear(dims[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 224, 224) -> (B, num_classes)."""
        x = self.backbone.stem.norm(self.backbone.stem.conv(x))
        for index in range(1, 5):
            for module in getattr(self.backbone, f"stage{index}").children():
                x = module(x)
        return self.head.classifier(self.head.norm(x.mean((2, 3))))


class TimeConstantGate(nn.Module):
    """tau of every phase, FVNet Eq. (4), low-rank gate."""

    def __init__(self, width: int, spans: tuple, *, carried: bool) -> None:
        super().__init__()
        rank = fvnet_fluid.low_rank_width(width)
        self.t = nn.Parameter(torch.zeros(len(spans), width))
        self.s = nn.Parameter(torch.ones(len(spans), width))
        self.reduce = nn.Linear(width, rank, bias=False)
        self.expand = nn.Linear(rank, width, bias=False)
        if carried:
            self.kappa = nn.Parameter(torch.zeros(width))
        self.spans = spans

    def forward(self, pooled: Tensor, carry: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, C) pooled -> tau (N, B, C), and the carry (B, C)."""
        drive = self.expand(self.reduce(pooled))
        u = self.t[:, None] + self.s[:, None] * drive
        if carry is not None:
            u = u + self.kappa * carry
        tau = torch.stack(
            [
                low + (high - low) * u[n].sigmoid()
                for n, (low, high) in enumerate(self.spans)
            ]
        )
        return tau, u.mean(dim=0).tanh()


class FlowUnit(nn.Module):
    """One liquid step, FVNet Eqs. (5) and (6)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("A", "beta", "gamma", "delta"):
            self.register_parameter(name, nn.Parameter(torch.ones(width)))

    def forward(self, x: Tensor, neighbourhood: Tensor, tau: Tensor) -> Tensor:
        """(B, C, H, W) twice and (B, C) -> (B, C, H, W)."""
        limit = fvnet_fluid.BETA_LIMIT
        beta, gamma, delta, amplitude = (
            vector[:, None, None]
            for vector in (
                limit * (self.beta / limit).tanh(),
                self.gamma,
                self.delta,
                self.A,
            )
        )
        gate = beta * (gamma * neighbourhood + delta).tanh()
        tau = tau[:, :, None, None]
        alpha = tau + gate
        z = alpha * tau
        near = z.abs() < 1e-3  # There phi = 1 - z / 2 + z^2 / 6 to rounding.
        far = torch.where(near, 1.0, z)
        phi = torch.where(near, 1 - z / 2 + z * z / 6, -torch.expm1(-far) / far)
        return x + tau * phi * (gate * amplitude - alpha * x)


class FluidBlock(nn.Module):
    """MPFB, FVNet Eqs. (7) and (8), attention fusion."""

    def __init__(
        self, width: int, spans: tuple, *, carried: bool, deploy: bool
    ) -> None:
        super().__init__()
        self.gate = TimeConstantGate(width, spans, carried=carried)
        self.local = ConvNorm(
            width, width, 3, groups=width, deploy=deploy, affine=False
        )
        for n in range(len(spans)):
            self.add_module(f"phase{n}", FlowUnit(width))
        self.phases = len(spans)
        if self.phases > 1:
            rank = fvnet_fluid.low_rank_width(width)
            self.fusion = nn.Module()
            self.fusion.reduce = nn.Linear(width, rank)
            self.fusion.expand = nn.Linear(rank, self.phases * width)

    def forward(self, x: Tensor, carry: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> (B, C, H, W), and the carry."""
        pooled = x.mean((2, 3))
        tau, carry = self.gate(pooled, carry)
        neighbourhood = self.local(x)
        phases = [
            getattr(self, f"phase{n}")(x, neighbourhood, tau[n])
            for n in range(self.phases)
        ]
        if self.phases == 1:
            return phases[0], carry
        logits = self.fusion.expand(F.gelu(self.fusion.reduce(pooled)))
        weights = logits.view(len(x), self.phases, -1).softmax(dim=1)
        y = sum(weights[:, n, :, None, None] * y for n, y in enumerate(phases))
        return y, carry


class SelfAttention(nn.Module):
    """Attention of FVNet's stage 4, heads of 32 channels."""

    def __init__(self, width: int, *, deploy: bool) -> None:
        super().__init__()
        self.norm = nn.Identity() if deploy else nn.BatchNorm2d(width)
        self.qkv = ConvNorm(width, 3 * width, deploy=deploy)
        self.position = nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False)
        self.project = ConvNorm(width, width, deploy=deploy)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        qkv = self.qkv(self.norm(x)).chunk(3, dim=1)
        query, key, value = (
            y.reshape(len(x), -1, 32, x.shape[2] * x.shape[3]).transpose(2, 3)
            for y in qkv
        )  # (B, h, N, 32)
        y = F.scaled_dot_product_attention(query, key, value)
        y = y.transpose(2, 3).reshape(x.shape)
        return self.project(y + self.position(qkv[2]))


class FluidNetBlock(nn.Module):
    """A mixer, then the feed-forward network."""

    def __init__(
        self, width: int, spans: tuple | None, ratio: float, *, deploy: bool
    ) -> None:
        super().__init__()
        self.fluid = spans is not None
        if self.fluid:
            # Its output is the liquid state itself: this norm stays when deployed.
            self.norm = nn.BatchNorm2d(width)
            self.token_mixer = FluidBlock(width, spans, carried=True, deploy=deploy)
        else:
            self.attention = SelfAttention(width, deploy=deploy)
        self.channel_mixer = FeedForward(
            width, int(ratio * width), deploy=deploy, gelu=True
        )

    def forward(self, x: Tensor, carry: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, C, H, W) -> (B, C, H, W), and the carry."""
        if self.fluid:
            y, carry = self.token_mixer(self.norm(x), carry)
            x = x + y
        else:
            x = x + self.attention(x)
        return x + self.channel_mixer(x), carry


class FVNet(nn.Module):
    """FVNet, AAAI 2026, as a classifier."""

    def __init__(self, variant: str, *, deploy: bool, num_classes: int = 1000) -> None:
        super().__init__()
        depths, dims, ratios = fvnet.VARIANTS[variant]
        default = fvnet.FVNet()
        self.dims = dims
        stem = nn.Module()
        stem.embed0 = ConvNorm(3, dims[0], 3, stride=2, deploy=deploy)
        stem.embed1 = ConvNorm(dims[0], dims[0], 3, stride=2, deploy=deploy)
        stem.flow = FluidBlock(
            dims[0], (default.stem_tau_span,), carried=False, deploy=deploy
        )
        self.backbone = nn.Module()
        self.backbone.stem = stem
        for index, (width, depth) in enumerate(zip(dims, depths, strict=True)):
            stage = nn.Module()
            if index:
                stage.downsample = Downsample(dims[index - 1], width, deploy=deploy)
            factor = default.stage_span_factor[index]
            spans = None
            if index + 1 in default.mpfb_stages:
                spans = tuple(
                    (low * factor, high * factor) for low, high in fvnet_fluid.TAU_SPANS
                )
            for number in range(depth):
                block = FluidNetBlock(width, spans, ratios[index], deploy=deploy)
                stage.add_module(f"block{number}", block)
            self.backbone.add_module(f"stage{index + 1}", stage)
        self.head = BatchNormHead(dims[-1], num_classes, deploy=deploy)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, num_classes)."""
        stem = self.backbone.stem
        x, carry = stem.flow(stem.embed1(F.gelu(stem.embed0(x))), None)
        for index, width in enumerate(self.dims):
            stage = getattr(self.backbone, f"stage{index + 1}")
            if index:
                x = stage.downsample(x)
            entering = carry.repeat_interleave(width // carry.shape[1], dim=1)
            for name, block in stage.named_children():
                if name.startswith("block"):
                    x, carry = block(x, entering)
        return self.head(x)
