"""The loaders that `--input` measures, each in processes of its own.

A loader fills its buffers in the background. Were it left running while another is
timed, it would take that one's cores, and begin its own turn with batches that are
ready; between its turns its whole process group therefore stands still.
"""

import contextlib
import importlib.util
import multiprocessing
import os
import pathlib
import signal
from collections.abc import Callable, Iterator
from multiprocessing import connection
from typing import Any, NamedTuple, Self

from PIL import Image

from lvb.data import folder, loader, sources, transforms

OURS = ("lvb", "lvb_once")
PEERS = ("timm", "timm_uint8")

# What each leaves to the device is part of its design, so a result says it.
HOST_WORK = {
    "lvb": "decode, once for the copies of repeated augmentation; crop, resize, flip, "
    "RandAugment, uint8 batch; normalisation and erasing run on the device",
    "lvb_once": "the same with one copy of each picture, so one decode for each row",
    "timm": "decode, crop, resize, flip, RandAugment, float32 tensor, normalisation, "
    "erasing, float32 batch: timm's create_transform as DeiT and LSNet use it",
    "timm_uint8": "decode, crop, resize, flip, RandAugment, uint8 batch: timm's "
    "transform for its prefetcher, which normalises and erases on the device",
}

_PACKAGES = ("torch", "torchvision", "timm")
_ENDLESS = 10**9  # Rows that PyTorch's sampler draws.
_PATIENCE = 60.0  # Seconds that a loader has to end by itself.


class Recipe(NamedTuple):
    """The input side of a training recipe.

    Attributes:
      transform: ours; it holds size, crop, filter and flip of both sides.
      augment: RandAugment's policy string.
      repeats: copies of each picture in a row.
      erasing_prob: of random erasing, which timm does on the host.
      mean: RGB, of pixels in [0, 1], as `std`.
      std: see there.
    """

    transform: transforms.TrainTransform
    augment: str
    repeats: int
    erasing_prob: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Setup(NamedTuple):
    """One loader.

    Attributes:
      name: one of `OURS` or `PEERS`.
      directory: pictures, at any depth.
      recipe: what is done to them.
      batch_size: rows of a batch.
      workers: processes that make batches; 0 makes them in the loader's own.
    """

    name: str
    directory: str
    recipe: Recipe
    batch_size: int
    workers: int

    @property
    def cores(self) -> int:
        """Cores that it may use."""
        return max(1, self.workers)


class Pictures:
    """A source of every picture below a directory, all of one class.

    Attributes:
      class_names: one name.
    """

    class_names = ("picture",)

    def __init__(self, directory: str) -> None:
        """Lists the files by name.

        Raises:
          ValueError: there are none.
        """
        self._paths = sorted(
            str(path)
            for path in pathlib.Path(directory).rglob("*")
            if path.suffix.lower() in folder.EXTENSIONS and path.is_file()
        )
        if not self._paths:
            raise ValueError(
                f"--folder={directory} holds no pictures; give a folder of JPEGs."
            )

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> sources.Example:
        with open(self._paths[index], "rb") as file:
            return sources.Example(file.read(), 0)

    def describe(self, index: int) -> str:
        """The path of a picture."""
        return self._paths[index]

    def mean_bytes(self) -> float:
        """Mean size of a file."""
        return sum(os.path.getsize(path) for path in self._paths) / len(self)


def check(names: tuple[str, ...], *, cores: int) -> None:
    """Raises ValueError where loaders of these names cannot be measured.

    Args:
      names: of all loaders.
      cores: as many as the one with most workers needs.
    """
    for attribute in ("killpg", "sched_setaffinity"):
        if not hasattr(os, attribute):
            raise ValueError(
                f"--input stops and pins processes, for which this system has no "
                f"os.{attribute}; run it on Linux."
            )
    available = len(os.sched_getaffinity(0))
    if cores > available:
        raise ValueError(
            f"--workers={cores} needs as many cores, and this process may use "
            f"{available}; give fewer workers."
        )
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing and set(names) & set(PEERS):
        raise ValueError(
            f"--peers: {' and '.join(missing)} cannot be found; install them with "
            "pip install 'lvb[bench]', or give --peers none."
        )


