import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from lvb.data import folder, loader, sources, transforms

EVAL = transforms.EvalTransform(8, channels=1, crop_ratio=1.0)
TRAIN = transforms.TrainTransform(8)


@pytest.fixture(scope="module")
def synthetic():
    return sources.open_source("synthetic", "train", length=10, size=12, num_classes=5)


def take(batches, number):
    with batches:
        return [next(batches) for _ in range(number)]


def digest(batch):
    """A hash of every key, type, shape and byte."""
    parts = hashlib.sha256()
    for name in sorted(batch):
        values = batch[name]
        parts.update(f"{type(values)}{name}{values.dtype}{values.shape}".encode())
        parts.update(np.ascontiguousarray(values).tobytes())
    return parts.hexdigest()


def digests(batches, number):
    return [digest(batch) for batch in take(batches, number)]


def levels(number):
    """Example i is a flat picture of level i mod 256, label 0 or 1."""
    flat = (np.arange(number) % 256).astype(np.uint8)
    images = np.broadcast_to(flat[:, None, None, None], (number, 8, 8, 1))
    return sources.ArraySource(
        images, np.arange(number) % 2, class_names="ab", name="levels"
    )


def test_batches_have_the_agreed_keys(synthetic):
    (batch,) = take(loader.train_batches(synthetic, TRAIN, batch_size=6, seed=0), 1)
    assert {
        name: (values.dtype.name, values.shape) for name, values in batch.items()
    } == {
        "image": ("uint8", (6, 8, 8, 3)),
        "label": ("int32", (6,)),
        "index": ("int64", (6,)),
        "mask": ("bool", (6,)),
        "broken": ("bool", (6,)),
    }
    assert all(type(values) is np.ndarray for values in batch.values())
    assert batch["mask"].all()
    assert batch["label"].tolist() == (batch["index"] % 5).tolist()


def test_every_epoch_has_every_example_once(synthetic):
    batches = take(loader.train_batches(synthetic, TRAIN, batch_size=4, seed=0), 10)
    drawn = np.concatenate([batch["index"] for batch in batches]).reshape(4, 10)
    for epoch in drawn:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in drawn}) == 4


def test_seed_and_step_alone_decide(synthetic):
    def some(seed, start_step, number):
        return digests(
            loader.train_batches(
                synthetic, TRAIN, batch_size=4, seed=seed, start_step=start_step
            ),
            number,
        )

    straight = some(1, 0, 8)
    assert some(1, 5, 3) == straight[5:]
    assert some(2, 0, 1) != straight[:1]
    assert len(set(straight)) == 8


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("repeats", [1, 3])
def test_hosts_together_have_the_batch_of_one(synthetic, count, repeats):
    def some(shard):
        return take(
            loader.train_batches(
                synthetic,
                TRAIN,
                batch_size=8,
                seed=0,
                start_step=3,
                shard=shard,
                repeats=repeats,
            ),
            4,
        )

    whole = some(loader.Shard())
    parts = [some(loader.Shard(index, count)) for index in range(count)]
    for step, batch in enumerate(whole):
        joined = {
            name: np.concatenate([part[step][name] for part in parts]) for name in batch
        }
        assert digest(joined) == digest(batch)


def test_repeats_show_each_image_differently(synthetic):
    (batch,) = take(
        loader.train_batches(synthetic, TRAIN, batch_size=30, seed=0, repeats=3), 1
    )
    assert np.bincount(batch["index"]).tolist() == [3] * 10
    copies = batch["image"].reshape(10, 3, -1)
    assert all(len({copy.tobytes() for copy in three}) == 3 for three in copies)


# Workers are processes; the JPEG folder makes them read, decode and replace.
@pytest.mark.parametrize("num_workers", [1, 4])
def test_workers_give_the_same_bytes(jpeg_folder, num_workers):
    source = folder.FolderSource(jpeg_folder)

    def some(num_workers):
        return digests(
            loader.train_batches(
                source,
                TRAIN,
                batch_size=5,
                seed=0,
                start_step=2,
                num_workers=num_workers,
                max_broken=1.0,
            ),
            10,
        )

    assert some(num_workers) == some(0)


