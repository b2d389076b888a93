r"""Fine-tunes a checkpoint on your own pictures, one folder per class.

    python -m lvb.train --workdir runs/mine \
        --config configs/finetune_folder.py:data=folder:/pictures,checkpoint=W
    python -m lvb.predict new.jpg --checkpoint runs/mine

The checkpoint is a workdir, one of its checkpoints, or a converted one; it decides the
network, with one head or two. The head is drawn anew for the classes of the folders,
whose names are saved with the weights. At the end the run says which classes are taken
for which.

Switches: `data=folder:/path` (with train/ and val/ inside, or split by a seed),
`checkpoint=W`, `res=160`, `freeze=backbone` or `freeze=stem+stage2`, and `smoke`, which
starts from nothing, on digits. `--config.init.weights=none` takes the network and not
its weights: the comparison that shows what the checkpoint is worth.

All numbers are ours; 64 pictures per step and 20 epochs suit hundreds to thousands of
pictures on one GPU.
"""

from configs import quickstart
from lvb.config import args, schema


def get_config(arg=""):
    """Returns the config; `arg` is what stands behind the colon."""
    arg = args.parse(
        arg, data="folder:pictures", checkpoint="W", res=224, freeze="none", smoke=False
    )
    config = schema.classification(frozen_batch_norm=False)
    config.batch_size = 64
    config.log_every = 10
    config.init.update(checkpoint=arg.checkpoint, reset_head=True)
    config.data.update(
        source=arg.data,
        image_size=arg.res,
        area=(0.35, 1.0),  # Milder than ImageNet's: few pictures, few epochs.
        num_workers=2,
    )
    config.loss.label_smoothing = 0.1
    config.optimizer.update(lr=1e-3, weight_decay=0.05, layer_rates="backbone=0.1")
    config.schedule.update(epochs=20.0, warmup_epochs=1.0, min_lr=1e-6)
    config.eval.confusion = True
    if arg.freeze != "none":
        _freeze(config, arg.freeze.split("+"))
    if arg.smoke:
        _shrink(config)
    return config


def _freeze(config, names):
    """Keeps parts of the backbone as they are; all of it with its batch statistics."""
    paths = ["backbone" if n == "backbone" else f"backbone/{n}" for n in names]
    # The longest path decides, so that the rest of the backbone keeps its rate.
    rates = {"backbone": "0.1", **{path: "0" for path in paths}}
    config.optimizer.layer_rates = ",".join(f"{p}={r}" for p, r in rates.items())
    config.model.frozen_batch_norm = "backbone" in paths


def _shrink(config):
    small = quickstart.get_config("model=lsnet_t")
    config.model.update(name="lsnet_t")
    with config.unlocked():
        config.model.update(quickstart.SMALL["lsnet"])
    config.init.update(checkpoint="", reset_head=False)
    config.data = small.data
    config.schedule.update(epochs=2.0)
