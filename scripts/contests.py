"""Who is timed against whom by `scripts/compare_torch.py`."""

import argparse
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lvb.models import convneur

_CHUNK, _WIDTH = 196, 128  # Of the memory: ConvNeur's chunk, M3's width.
_MODELS = {
    "inference": "lsnet_t,lsnet_s,lsnet_b",
    "train": "lsnet_t,fvnet_t,convneur_m1",
    "timm": "lsnet_t,lsnet_s,lsnet_b",
    "onnx": "lsnet_t,lsnet_s,lsnet_b",
    "memory": "",
}
_BATCHES = {"train": "16", "memory": "1"}


class Entry(NamedTuple):
    """A contender of a contest.

    Attributes:
      name: in the results.
      peer: "lvb", "torch" or "onnx"; "torch_keep" is a process that keeps its memory.
      specification: for the peer's `build`.
    """

    name: str
    peer: str
    specification: dict[str, Any]


class Contest(NamedTuple):
    """What is timed in turns; the first entry is ours.

    Attributes:
      title: what is computed.
      items: images or tokens per call.
      entries: the contenders.
      exports: (model, path) of the ONNX file it needs, or None.
    """

    title: str
    items: int
    entries: tuple[Entry, ...]
    exports: tuple[str, str] | None = None


def contests(args: argparse.Namespace, folder: pathlib.Path) -> list[Contest]:
    """What the flags ask for; files go to `folder`."""
    allocators = args.allocators.split(",")
    return [_with_allocators(c, allocators) for c in _contests(args, folder)]


def peer_of(name: str, allocator: str) -> str:
    """The process of a peer that keeps ("keep") its memory or does not ("stock")."""
    return name if allocator == "stock" else f"{name}_{allocator}"


def _with_allocators(contest: Contest, allocators: Sequence[str]) -> Contest:
    """Each entry that is not ours once per setting of its memory."""
    ours = [entry for entry in contest.entries if entry.peer == "lvb"]
    theirs = [
        entry._replace(
            name=entry.name + (", memory kept" if allocator == "keep" else ""),
            peer=peer_of(entry.peer, allocator),
        )
        for entry in contest.entries
        if entry.peer != "lvb"
        for allocator in allocators
    ]
    return contest._replace(entries=(*ours, *theirs))


def _contests(args: argparse.Namespace, folder: pathlib.Path) -> list[Contest]:
    batches = [int(size) for size in _given(args, "batch_sizes", _BATCHES, "1,16")]
    if args.what == "memory":
        return [
            _memory_contest(int(tokens), batch, backward, folder)
            for batch in batches
            for backward in (False, True)
            for tokens in args.tokens.split(",")
        ]
    models = _given(args, "models", _MODELS, "")
    if args.what == "timm":
        return [_timm(args, models, batch, folder) for batch in batches]
    make = {"inference": _twins, "train": _twins, "onnx": _onnx}
    return [
        make[args.what](args, model, batch, str(folder / f"{model}_{batch}"))
        for batch in batches
        for model in models
    ]


def _given(
    args: argparse.Namespace, flag: str, defaults: Mapping[str, str], default: str
) -> list[str]:
    value = getattr(args, flag) or defaults.get(args.what, default)
    return [word for word in value.split(",") if word]


def _ours(args: argparse.Namespace, model: str, batch: int, sample: str) -> Entry:
    specification = dict(
        kind="train" if args.what == "train" else "inference",
        model=model,
        batch_size=batch,
        image_size=args.image_size,
        dtype=args.dtype,
        sample=f"{sample}.npz",
    )
    if model.startswith("convneur") and args.what != "onnx":
        specification["memory_at"] = "none"  # As the twin.
        model = f"{model} without memory"
    return Entry(f"lvb {model}", "lvb", specification)


def _twins(args: argparse.Namespace, model: str, batch: int, sample: str) -> Contest:
    ours = _ours(args, model, batch, sample)
    twins = [
        Entry(
            f"torch twin, {variant}",
            "torch",
            dict(
                kind=args.what,
                model=model,
                variant=variant,
                dtype=args.dtype,
                sample=f"{sample}.npz",
            ),
        )
        for variant in args.variants.split(",")
    ]
    return Contest(
        f"{args.what}, {ours.name[4:]}, batch {batch}", batch, (ours, *twins)
    )


def _timm(
    args: argparse.Namespace, models: Sequence[str], batch: int, folder: pathlib.Path
) -> Contest:
    """All of ours beside all of timm's; the ratios are to the first of ours."""
    ours = [
        _ours(args, model, batch, str(folder / f"{model}_{batch}")) for model in models
    ]
    peers = [
        Entry(
            f"timm {peer}, {variant}",
            "torch",
            dict(
                kind="timm",
                model=peer,
                variant=variant,
                batch_size=batch,
                image_size=args.image_size,
                dtype=args.dtype,
            ),
        )
        for peer in args.peers.split(",")
        for variant in args.variants.split(",")
    ]
    title = f"inference, other networks, batch {batch}"
    return Contest(title, batch, (*ours, *peers))


def _onnx(args: argparse.Namespace, model: str, batch: int, sample: str) -> Contest:
    path = f"{sample}.onnx"
    entry = Entry(
        "onnxruntime, exported file",
        "onnx",
        dict(kind="onnx", path=path, sample=f"{sample}.npz"),
    )
    ours = _ours(args, model, batch, sample)
    title = f"inference, {model}, batch {batch}"
    return Contest(title, batch, (ours, entry), exports=(model, path))


def _memory_contest(
    tokens: int, batch: int, backward: bool, folder: pathlib.Path
) -> Contest:
    """Our presets, one also without its native program, and titans-pytorch as each."""
    ours, theirs = [], []
    for name in ("paper", "package"):
        preset = convneur.PRESETS[name]
        sample = str(folder / f"memory_{name}_{tokens}_{batch}.npz")
        shared = dict(kind="memory", backward=backward, sample=sample)
        specification = dict(
            tokens=tokens, width=_WIDTH, batch_size=batch, preset=name, **shared
        )
        ours.append(Entry(f"lvb, {name}", "lvb", specification))
        if preset.grad_at == "previous":
            in_xla = {
                **specification,
                "op_form": "shift",
                "sample": f"{sample}.xla.npz",
            }
            ours.append(Entry(f"lvb, {name}, in XLA", "lvb", in_xla))
        specification = dict(
            chunk_size=_CHUNK,
            update_every=_CHUNK if preset.grad_at == "previous" else None,
            max_step=preset.inner_lr / (_CHUNK if preset.token_reduce == "mean" else 1),
            clip=preset.inner_clip,
            norm_epsilon=preset.memory_norm_eps,
            **shared,
        )
        title = f"titans-pytorch, gradients at the {preset.grad_at} memory"
        theirs.insert(0, Entry(title, "torch", specification))
    words = "forward and backward" if backward else "forward"
    title = f"neural memory, {words}, {tokens:,} tokens"
    return Contest(title, tokens * batch, (*ours, *theirs))