GRID_N = (1, 2, 7, 8, 9, 63, 64, 65, 297)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 8, 64])
def test_evaluation_counts_every_example_once(batch_size, count):
    if batch_size % count:
        with pytest.raises(ValueError, match="batch_size=1 does not divide over 2"):
            loader.eval_batches(
                levels(3), EVAL, batch_size=1, shard=loader.Shard(0, count)
            )
        return
    for number in GRID_N:
        hosts = [
            list(
                loader.eval_batches(
                    levels(number),
                    EVAL,
                    batch_size=batch_size,
                    shard=loader.Shard(index, count),
                )
            )
            for index in range(count)
        ]
        num_batches = loader.num_eval_batches(number, batch_size)
        assert [len(host) for host in hosts] == [num_batches] * count
        rows = [batch for step in zip(*hosts, strict=True) for batch in step]
        assert {len(batch["mask"]) for batch in rows} == {batch_size // count}
        merged = {k: np.concatenate([b[k] for b in rows]) for k in rows[0]}
        mask = merged["mask"]
        assert mask.sum() == number
        assert merged["index"][mask].tolist() == list(range(number))
        assert (merged["index"][~mask] == -1).all()
        np.testing.assert_array_equal(
            merged["image"][mask].max(axis=(1, 2, 3)), np.arange(number) % 256
        )
        assert not merged["image"][~mask].any()


def test_evaluation_by_workers_is_the_same():
    """Two workers and three batches: one of them has a batch less."""
    some = [
        [
            digest(batch)
            for batch in loader.eval_batches(
                levels(11), EVAL, batch_size=4, num_workers=num_workers
            )
        ]
        for num_workers in (0, 2)
    ]
    assert len(some[0]) == 3
    assert some[0] == some[1]


def test_broken_images_are_named_once_and_counted(jpeg_folder, caplog):
    source = folder.FolderSource(jpeg_folder)
    batches = loader.train_batches(source, TRAIN, batch_size=20, seed=0)
    with caplog.at_level("WARNING"):
        for _ in range(3):
            assert next(batches)["broken"].sum() == 2
    batches.close()
    assert (batches.num_seen, batches.num_broken) == (60, 6)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert {text.split()[1] for text in told} == {
        str(jpeg_folder / "a" / "3.jpg"),
        str(jpeg_folder / "b" / "7.jpg"),
    }
    assert all("is broken: the content is damaged" in text for text in told)


def test_too_many_broken_images_end_the_run(jpeg_folder):
    """One in ten is broken: 1 % of the first thousand is passed at the eleventh."""
    source = folder.FolderSource(jpeg_folder)
    batches = loader.train_batches(source, TRAIN, batch_size=20, seed=0)
    for _ in range(5):
        next(batches)
    message = r"12 of the 120 images seen are broken, more than max_broken=0\.01 .*jpg"
    with pytest.raises(ValueError, match=message):
        next(batches)
    strict = loader.train_batches(source, TRAIN, batch_size=20, seed=0, max_broken=0.0)
    with pytest.raises(ValueError, match="2 of the 20 images seen are broken"):
        next(strict)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_image_ends_an_evaluation(jpeg_folder, num_workers):
    source = folder.FolderSource(jpeg_folder)
    batches = loader.eval_batches(source, EVAL, batch_size=5, num_workers=num_workers)
    with pytest.raises(ValueError, match=r"a/3.jpg is broken: .* counts every image"):
        list(batches)


def test_an_iterator_that_ended_stays_so():
    batches = loader.eval_batches(levels(3), EVAL, batch_size=2)
    assert len(list(batches)) == 2
    assert list(batches) == []
    batches.close()
    training = loader.train_batches(levels(3), EVAL, batch_size=2, seed=0)
    training.close()
    assert list(training) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 does not divide"),
        (
            {"batch_size": 3, "shard": loader.Shard(0, 2)},
            "batch_size=3 does not divide",
        ),
        ({"shard": loader.Shard(2, 2)}, "shard 2 of 2 does not exist"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"start_step": -1}, "start_step=-1"),
        ({"repeats": 0}, "repeats=0 must be at least 1"),
        ({"max_broken": 1.5}, r"max_broken=1\.5 is not a share"),
    ],
)
def test_numbers_that_do_not_fit(synthetic, options, message):
    arguments = {"batch_size": 4, "seed": 0} | options
    with pytest.raises(ValueError, match=message):
        loader.train_batches(synthetic, TRAIN, **arguments)


def test_an_empty_source_is_refused():
    with pytest.raises(ValueError, match="the data source is empty"):
        loader.train_batches(levels(0), EVAL, batch_size=1, seed=0)


def test_little_shared_memory_means_pipes(synthetic, monkeypatch, caplog):
    """As in a container with 64 MiB of /dev/shm; the bytes stay the same."""

    def some(num_workers):
        return digests(
            loader.train_batches(
                synthetic, TRAIN, batch_size=4, seed=0, num_workers=num_workers
            ),
            3,
        )

    expected = some(0)
    monkeypatch.setattr(
        loader.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 0)
    )
    with caplog.at_level("WARNING"):
        assert some(1) == expected
    assert "batches go through pipes" in caplog.text


SCRIPT = """
import multiprocessing, os, signal, sys, time
from lvb.data import loader, sources, transforms

if __name__ == "__main__":
    source = sources.open_source("synthetic", "train", length=64, size=8)
    batches = loader.train_batches(
        source, transforms.ShiftTransform(8), batch_size=4, seed=0, num_workers=1
    )
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGINT)
    os.kill(worker.pid, signal.SIGTERM)
    for _ in range(12):
        next(batches)
    print(worker.pid, flush=True)
    if sys.argv[1] == "wait":
        time.sleep(600)
"""


def is_running(pid):
    """Whether a process exists and is not merely waiting to be collected."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
@pytest.mark.parametrize("end", ["exit", "wait"])
def test_workers_outlive_signals_and_not_their_parent(tmp_path, repo_root, end):
    """A worker ignores Ctrl-C and SIGTERM, and ends when its parent exits or dies."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    parent = subprocess.Popen(
        [sys.executable, path, end],
        env=os.environ | {"PYTHONPATH": str(repo_root)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        worker = int(parent.stdout.readline())
        if end == "wait":
            assert is_running(worker)
            parent.send_signal(signal.SIGKILL)
        assert parent.wait(timeout=60) == (0 if end == "exit" else -signal.SIGKILL)
    finally:
        parent.kill()
        parent.stdout.close()
    deadline = time.monotonic() + 30
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(worker)
