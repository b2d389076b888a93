r"""A small network on real handwritten digits: a first run, in minutes on a CPU.

    python -m lvb.train --config configs/quickstart.py --workdir runs/quickstart
    python -m lvb.train --config configs/quickstart.py:model=convneur_m1 \
        --workdir runs/quickstart_convneur

Any model of `lvb.list_models()` can be named; each is made small for pictures of 32 px.
The digits are scikit-learn's: 1,437 to learn from, 360 held out.
"""

from lvb.config import args, schema

# Ours: widths and depths that two CPU cores train in a minute or two.
SMALL = {
    "lsnet": dict(dims=(32, 64, 96, 128), depths=(0, 1, 2, 2)),
    "convneur": dict(dims=(16, 32, 48, 64), depths=(1, 1, 2, 1), memory_width=16),
    "fvnet": dict(dims=(16, 32, 64, 128), depths=(1, 1, 2, 1)),
    "fmvit": dict(
        stem_dim=16,
        stage1_dim=16,
        embed_dims=(16, 32, 48),
        attention_dims=(32, 64, 64),
        frequency_dims=(8, 16, 16),
        depths=(1, 1, 1, 1),
    ),
}


def get_config(arg=""):
    """Returns the config; `arg` is what stands behind the colon."""
    arg = args.parse(arg, model="lsnet_t")
    config = schema.classification(**SMALL.get(arg.model.split("_")[0], {}))
    config.model.name = arg.model
    config.batch_size = 64
    config.log_every = 22
    config.data.update(
        source="digits",
        image_size=32,
        channels=1,
        mean=(0.3,),  # About the digits' own.
        std=(0.4,),
        crop="shift",
        shift=3,  # Pixels; the digits are centred, and a shift is the only variety.
        flip_prob=0.0,  # A mirrored digit is another or none.
        crop_ratio=1.0,
    )
    config.loss.label_smoothing = 0.1
    config.optimizer.update(lr=4e-3, weight_decay=0.05)
    config.schedule.update(epochs=20, warmup_epochs=2, min_lr=1e-5)
    config.eval.every_epochs = 5
    config.checkpoint.every_steps = 110
    return config
