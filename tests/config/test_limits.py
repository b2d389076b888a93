"""Ranges of config leaves: every config of ours is inside, slips are told."""

import pathlib

import pytest

from lvb.config import flags, limits

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda p: p.stem)
@pytest.mark.parametrize("arg", ["", ":smoke"])
def test_every_config_is_inside(path, arg):
    if arg and path.stem in ("quickstart", "fashion_mnist_distill"):
        arg = ""  # Small as they are.
    limits.check(flags.load(f"{path}{arg}").to_dict())


def test_every_range_is_of_a_leaf_some_config_has():
    known = flags.load(str(CONFIGS / "finetune_folder.py")).to_dict()
    quick = flags.load(str(CONFIGS / "quickstart.py")).to_dict()
    missing = [
        name
        for name in limits.LIMITS
        if not any(_has(config, name.split(".")) for config in (known, quick))
    ]
    assert missing == []


def _has(config, path):
    for part in path:
        if part not in config:
            return False
        config = config[part]
    return True


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("batch_size", 2**30),
        ("seed", -1),
        ("model.depths", (0, 1, 1, 10**6)),
        ("model.dims", (16, 16, 16, 10**9)),
        ("model.drop_path_rate", 1.0),
        ("data.mean", (0.5, 0.5, 2.0)),
        ("data.image_size", 31),
        ("ema.decay", 1.0),
        ("optimizer.lr", float("nan")),
        ("optimizer.lr", -1e-3),
        ("loss.label_smoothing", float("inf")),
        ("schedule.steps", 2**40),
    ],
)
def test_a_slip_is_told_with_its_range(name, value):
    config = flags.load(str(CONFIGS / "quickstart.py"))
    config.update_from_flattened_dict({name: value})
    with pytest.raises(ValueError, match=rf"--config\.{name}=.* is out of range; use "):
        limits.check(config.to_dict())


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("data.mean", ("a",), "numbers"),
        ("data.std", (None,), "numbers"),
        ("data.area", (True, True), "numbers"),
        ("data.ratio", ((1, 2), 2), "numbers"),
        ("schedule.milestones", (..., 1j), "numbers"),
        ("model.dims", (16.0, 16.0, 16.0, 16.0), "whole numbers"),
        ("model.depths", ("1", "1", "1", "1"), "whole numbers"),
        ("sharding.whole", (1,), "names"),
    ],
)
def test_a_tuple_of_something_else_is_told(name, value, words):
    config = flags.load(str(CONFIGS / "quickstart.py"))
    config.update_from_flattened_dict({name: value})
    with pytest.raises(ValueError, match=rf"{name}=.* something else than {words}"):
        limits.check(config.to_dict())


def test_pairs_and_negative_logits_of_a_network_are_fine():
    limits.check(
        {
            "model": {
                "tau_spans": ((0.1, 1), (1, 2)),
                "decay_bias": -3.0,
                "ffn_ratio": (),
            }
        }
    )
    with pytest.raises(ValueError, match=r"tau_spans=.* holds something else"):
        limits.check({"model": {"tau_spans": ((0.1, "1"),)}})
