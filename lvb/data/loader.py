"""Host batches for training and for evaluation, made by Grain.

    batches = train_batches(source, transform, batch_size=256, seed=0, num_workers=4)
    batch = next(batches)  # {"image": (256, H, W, C) uint8, "label": (256,) int32, ...}

Batch k is a pure function of the seed and k: the same bytes for any number of worker
processes, after any restart, and, put together over the hosts, for any number of them.

Worker processes are spawned, so a script that uses them keeps its work under
`if __name__ == "__main__":`.
"""

import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import grain
import numpy as np
from absl import flags, logging

from lvb.data import decode, reader, sources, transforms
from lvb.data.reader import Shard

Batch = dict[str, np.ndarray]

# Of the images seen, before the share of broken ones is judged. Ours.
_MIN_SEEN = 1000
_ENDLESS_STEPS = 2**40
# Whole batches that are ready ahead of the step: per worker, and without workers.
_WORKER_BUFFER, _LOCAL_BUFFER = 2, 4


def train_batches(
    source: sources.Source,
    transform: transforms.Transform,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    shard: Shard = Shard(),  # noqa: B008 - immutable
    num_workers: int = 0,
    repeats: int = 1,
    max_broken: float = 0.01,
) -> "TrainBatches":
    """Returns this host's share of an endless stream of shuffled batches.

    Args:
      source: the examples.
      transform: picture and generator to pixels (H, W, C) uint8; see `transforms`.
      batch_size: rows of a global batch; each host yields batch_size / shard.count.
      seed: of order and augmentation, not negative.
      start_step: step of the first batch; all that a restart needs.
      shard: this host and the number of hosts.
      num_workers: processes that decode and augment; 0 does so in threads.
      repeats: rows that each draw fills in a row, see `reader.TrainRows`.
      max_broken: share of broken images among those seen that ends the run, judged as
        if at least 1,000 had been seen.

    Returns:
      An iterator of batches: "image" (b, H, W, C) uint8, "label" (b,) int32, "index"
      (b,) int64, "mask" (b,) bool, all true, and "broken" (b,) bool. It raises
      ValueError when too many images are broken.

    Raises:
      ValueError: the source is empty or a number does not fit.
    """
    _check_arguments(source, batch_size, shard, num_workers)
    for name, value, least in (
        ("seed", seed, 0),
        ("start_step", start_step, 0),
        ("repeats", repeats, 1),
    ):
        if value < least:
            raise ValueError(f"train_batches: {name}={value} must be at least {least}.")
    if not 0 <= max_broken <= 1:
        raise ValueError(
            f"train_batches: max_broken={max_broken} is not a share in [0, 1]."
        )
    rows = reader.HostRows(batch_size, shard, start_step)
    make_row = reader.TrainRows(
        source, transform, rows=rows, seed=seed, repeats=repeats
    )
    num_rows = _ENDLESS_STEPS * rows.per_step
    batches = _batches(make_row, num_rows, rows.per_step, source, num_workers)
    return TrainBatches(batches, source, max_broken=max_broken)


def eval_batches(
    source: sources.Source,
    transform: transforms.Transform,
    *,
    batch_size: int,
    seed: int = 0,
    shard: Shard = Shard(),  # noqa: B008 - immutable
    num_workers: int = 0,
) -> "Batches":
    """Returns this host's share of one pass in which every example comes once.

    Every host yields the same number of batches, `num_eval_batches`; over all hosts
    the masks sum to the number of examples.

    Args:
      source: the examples, in their own order.
      transform: picture and generator to pixels (H, W, C) uint8.
      batch_size: rows of a global batch; each host yields batch_size / shard.count.
      seed: of the transform's generator, for transforms that draw.
      shard: this host and the number of hosts.
      num_workers: processes that decode; 0 does so in threads.

    Returns:
      An iterator of batches: "image" (b, H, W, C) uint8, "label" (b,) int32, "index"
      (b,) int64 and "mask" (b,) bool; in padding rows mask is false and index -1. It
      raises ValueError at a broken image, naming it.

    Raises:
      ValueError: the source is empty or a number does not fit.
    """
    _check_arguments(source, batch_size, shard, num_workers)
    image, _ = reader.load_strictly(source, 0)
    pixels = transform(image, np.random.default_rng(seed))
    rows = reader.HostRows(batch_size, shard)
    make_row = reader.EvalRows(
        source, transform, rows=rows, seed=seed, image_shape=pixels.shape
    )
    num_rows = num_eval_batches(len(source), batch_size) * rows.per_step
    return Batches(_batches(make_row, num_rows, rows.per_step, source, num_workers))


