"""Configs by name, their golden texts, and their training step as shapes."""

import os
import pathlib

import jax

from lvb import assembly
from lvb.config import flags, names
from lvb.training import sharding

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
GOLDEN = ROOT / "tests" / "golden"


def load(name):
    """The config of a file below configs/, such as "lsnet_t.py:smoke"."""
    return flags.load(str(CONFIGS / name))


def golden_path(name):
    """The file of a text: `lsnet_t.py:smoke` -> `lsnet_t__smoke.txt`."""
    stem = name.replace(".py", "").replace(":", "__", 1)
    return GOLDEN / (stem.replace("/", "_").replace(":", "_") + ".txt")


def assert_golden(name):
    """Compares a config with its text, or writes it under LVB_UPDATE_GOLDEN."""
    text = "\n".join(names.lines(load(name).to_dict())) + "\n"
    path = golden_path(name)
    if os.environ.get("LVB_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def assert_step_traces(config):
    """Traces a training step; what comes out has the shapes of what was put in."""
    # With a block of each kind, in the form with the fewest operations; test_counts.py
    # traces the networks as they are. LSNet's LS convolution is in second blocks.
    number = 2 if config.model.name.startswith("lsnet") else 1
    with config.unlocked():
        config.model.update(depths=(number,) * 4, op_form="reference")
    run = assembly.assemble(
        config,
        num_classes=config.model.num_classes or 10,
        num_train=100_000,
        mesh=sharding.make_mesh(),
    )
    key = jax.random.key(0)
    state, _ = jax.eval_shape(
        run.train_step, run.state, run.train_batch, key, run.constants
    )
    shapes = [x.shape for x in jax.tree.leaves(state)]
    assert shapes == [x.shape for x in jax.tree.leaves(run.state)]
