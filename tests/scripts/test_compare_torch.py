"""Peers behind a pipe, and the contest between them; nothing here is timed."""

import importlib
import sys
import types

import numpy as np
import pytest

# A peer whose clock is made up: contender "slow" takes twice as long as "fast".
FAKE = """
import itertools, sys
sys.path.insert(0, sys.argv[1])
import peer_process

print("a library that prints")
ticks = itertools.count()
speed = {}

def build(speed_up, fail=False, error=0.0):
    if fail:
        raise ValueError("it does not fit.\\nsecond line")
    speed["now"] = speed_up
    return lambda: None, {"error": error}

class Clock(peer_process.Contenders):
    def time(self, name, calls):
        self._calls[name]()
        return {"seconds": 2.0 if name == "slow" else 1.0}

served = Clock(build, wait=lambda x: x, clock=lambda: next(ticks))
peer_process.serve({**served.handlers(), "leave": lambda: sys.exit(3)})
"""


@pytest.fixture(scope="module")
def scripts(repo_root):
    """The modules of scripts/, which import each other by name."""
    folder = str(repo_root / "scripts")
    sys.path.insert(0, folder)
    try:
        names = ("peer_process", "contests", "compare_torch", "check_export")
        yield types.SimpleNamespace(
            folder=folder, **{name: importlib.import_module(name) for name in names}
        )
    finally:
        sys.path.remove(folder)


@pytest.fixture
def peer(scripts, tmp_path):
    path = tmp_path / "fake.py"
    path.write_text(FAKE)
    command = [sys.executable, str(path), scripts.folder]
    with scripts.peer_process.Peer("fake", command) as peer:
        yield peer


def test_a_peer_answers_and_its_prints_do_not_disturb(peer):
    facts = peer.ask("build", name="fast", speed_up=1)
    assert facts == {"ready_seconds": 1, "error": 0.0}
    assert peer.ask("time", name="fast", calls=3) == {"seconds": 1.0}
    assert peer.ask("growth", name="fast")["bytes"] >= 0
    assert peer.ask("drop") == {}


def test_an_error_comes_back_as_its_first_line(scripts, peer):
    with pytest.raises(scripts.peer_process.PeerError, match=r"it does not fit\.$"):
        peer.ask("build", name="a", speed_up=1, fail=True)
    with pytest.raises(scripts.peer_process.PeerError, match="ask for one of build"):
        peer.ask("dance")
    assert peer.ask("drop") == {}  # It still answers.


def test_a_peer_that_leaves_is_named(scripts, peer):
    with pytest.raises(scripts.peer_process.PeerError, match=r"fake ended with code 3"):
        peer.ask("leave")


def contest(scripts, **wrong):
    entry = scripts.contests.Entry
    return scripts.contests.Contest(
        title="a contest",
        items=16,
        entries=(
            entry("fast", "ours", {"speed_up": 2}),
            entry("slow", "theirs", {"speed_up": 1, **wrong}),
        ),
    )


def test_a_contest_gives_ratios_by_round(scripts, peer, monkeypatch):
    monkeypatch.setattr(scripts.compare_torch, "_TOLERANCE", {})
    monkeypatch.setattr(scripts.compare_torch, "check", lambda *args: None)
    peers = {"ours": peer, "theirs": peer}
    record = scripts.compare_torch.hold(contest(scripts), peers, rounds=3, warmup=1)
    assert record["ratios"] == {"slow": {"median": 2.0, "of_minima": 2.0}}
    assert [row["name"] for row in record["rows"]] == ["fast", "slow"]
    assert [row["items_per_second"] for row in record["rows"]] == [16.0, 8.0]
    assert all(len(row["seconds"]) == 3 for row in record["rows"])
    result = {
        "machine": {
            "processor": "a CPU",
            "device": "cpu",
            "threads": 2,
            "versions": {"jax": "0.10"},
            "commit": "0123456789",
        },
        "peer_versions": {"torch": "2.0"},
        "dtype": "float32",
        "rounds": 3,
        "contests": [record],
        "limits": {"flops": 180e9, "bandwidth": 40e9},
    }
    text = scripts.compare_torch.report(result)
    assert "2.00x (2.00)" in text
    assert "torch 2.0; commit 0123456;" in text
    assert "reach 180 GFLOP/s here, elementwise passes 40 GB/s" in text
    assert "products alone" not in text
    record["rows"][0]["product_flops"] = 90e9
    text = scripts.compare_torch.report(result)
    assert "| products alone, ms |" in text
    assert " 500.0 |" in text


