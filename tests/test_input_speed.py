"""The report of the input pipeline's speed, from loaders that are only pretended."""

import argparse
import json

import pytest
import runs
from PIL import Image

from lvb import input_loaders, input_speed
from lvb.config import flags
from lvb.data import rand_augment


class Pretended:
    """A loader that makes no batches and tells what it was asked."""

    started = ()

    def __init__(self, setup):
        type(self).started = (*self.started, setup)

    def take(self, number):
        return number

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        pass


@pytest.fixture
def pretended(monkeypatch):
    monkeypatch.setattr(Pretended, "started", ())
    monkeypatch.setattr(input_loaders, "Running", Pretended)
    monkeypatch.setattr(input_loaders, "check", lambda names, *, cores: None)
    return Pretended


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg")
    return tmp_path


def parse(*words):
    parser = argparse.ArgumentParser()
    input_speed.add_flags(parser)
    return parser.parse_args(words)


def run(repo_root, folder, *words):
    config = f"--config={repo_root}/configs/lsnet_t.py"
    return input_speed.run(parse(config, f"--folder={folder}", *words))


def setups(workers, *names):
    recipe = input_speed.read_recipe(runs.tiny_config(**RESIZED))
    return [input_loaders.Setup(name, ".", recipe, 8, workers) for name in names]


RESIZED = {"data.crop": "resized", "data.channels": 3, "data.repeats": 1}


def test_the_recipe_is_the_configs(repo_root):
    config = flags.load(f"{repo_root}/configs/lsnet_t.py")
    recipe = input_speed.read_recipe(config)
    (op,) = recipe.transform.ops
    assert isinstance(op, rand_augment.RandAugment)
    assert input_speed.describe(recipe) == {
        "image_size": 224,
        "interpolation": "bicubic",
        "area": [0.08, 1.0],
        "ratio": [0.75, 4 / 3],
        "flip": 0.5,
        "augment": "rand-m9-mstd0.5-inc1",
        "repeats": 3,
        "erasing_prob": 0.25,
    }


@pytest.mark.parametrize("change", [{"data.crop": "shift"}, {"data.channels": 1}])
def test_a_recipe_that_timm_lacks_is_refused(change):
    with pytest.raises(ValueError, match="random resized crops of RGB pictures"):
        input_speed.read_recipe(runs.tiny_config(**(RESIZED | change)))


def test_rows_hold_rates_and_rates_per_core():
    (row,) = input_speed.rows(
        setups(2, "lvb"), {"lvb": [1.0, 2.0, 4.0]}, num_images=100
    )
    assert row["workers"] == row["cores"] == 2
    assert row["images_per_second"]["median"] == 50.0
    assert row["images_per_second"]["rounds"] == 3
    assert 25 < row["images_per_second"]["p5"] < 50 < row["images_per_second"]["p95"]
    assert row["images_per_second_per_core"] == 25.0
    (row,) = input_speed.rows(setups(0, "lvb"), {"lvb": [1.0]}, num_images=100)
    assert (row["cores"], row["images_per_second_per_core"]) == (1, 100.0)


def test_ratios_are_taken_round_by_round():
    """A noisy round slows both sides alike and leaves the ratio alone."""
    seconds = {"lvb": [1.0, 7.0], "lvb_once": [2.0, 14.0], "timm": [3.0, 21.0]}
    found = input_speed.ratios(seconds, workers=1, peers=("timm",))
    assert [(r["contender"], r["peer"], r["median"]) for r in found] == [
        ("lvb", "timm", 3.0),
        ("lvb_once", "timm", 1.5),
    ]
    assert {r["p5"] for r in found} == {3.0, 1.5}
    assert input_speed.ratios(seconds, workers=1, peers=()) == []


def test_the_files_say_what_was_measured(
    repo_root, folder, pretended, tmp_path, capsys
):
    out = tmp_path / "out"
    words = ("--workers=0,1", "--rounds=2", "--batches=3", "--batch_size=8")
    assert run(repo_root, folder, *words, f"--out={out}") == 0
    result = json.loads((out / "input.json").read_text())
    names = [*input_loaders.OURS, *input_loaders.PEERS]
    assert [row["contender"] for row in result["rows"]] == 2 * names
    assert [row["workers"] for row in result["rows"]] == 4 * [0] + 4 * [1]
    assert len(result["ratios"]) == 2 * 2 * 2
    assert (result["images"], result["batch_size"]) == (1, 8)
    assert (result["batches"], result["rounds"]) == (3, 2)
    assert set(result["host_work"]) == set(names)
    assert {"pillow", "numpy", "grain"} <= set(result["machine"]["versions"])
    assert result["machine"]["cores"] >= 1
    assert result["commit"]
    table = (out / "input.md").read_text()
    assert table == capsys.readouterr().out
    assert "| lvb / timm " in table
    assert {setup.workers for setup in pretended.started} == {0, 1}


def test_without_peers_only_ours_runs(repo_root, folder, pretended, capsys):
    assert run(repo_root, folder, "--peers=none", "--workers=0", "--rounds=1") == 0
    assert [setup.name for setup in pretended.started] == list(input_loaders.OURS)
    assert "times faster" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--rounds=0", "--rounds=0 must be at least 1"),
        ("--batch_size=-1", "--batch_size=-1 must be at least 1"),
        ("--workers=0,x", "--workers=0,x: give numbers with commas"),
        ("--workers=", "--workers=: give numbers with commas"),
        ("--peers=dali", "'dali' is unknown; use timm, timm_uint8 or none"),
        ("--folder=nowhere", "--folder=nowhere holds no pictures"),
        ("--config=nowhere.py", "--config=nowhere.py is no file"),
    ],
)
def test_flags_that_do_not_fit_are_told(repo_root, folder, pretended, word, message):
    with pytest.raises(ValueError, match=message):
        run(repo_root, folder, word)
    assert pretended.started == ()


def test_the_samples_are_found_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LVB_SHARED_DATA", str(tmp_path))
    assert input_speed._samples() == str(tmp_path / "imagenet_samples")
    monkeypatch.delenv("LVB_SHARED_DATA")
    with pytest.raises(ValueError, match="say where pictures are: --folder"):
        input_speed._samples()
