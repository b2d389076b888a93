"""`python -m lvb.benchmark --input`: images per second of the input pipeline.

Decoded and augmented batches of a training recipe, ours beside those of PyTorch's
DataLoader with timm's transforms, in one run, in turns, on the same cores.
"""

import argparse
import contextlib
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import config_dict

from lvb import input_loaders, inputs
from lvb.analysis import machine, markdown, timing
from lvb.config import flags
from lvb.data import transforms
from lvb.training import process, provenance

_SAMPLES = "imagenet_samples"  # Below $LVB_SHARED_DATA.
_PACKAGES = ("numpy", "pillow", "grain", "jax", "torch", "torchvision", "timm")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `--input`."""
    add = parser.add_argument
    add("--config", default="configs/lsnet_t.py", help="config whose recipe it is")
    add("--folder", help=f"pictures; by default $LVB_SHARED_DATA/{_SAMPLES}")
    add("--peers", default=",".join(input_loaders.PEERS), help="with commas, or none")
    add("--workers", default="0,1,2", help="processes of a loader, with commas")
    add("--batch_size", type=int, default=64, help="rows of a batch")
    add("--batches", type=int, default=4, help="batches in a turn")
    add("--rounds", type=int, default=20, help="measured turns of each loader")
    add("--out", help="folder for input.json and input.md")


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table and writes the files; returns the exit code."""
    for name in ("batch_size", "batches", "rounds"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name}={getattr(args, name)} must be at least 1.")
    counts, peers = _worker_counts(args.workers), _peers(args.peers)
    directory = args.folder or _samples()
    pictures = input_loaders.Pictures(directory)
    recipe = read_recipe(flags.load(args.config))
    ours = input_loaders.OURS if recipe.repeats > 1 else input_loaders.OURS[:1]
    names = (*ours, *peers)
    input_loaders.check(names, cores=max(counts))
    result = {
        "config": args.config,
        "recipe": describe(recipe),
        "images": len(pictures),
        "mean_bytes": pictures.mean_bytes(),
        "batch_size": args.batch_size,
        "batches": args.batches,
        "rounds": args.rounds,
        "host_work": {name: input_loaders.HOST_WORK[name] for name in names},
        "rows": [],
        "ratios": [],
    }
    for workers in counts:
        setups = [
            input_loaders.Setup(name, directory, recipe, args.batch_size, workers)
            for name in names
        ]
        seconds = measure(setups, batches=args.batches, rounds=args.rounds)
        result["rows"] += rows(
            setups, seconds, num_images=args.batch_size * args.batches
        )
        result["ratios"] += ratios(seconds, workers=workers, peers=peers)
    result |= {"commit": provenance.commit(), "machine": machine.describe(_PACKAGES)}
    text = report(result)
    print(text)
    if args.out:
        markdown.save(args.out, "input", result=result, text=text)
    return process.DONE


def read_recipe(config: config_dict.ConfigDict) -> input_loaders.Recipe:
    """The input side of a config.

    Raises:
      ValueError: if timm's pipeline has nothing like it.
    """
    transform = inputs.train_transform(config)
    data = config.data
    if not isinstance(transform, transforms.TrainTransform) or data.channels != 3:
        raise ValueError(
            f"--input measures random resized crops of RGB pictures, and this config "
            f"has data.crop={data.crop!r} and data.channels={data.channels}; use for "
            "example configs/lsnet_t.py."
        )
    return input_loaders.Recipe(
        transform=transform,
        augment=data.augment,
        repeats=data.repeats,
        erasing_prob=config.erasing.prob,
        mean=tuple(data.mean),
        std=tuple(data.std),
    )


def describe(recipe: input_loaders.Recipe) -> dict[str, Any]:
    """A recipe as values that JSON can hold."""
    transform = recipe.transform
    return {
        "image_size": transform.size,
        "interpolation": transform.interpolation,
        "area": list(transform.area),
        "ratio": list(transform.ratio),
        "flip": transform.flip,
        "augment": recipe.augment,
        "repeats": recipe.repeats,
        "erasing_prob": recipe.erasing_prob,
    }