def num_eval_batches(num_examples: int, batch_size: int) -> int:
    """Returns the number of global batches that hold all examples."""
    return -(-num_examples // batch_size)


class Batches(Iterator[Batch]):
    """An iterator of batches whose background work `close` ends."""

    def __init__(self, dataset: grain.IterDataset) -> None:
        self._iterator = iter(dataset)
        self._iterator.start_prefetch()
        self._closed = False

    def __next__(self) -> Batch:
        if self._closed:
            raise StopIteration
        try:
            batch = next(self._iterator)
        except StopIteration:
            self.close()
            raise
        # Plain views: rows from workers come in a subclass over shared memory.
        return {name: np.asarray(values) for name, values in batch.items()}

    def close(self) -> None:
        """Ends worker processes and threads; calling it again does nothing."""
        self._closed = True
        self._iterator.close()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


class TrainBatches(Batches):
    """Training batches that name and count broken images.

    Attributes:
      num_seen: rows yielded so far by this host.
      num_broken: rows among them whose image was broken and replaced.
    """

    def __init__(
        self, dataset: grain.IterDataset, source: sources.Source, *, max_broken: float
    ) -> None:
        super().__init__(dataset)
        self.num_seen = 0
        self.num_broken = 0
        self._source = source
        self._max_broken = max_broken
        self._named: set[int] = set()

    def __next__(self) -> Batch:
        batch = super().__next__()
        self.num_seen += len(batch["broken"])
        if batch["broken"].any():
            self._count(batch["index"][batch["broken"]].tolist())
        return batch

    def _count(self, indices: list[int]) -> None:
        self.num_broken += len(indices)
        new = sorted(set(indices) - self._named)
        self._named.update(new)
        reports = [self._report(index) for index in new]
        for report in reports:
            logging.warning("%s; the next image takes its place", report)
        if self.num_broken > self._max_broken * max(self.num_seen, _MIN_SEEN):
            last = reports[-1] if reports else self._report(indices[-1])
            self.close()
            raise ValueError(
                f"{self.num_broken} of the {self.num_seen} images seen are broken, "
                f"more than max_broken={self._max_broken} allows; the last: {last}; "
                "repair or remove such files, or raise max_broken."
            )

    def _report(self, index: int) -> str:
        name = self._source.describe(index)
        try:
            reader.load(self._source, index)
        except decode.BrokenImage as error:
            return f"image {name} is broken: {error}"
        return f"image {name} could not be read before, though it can be now"


def _check_arguments(
    source: sources.Source, batch_size: int, shard: Shard, num_workers: int
) -> None:
    if len(source) == 0:
        raise ValueError("the data source is empty; at least one example is needed.")
    if not 0 <= shard.index < shard.count:
        raise ValueError(
            f"shard {shard.index} of {shard.count} does not exist; count from 0."
        )
    if batch_size < 1 or batch_size % shard.count:
        raise ValueError(
            f"batch_size={batch_size} does not divide over {shard.count} hosts; use a "
            f"positive multiple of {shard.count}."
        )
    if num_workers < 0:
        raise ValueError(f"num_workers={num_workers} is negative; use 0 or more.")


def _batches(
    make_row: Callable[[int], reader.Row],
    num_rows: int,
    batch_size: int,
    source: sources.Source,
    num_workers: int,
) -> grain.IterDataset:
    """Builds the pipeline from row numbers to batches of this host."""
    # One row in this process: errors in the data show here, not in a worker.
    num_bytes = batch_size * make_row(0)["image"].nbytes
    rows = grain.MapDataset.range(num_rows).map(make_row)
    batches = rows.batch(batch_size)
    if num_workers == 0:
        options = grain.ReadOptions(_num_threads(source), _LOCAL_BUFFER)
        return batches.to_iter_dataset(options)
    if not flags.FLAGS.is_parsed():  # A notebook or a test: Grain's flags at default.
        flags.FLAGS.mark_as_parsed()
    dataset = batches.to_iter_dataset(grain.ReadOptions(1, 1))
    options = grain.MultiprocessingOptions(num_workers, _WORKER_BUFFER)
    in_flight = num_workers * (2 * _WORKER_BUFFER + 2) * num_bytes
    if not _shared_memory_holds(in_flight):
        without = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
        dataset = grain.experimental.WithOptionsIterDataset(dataset, without)
    return dataset.mp_prefetch(options, worker_init_fn=_prepare_worker)


def _num_threads(source: sources.Source) -> int:
    """Threads for batches made in this process.

    Pillow decodes and resizes without Python's lock; for pixels at hand, threads would
    only fight for it.
    """
    try:
        encoded = isinstance(source[0].image, bytes)
    except (OSError, decode.BrokenImage):
        encoded = True
    return min(_LOCAL_BUFFER, os.cpu_count() or 1) if encoded else 1


def _shared_memory_holds(num_bytes: int) -> bool:
    """Whether batches can travel through shared memory; containers may have little."""
    if not os.path.isdir("/dev/shm") or shutil.disk_usage("/dev/shm").free > num_bytes:
        return True
    logging.warning(
        "/dev/shm has less than the %.0f MiB that the data workers need; batches go "
        "through pipes instead, which is slower (docker: --shm-size).",
        num_bytes / 2**20,
    )
    return False


def _prepare_worker(index: int, count: int) -> None:
    """Ties a worker process to its parent; runs once in each."""
    del index, count
    # The main process decides what a signal means, and still needs the next batch.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
