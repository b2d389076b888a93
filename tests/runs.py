"""Runs small enough for tests: a few steps on generated pictures or real digits."""

import pathlib

import flax.linen as nn
import jax

from lvb.config import flags

ROOT = pathlib.Path(__file__).resolve().parent.parent
QUICKSTART = ROOT / "configs" / "quickstart.py"

# Leaves of configs/quickstart.py that make it a matter of seconds.
TINY = {
    "batch_size": 16,
    "log_every": 4,
    "model.dims": (16, 16, 16, 16),
    "model.depths": (0, 0, 0, 1),
    "model.drop_path_rate": 0.1,
    "data.source": "synthetic",
    "data.synthetic_length": 96,
    "mixup.mixup_alpha": 0.8,
    "ema.decay": 0.9,
    "schedule.steps": 24,
    "schedule.warmup_steps": 4,
    "eval.every_epochs": 2.0,
    "checkpoint.every_steps": 4,
}


def tiny_config(**changes):
    """The quick start with `TINY` and then `changes`, both by dotted name."""
    config = flags.load(str(QUICKSTART))
    config.update_from_flattened_dict({**TINY, **changes})
    return config


def tiny_arguments(workdir, **changes):
    """The same as a command line."""
    leaves = {**TINY, **changes}
    return [
        f"--config={QUICKSTART}",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in leaves.items()),
    ]


class MicroNet(nn.Module):
    """A network with all a trainer must handle, compiled in a second or two.

    Batch statistics, a random stream, decayed and undecayed parameters.
    """

    num_classes: int
    rate: float = 0.1

    @nn.compact
    def __call__(self, images, *, train):
        # No bias: its gradient is rounding noise behind a batch norm, which AdamW would
        # scale up to full steps.
        x = nn.Conv(8, (4, 4), strides=4, padding="VALID", use_bias=False, name="conv")(
            images
        )
        x = nn.BatchNorm(not train, momentum=0.9, name="norm")(x)
        x = nn.relu(x)
        keep = 1.0 - self.rate
        if train:
            shape = (x.shape[0], 1, 1, 1)
            x = x * jax.random.bernoulli(self.make_rng("drop_path"), keep, shape) / keep
        return nn.Dense(self.num_classes, name="classifier")(x.mean(axis=(1, 2)))


def use_micro_net(monkeypatch):
    """Makes `lvb.create_model` return a MicroNet, whatever the name."""

    def create_model(name, *, num_classes, drop_path_rate=0.0, **options):
        del name, options
        return MicroNet(num_classes, rate=drop_path_rate)

    monkeypatch.setattr("lvb.create_model", create_model)