def measure(
    setups: Sequence[input_loaders.Setup], *, batches: int, rounds: int
) -> dict[str, list[float]]:
    """Runs loaders in turns.

    Args:
      setups: one for each loader.
      batches: that a loader makes in a turn.
      rounds: measured turns of each, after one that is not.

    Returns:
      Seconds of every turn, by name.
    """
    with contextlib.ExitStack() as stack:
        running = {
            setup.name: stack.enter_context(input_loaders.Running(setup))
            for setup in setups
        }
        calls = {
            name: functools.partial(one.take, batches) for name, one in running.items()
        }
        return timing.interleave(calls, rounds=rounds, warmup=1)


def rows(
    setups: Sequence[input_loaders.Setup],
    seconds: Mapping[str, Sequence[float]],
    *,
    num_images: int,
) -> list[dict[str, Any]]:
    """Images per second of each loader, over the rounds.

    Args:
      setups: of the loaders.
      seconds: of every turn, by name.
      num_images: rows made in a turn.
    """
    found = []
    for setup in setups:
        speed = timing.summarise([num_images / s for s in seconds[setup.name]])
        found.append(
            {
                "contender": setup.name,
                "workers": setup.workers,
                "cores": setup.cores,
                "images_per_second": speed._asdict(),
                "images_per_second_per_core": speed.median / setup.cores,
            }
        )
    return found


def ratios(
    seconds: Mapping[str, Sequence[float]], *, workers: int, peers: Sequence[str]
) -> list[dict[str, Any]]:
    """How many times faster each of our loaders is than each peer, round by round."""
    return [
        {
            "contender": name,
            "peer": peer,
            "workers": workers,
            **timing.ratio(seconds[name], seconds[peer])._asdict(),
        }
        for name in seconds
        if name not in peers
        for peer in peers
    ]


def report(result: Mapping[str, Any]) -> str:
    """The tables on screen and in `input.md`."""
    host = result["machine"]
    cells = [
        (
            row["contender"],
            f"{row['workers']} / {row['cores']}",
            f"{row['images_per_second_per_core']:.0f}",
            *(
                f"{row['images_per_second'][key]:.0f}"
                for key in ("median", "p5", "p95")
            ),
        )
        for row in result["rows"]
    ]
    header = ("loader", "workers / cores", "images/s per core", "images/s", "p5", "p95")
    recipe = result["recipe"]
    lines = [
        f"{host['processor']}; {recipe['image_size']} px, {recipe['augment']}, "
        f"{result['images']} pictures of {result['mean_bytes'] / 1e3:.0f} kB; medians "
        f"of {result['rounds']} interleaved rounds of "
        f"{result['batch_size'] * result['batches']} images.",
        "",
        markdown.table(header, cells),
    ]
    if result["ratios"]:
        cells = [
            (
                f"{row['contender']} / {row['peer']}",
                str(row["workers"]),
                *(f"{row[key]:.2f}" for key in ("median", "p5", "p95")),
            )
            for row in result["ratios"]
        ]
        header = ("times faster", "workers", "median", "p5", "p95")
        lines += ["", markdown.table(header, cells)]
    lines += ["", *(f"- {name}: {what}." for name, what in result["host_work"].items())]
    return "\n".join(lines)


def _worker_counts(text: str) -> list[int]:
    words = [word for word in text.split(",") if word]
    if not words or not all(word.isdecimal() for word in words):
        raise ValueError(f"--workers={text}: give numbers with commas, such as 0,2.")
    return [int(word) for word in words]


def _peers(text: str) -> tuple[str, ...]:
    peers = () if text == "none" else tuple(word for word in text.split(",") if word)
    for peer in peers:
        if peer not in input_loaders.PEERS:
            raise ValueError(
                f"--peers={text}: {peer!r} is unknown; use "
                f"{', '.join(input_loaders.PEERS)} or none."
            )
    return peers


def _samples() -> str:
    shared = os.environ.get("LVB_SHARED_DATA")
    if not shared:
        raise ValueError(
            f"say where pictures are: --folder DIR, or LVB_SHARED_DATA with "
            f"{_SAMPLES} inside."
        )
    return os.path.join(shared, _SAMPLES)