class Running:
    """A loader at work in its own process group, stopped between turns."""

    def __init__(self, setup: Setup) -> None:
        """Starts it and waits for its first batch.

        Raises:
          RuntimeError: it failed; the message says how.
        """
        context = multiprocessing.get_context("spawn")
        self._name = setup.name
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, setup))
        self._process.start()
        other.close()
        try:
            self._receive()
        except BaseException:
            self.close()
            raise
        self._signal(signal.SIGSTOP)

    def take(self, number: int) -> int:
        """Lets it make batches and returns the number of their rows."""
        self._signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):  # Told below.
            self._pipe.send(number)
        rows = self._receive()
        self._signal(signal.SIGSTOP)
        return rows

    def close(self) -> None:
        """Ends the process and those that it started."""
        self._signal(signal.SIGCONT)
        with contextlib.suppress(OSError):
            self._pipe.send(0)
        self._process.join(_PATIENCE)
        self._signal(signal.SIGKILL)
        self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _receive(self) -> int:
        try:
            answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            answer = "its process ended without a word"
        if isinstance(answer, str):
            raise RuntimeError(f"the loader {self._name} failed: {answer}.")
        return answer

    def _signal(self, number: signal.Signals) -> None:
        # A process that failed early may have left no group behind.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def _serve(pipe: connection.Connection, setup: Setup) -> None:
    """Makes as many batches as the pipe asks for, until it asks for none."""
    os.setpgrp()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: setup.cores])
    try:
        with contextlib.ExitStack() as stack:
            batches = _BUILDERS[setup.name](setup, stack)
            pipe.send(_rows(batches, 1, setup.batch_size))
            while number := pipe.recv():
                pipe.send(_rows(batches, number, setup.batch_size))
    except (EOFError, BrokenPipeError):  # Whoever asked is gone.
        pass
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")
        pipe.send(f"{type(error).__name__}: {reason}")


def _rows(batches: Iterator[Any], number: int, batch_size: int) -> int:
    rows = sum(len(next(batches)) for _ in range(number))
    if rows != number * batch_size:
        raise ValueError(f"{number} batches of {batch_size} came with {rows} rows")
    return rows


def lvb_batches(setup: Setup, *, repeats: int) -> loader.TrainBatches:
    """Our training batches."""
    return loader.train_batches(
        Pictures(setup.directory),
        setup.recipe.transform,
        batch_size=setup.batch_size,
        seed=0,
        num_workers=setup.workers,
        repeats=repeats,
    )


def _build_lvb(
    setup: Setup, stack: contextlib.ExitStack, *, once: bool = False
) -> Iterator[Any]:
    repeats = 1 if once else setup.recipe.repeats
    batches = stack.enter_context(lvb_batches(setup, repeats=repeats))
    return (batch["image"] for batch in batches)


def _build_lvb_once(setup: Setup, stack: contextlib.ExitStack) -> Iterator[Any]:
    return _build_lvb(setup, stack, once=True)


class Redrawn:
    """A transform of timm's that is drawn again where it fails.

    timm's posterize may ask for 0 bits, which Pillow refuses from version 13 on: with
    "rand-m9-mstd0.5-inc1" about once in a thousand pictures.
    """

    def __init__(self, transform: Callable[[Image.Image], Any]) -> None:
        self._transform = transform

    def __call__(self, image: Image.Image) -> Any:
        try:
            return self._transform(image)
        except ValueError:
            return self._transform(image)


def _build_timm(
    setup: Setup, stack: contextlib.ExitStack, *, uint8: bool = False
) -> Iterator[Any]:
    """PyTorch's DataLoader over timm's dataset and transform, shuffled, endless."""
    del stack
    import timm.data
    import torch
    from timm.data import loader as timm_loader

    torch.set_num_threads(setup.cores)
    recipe, ours = setup.recipe, setup.recipe.transform
    transform = timm.data.create_transform(
        ours.size,
        is_training=True,
        scale=ours.area,
        ratio=ours.ratio,
        hflip=ours.flip,
        interpolation=ours.interpolation,
        auto_augment=recipe.augment,
        mean=recipe.mean,
        std=recipe.std,
        re_prob=recipe.erasing_prob,
        re_mode="pixel",
        use_prefetcher=uint8,
    )
    dataset = timm.data.ImageDataset(setup.directory, transform=Redrawn(transform))
    num_images = len(Pictures(setup.directory))
    if len(dataset) != num_images:
        raise ValueError(
            f"timm finds {len(dataset)} of the {num_images} pictures in "
            f"{setup.directory}; keep JPEG and PNG files only"
        )
    batches = torch.utils.data.DataLoader(
        dataset,
        setup.batch_size,
        sampler=torch.utils.data.RandomSampler(dataset, num_samples=_ENDLESS),
        num_workers=setup.workers,
        multiprocessing_context="spawn" if setup.workers else None,
        collate_fn=timm_loader.fast_collate if uint8 else None,
        drop_last=True,
    )
    return (images for images, _ in batches)


def _build_timm_uint8(setup: Setup, stack: contextlib.ExitStack) -> Iterator[Any]:
    return _build_timm(setup, stack, uint8=True)


_BUILDERS = {
    "lvb": _build_lvb,
    "lvb_once": _build_lvb_once,
    "timm": _build_timm,
    "timm_uint8": _build_timm_uint8,
}
