"""Loaders in processes of their own."""

import contextlib
import os
import signal
import time

import numpy as np
import pytest
from PIL import Image

from lvb import input_loaders
from lvb.data import augment, transforms


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five JPEGs in two folders, and a file that is none."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "inner").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (5, 40, 50, 3), np.uint8)
    for number, pixels in enumerate(noise):
        place = root / "inner" if number % 2 else root
        Image.fromarray(pixels).save(place / f"{number}.JPEG")
    (root / "labels.csv").write_text("none")
    return str(root)


def setup(folder, name="lvb", *, workers=0, repeats=3):
    recipe = input_loaders.Recipe(
        transform=transforms.TrainTransform(
            32, ops=augment.make_augment("rand-m9-mstd0.5-inc1").parts
        ),
        augment="rand-m9-mstd0.5-inc1",
        repeats=repeats,
        erasing_prob=0.25,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    return input_loaders.Setup(name, folder, recipe, 4, workers)


def state(pid):
    """The letter of /proc that says whether a process runs, sleeps or is stopped."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0]


def test_pictures_are_found_at_any_depth(folder):
    pictures = input_loaders.Pictures(folder)
    assert len(pictures) == 5
    names = [os.path.basename(pictures.describe(i)) for i in range(5)]
    assert sorted(names) == [f"{i}.JPEG" for i in range(5)]
    sizes = [len(pictures[i].image) for i in range(5)]
    assert pictures.mean_bytes() == np.mean(sizes)


def test_a_folder_without_pictures_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"holds no pictures; give a folder of JPEGs"):
        input_loaders.Pictures(str(tmp_path))


@pytest.mark.parametrize(("name", "copies"), [("lvb", 3), ("lvb_once", 1)])
def test_the_builders_honour_repeats(folder, monkeypatch, name, copies):
    """Rows that share a picture are as many as the recipe, or the name, says."""
    indices = []
    batches = input_loaders.lvb_batches

    def spied(setup, *, repeats):
        found = batches(setup, repeats=repeats)
        with batches(setup, repeats=repeats) as again:
            indices.extend(next(again)["index"].tolist())
        return found

    monkeypatch.setattr(input_loaders, "lvb_batches", spied)
    with contextlib.ExitStack() as stack:
        images = next(input_loaders._BUILDERS[name](setup(folder, name), stack))
    assert images.shape == (4, 32, 32, 3)
    assert images.dtype == np.uint8
    assert len(set(indices)) == -(-4 // copies)


def test_a_loader_works_in_its_turn_stands_still_between_and_can_die(folder):
    with input_loaders.Running(setup(folder)) as running:
        pid = running._process.pid
        assert os.getpgid(pid) == pid
        assert running.take(3) == 12
        assert running.take(1) == 4
        deadline = time.monotonic() + 30  # The signal may take a moment.
        while state(pid) != "T" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert state(pid) == "T"
        os.killpg(pid, signal.SIGKILL)
        running._process.join()
        with pytest.raises(RuntimeError, match=r"lvb failed: its process ended"):
            running.take(1)


def test_a_failure_is_told_in_one_sentence(folder):
    broken = setup(folder)._replace(batch_size=0)
    with pytest.raises(
        RuntimeError, match=r"loader lvb failed: ValueError: batch_size"
    ):
        input_loaders.Running(broken)


def test_rows_are_counted():
    batches = iter([np.zeros((4, 1)), np.zeros((4, 1)), np.zeros((3, 1))])
    assert input_loaders._rows(batches, 2, 4) == 8
    with pytest.raises(ValueError, match="1 batches of 4 came with 3 rows"):
        input_loaders._rows(batches, 1, 4)


def test_missing_packages_and_cores_are_told(monkeypatch):
    monkeypatch.setattr(input_loaders.importlib.util, "find_spec", lambda name: None)
    input_loaders.check(("lvb", "lvb_once"), cores=1)
    with pytest.raises(ValueError, match=r"torch and torchvision and timm cannot be"):
        input_loaders.check(("lvb", "timm"), cores=1)
    with pytest.raises(ValueError, match=r"--workers=4096 needs as many cores"):
        input_loaders.check(("lvb",), cores=4096)


def test_a_system_without_process_groups_is_told(monkeypatch):
    monkeypatch.delattr(os, "killpg")
    with pytest.raises(ValueError, match=r"no os\.killpg; run it on Linux"):
        input_loaders.check(("lvb",), cores=1)


def test_a_failed_draw_of_timm_is_drawn_again():
    calls = []

    def once_refused(image):
        calls.append(image)
        if len(calls) == 1:
            raise ValueError("bits must be between 1 and 8")
        return image + 1

    assert input_loaders.Redrawn(once_refused)(1) == 2
    assert calls == [1, 1]


def test_every_loader_says_what_it_does_on_the_host():
    names = {*input_loaders.OURS, *input_loaders.PEERS}
    assert set(input_loaders.HOST_WORK) == set(input_loaders._BUILDERS) == names


@pytest.mark.parametrize("name", input_loaders.PEERS)
def test_timm_makes_the_same_kind_of_batches(folder, name):
    pytest.importorskip("torch")
    pytest.importorskip("timm")
    with contextlib.ExitStack() as stack:
        images = next(input_loaders._BUILDERS[name](setup(folder, name), stack))
    assert tuple(images.shape) == (4, 3, 32, 32)
    uint8 = str(images.dtype) == "torch.uint8"
    assert uint8 == (name == "timm_uint8")
