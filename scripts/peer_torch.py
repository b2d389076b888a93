"""PyTorch as a peer of `scripts/compare_torch.py`: twins, timm, titans-pytorch."""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import peer_process
import torch
import torch.nn.functional as F
import torch_twins
import torch_twins_local

from lvb.analysis import machine
from lvb.models import registry
from lvb.training import allocator

VARIANTS = ("eager", "channels_last", "compile", "compile_channels_last")
TWINS = {
    "lsnet": torch_twins.LSNet,
    "convneur": torch_twins_local.LocalNetwork,
    "fvnet": torch_twins_local.FVNet,
}
_DEVICE = sys.argv[2] if len(sys.argv) > 2 else "cpu"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Built = tuple[Callable[[], Any], dict[str, Any]]


def build(kind: str, **options: Any) -> Built:
    """A function to time and facts about it, see `peer_process.Contenders`."""
    builders = {
        "inference": _twin_inference,
        "train": _twin_training,
        "timm": _timm,
        "memory": _memory,
    }
    return builders[kind](**options)


def _twin(
    model: str, arrays: dict[str, np.ndarray], *, deploy: bool
) -> torch.nn.Module:
    family, variant = model.split("_")
    twin = TWINS[family](variant.upper(), deploy=deploy)
    weights = {name: value for name, value in arrays.items() if "/" in name}
    torch_twins.load_variables(twin, weights)
    return twin


def _in_variant(
    module: torch.nn.Module, images: torch.Tensor, variant: str
) -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]:
    """The module and its images as `variant` of `VARIANTS` wants them."""
    module, images = module.to(_DEVICE), images.to(_DEVICE)
    if variant.endswith("channels_last"):
        module = module.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    else:
        images = images.contiguous()
    if variant.startswith("compile"):
        return torch.compile(module), images
    return module, images


def _precision(dtype: str) -> torch.autocast:
    """Mixed precision, or none for "float32"."""
    return torch.autocast(_DEVICE, getattr(torch, dtype), enabled=dtype != "float32")


def _twin_inference(model: str, variant: str, sample: str, dtype: str) -> Built:
    """The fused twin with the weights and images of `sample`."""
    arrays = dict(np.load(sample))
    twin = _twin(model, arrays, deploy=True).eval()
    images = torch.from_numpy(arrays["image"]).permute(0, 3, 1, 2)
    run, images = _in_variant(twin, images, variant)
    call = _inference(run, images, dtype)
    error = peer_process.relative_error(call().float().cpu().numpy(), arrays["results"])
    return call, {"error": error}


def _inference(
    run: Any, images: torch.Tensor, dtype: str
) -> Callable[[], torch.Tensor]:
    def call() -> torch.Tensor:
        with torch.inference_mode(), _precision(dtype):
            return run(images)

    return call


def _twin_training(model: str, variant: str, sample: str, dtype: str) -> Built:
    """The twin's training step: uint8 images, forward, backward, fused AdamW."""
    arrays = dict(np.load(sample))
    twin = _twin(model, arrays, deploy=False).train()
    pixels = torch.from_numpy(arrays["image"]).permute(0, 3, 1, 2)
    labels = torch.from_numpy(arrays["label"]).long().to(_DEVICE)
    run, pixels = _in_variant(twin, pixels, variant)
    mean, std = (torch.tensor(v, device=_DEVICE)[:, None, None] for v in (_MEAN, _STD))
    no_decay = registry.family_of(model).no_decay
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for name, parameter in twin.named_parameters():
        exempt = any(f".{part.replace('/', '.')}." in f".{name}." for part in no_decay)
        groups[parameter.ndim > 1 and not exempt].append(parameter)
    optimiser = torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": 0.05},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=1e-3,
        fused=True,
    )

    def call() -> torch.Tensor:
        images = (pixels.float() / 255 - mean) / std
        optimiser.zero_grad(set_to_none=True)
        with _precision(dtype):
            loss = F.cross_entropy(run(images), labels)
        loss.backward()
        optimiser.step()
        return loss

    first = call().item()
    norm = torch.stack([p.grad.norm() for p in twin.parameters()]).norm().item()
    pairs = zip((first, norm, call().item()), arrays["results"], strict=True)
    errors = [peer_process.relative_error(ours, theirs) for ours, theirs in pairs]
    return call, {"error": max(errors)}


def _timm(
    model: str, variant: str, batch_size: int, image_size: int, dtype: str
) -> Built:
    """A network of timm, random weights, its branches and norms fused."""
    import timm
    from timm.utils.model import reparameterize_model

    network = reparameterize_model(timm.create_model(model).eval())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 3, image_size, image_size, generator=generator)
    run, images = _in_variant(network, images, variant)
    size = sum(p.numel() for p in network.parameters())
    return _inference(run, images, dtype), {"params": size}


def _memory(
    tokens: int,
    width: int,
    batch_size: int,
    backward: bool,
    chunk_size: int,
    update_every: int | None,
) -> Built:
    """titans-pytorch's NeuralMemory on a sequence of so many tokens.

    Every `update_every` tokens, its "batch size", the memory at which gradients are
    taken moves on; None never.
    """
    from titans_pytorch import NeuralMemory

    torch.manual_seed(0)
    layer = NeuralMemory(dim=width, chunk_size=chunk_size, batch_size=update_every)
    layer = layer.to(_DEVICE)
    tokens = torch.randn(
        batch_size, tokens, width, device=_DEVICE, requires_grad=backward
    )

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return layer(tokens)[0]

    def both() -> torch.Tensor:
        layer.zero_grad(set_to_none=True)
        tokens.grad = None
        loss = layer(tokens)[0].square().mean()
        loss.backward()
        return loss

    size = sum(p.numel() for p in layer.parameters())
    return both if backward else forward, {"params": size}


def _wait(result: Any) -> None:
    del result
    if _DEVICE == "cuda":
        torch.cuda.synchronize()


def describe() -> dict[str, Any]:
    """Versions and threads."""
    return {
        "versions": machine.versions(("torch", "timm", "titans-pytorch")),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Serves; the arguments are the number of threads, the device and the allocator."""
    threads = int(sys.argv[1])
    if sys.argv[3] == "keep":
        allocator.keep_freed_memory()
    machine.pin(threads)
    torch.set_num_threads(threads or machine.threads())
    served = peer_process.Contenders(build, wait=_wait, clock=time.perf_counter)
    peer_process.serve({**served.handlers(), "describe": describe})


if __name__ == "__main__":
    main()
