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
    sample: str,
    backward: bool,
    chunk_size: int,
    update_every: int | None,
    max_step: float,
    clip: float,
    norm_epsilon: float,
) -> Built:
    """titans-pytorch's NeuralMemory with the weights and tokens of `sample`.

    Every `update_every` tokens, its "batch size", the memory at which gradients are
    taken moves on; None never.
    """
    from titans_pytorch import NeuralMemory

    arrays = {name: torch.from_numpy(value) for name, value in np.load(sample).items()}
    tokens, results = (arrays.pop(name).flatten(1, 2) for name in ("image", "results"))
    layer = NeuralMemory(
        dim=tokens.shape[-1],
        chunk_size=chunk_size,
        batch_size=update_every,
        attn_pool_chunks=True,
        default_step_transform_max_lr=max_step,
    )
    layer.memory_model.norm.ln.eps = norm_epsilon
    layer.load_state_dict(_titans_weights(arrays, layer))
    layer, tokens = layer.to(_DEVICE), tokens.to(_DEVICE).requires_grad_(backward)
    with torch.no_grad():
        answers = layer(tokens)[0].cpu()
    # It answers the last token of a chunk by the memory after the chunk.
    compared = torch.arange(tokens.shape[1]) % chunk_size < chunk_size - 1
    error = peer_process.relative_error(
        answers[:, compared].numpy(), results[:, compared].numpy()
    )
    layer.max_grad_norm = clip or None

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return layer(tokens)[0]

    def both() -> torch.Tensor:
        layer.zero_grad(set_to_none=True)
        tokens.grad = None
        loss = layer(tokens)[0].square().mean()
        loss.backward()
        return loss

    return both if backward else forward, {"error": error}


def _titans_weights(
    arrays: dict[str, torch.Tensor], layer: torch.nn.Module
) -> dict[str, torch.Tensor]:
    """Our weights of the memory under titans-pytorch's names."""
    names = {
        "retrieve_norm.weight": "retrieve_norm/scale",
        "store_norm.weight": "store/norm/scale",
        "to_queries.weight": "query/kernel",
        "to_keys.weight": "store/key/kernel",
        "to_values.weight": "store/value/kernel",
        "reduce_to_chunk_rep.to_attn_logits.weight": "store/pool/kernel",
        "reduce_to_chunk_rep.to_attn_logits.bias": "store/pool/bias",
    }
    for theirs, ours in (
        ("adaptive_step", "step"),
        ("momentum", "momentum"),
        ("decay_factor", "decay"),
    ):
        names[f"to_{theirs}.0.weight"] = f"store/{ours}/kernel"
        names[f"to_{theirs}.0.bias"] = f"store/{ours}/bias"
    weights = layer.state_dict()
    for theirs, ours in names.items():
        array = arrays[ours]
        weights[theirs] = array.T if ours.endswith("kernel") else array
    for index, name in enumerate(("gain", "hidden", "output")):
        weights[f"memory_model_parameters.{index}"] = arrays[f"initial_{name}"][None]
    return weights


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