@pytest.mark.parametrize("error", [2e-4, float("nan")])
def test_an_unequal_twin_is_refused(scripts, error):
    entry = scripts.contests.Entry("twin", "torch", {"kind": "inference"})
    with pytest.raises(ValueError, match="it is no fair peer"):
        scripts.compare_torch.check(contest(scripts), entry, {"error": error})
    scripts.compare_torch.check(contest(scripts), entry, {"error": 5e-5})


def test_mixed_precision_is_held_to_what_it_can(scripts):
    entry = scripts.contests.Entry(
        "twin", "torch", {"kind": "train", "dtype": "bfloat16"}
    )
    scripts.compare_torch.check(contest(scripts), entry, {"error": 0.1})
    with pytest.raises(ValueError, match="it is no fair peer"):
        scripts.compare_torch.check(contest(scripts), entry, {"error": 1.0})


@pytest.mark.parametrize(
    ("flags", "titles"),
    [
        (
            ["--what", "timm", "--peers", "convnext_atto"],
            [f"inference, other networks, batch {size}" for size in (1, 16)],
        ),
        (["--models", "lsnet_t"], ["inference, lsnet_t, batch 1"] * 1),
        (
            ["--what", "train", "--models", "convneur_m1"],
            ["train, convneur_m1 without memory, batch 16"],
        ),
        (
            ["--what", "memory", "--tokens", "784"],
            [
                "neural memory, forward, 784 tokens",
                "neural memory, forward and backward, 784 tokens",
            ],
        ),
    ],
)
def test_flags_become_contests(scripts, tmp_path, flags, titles):
    args = scripts.compare_torch.make_parser().parse_args(flags)
    found = scripts.contests.contests(args, tmp_path)
    assert [c.title for c in found][: len(titles)] == titles
    assert all(c.entries[0].peer == "lvb" for c in found)
    kinds = {entry.specification["kind"] for c in found for entry in c.entries}
    assert kinds == ({"inference", "timm"} if args.what == "timm" else {args.what})


def test_peers_come_with_their_allocator_and_with_ours(scripts, tmp_path):
    flags = ["--models", "lsnet_t", "--variants", "eager", "--batch_sizes", "1"]
    parse = scripts.compare_torch.make_parser().parse_args
    args = parse([*flags, "--allocators", "stock,keep"])
    (found,) = scripts.contests.contests(args, tmp_path)
    assert [(entry.name, entry.peer) for entry in found.entries] == [
        ("lvb lsnet_t", "lvb"),
        ("torch twin, eager", "torch"),
        ("torch twin, eager, memory kept", "torch_keep"),
    ]
    (found,) = scripts.contests.contests(parse(flags), tmp_path)
    assert [entry.peer for entry in found.entries] == ["lvb", "torch"]


def test_exported_files_are_checked_at_both_batches(scripts, tmp_path, monkeypatch):
    images = np.arange(8 * 3, dtype=np.float32).reshape(8, 1, 1, 3)
    path = tmp_path / "m.onnx"
    np.savez(tmp_path / "m.onnx.npz", image=images, logits=images[:, 0, 0])
    seen = []

    def run(batch):
        seen.append(len(batch))
        return batch[:, 0, 0] + (5e-5 if len(batch) == 1 else 2e-4)

    check = scripts.check_export
    monkeypatch.setattr(check, "open_file", lambda path: run)
    found = check.errors(path)
    assert seen == [1, 7]
    assert found[1] <= check.TOLERANCE < found[7]


def test_too_few_images_are_named(scripts, tmp_path):
    np.savez(tmp_path / "m.onnx.npz", image=np.zeros((2, 1)), logits=np.zeros((2, 1)))
    with pytest.raises(SystemExit, match="2 images lie beside it; export with 7"):
        scripts.check_export.errors(tmp_path / "m.onnx")
