"""The switches that all configs for ImageNet share."""

IMAGENET = "tfds:imagenet2012"


def apply(config, *, res=224, data=IMAGENET, smoke=False, smoke_depths=(1, 1, 1, 1)):
    """Sets several leaves at once.

    Args:
      config: of a recipe; changed in place.
      res: side of the images in pixels, for training and evaluation.
      data: source of the pictures, see `lvb.data.sources`; its classes are counted
        where it is not ImageNet.
      smoke: a run of a minute or two on a CPU, on generated pictures: it shows that
        everything works, and learns next to nothing.
      smoke_depths: blocks of each stage of a smoke run, all kinds of them; real ones
        take a CPU minutes to compile.

    Returns:
      The config.
    """
    config.data.source = data
    config.data.image_size = res
    config.model.num_classes = 1000 if data == IMAGENET else 0
    if smoke:
        _shrink(config, smoke_depths)
    return config


def _shrink(config, depths):
    with config.unlocked():
        config.model.depths = depths
    config.model.num_classes = 10
    config.batch_size = 16
    config.log_every = 2
    config.data.update(
        source="synthetic", synthetic_length=64, image_size=64, num_workers=0
    )
    config.mixup.num_groups = 1
    config.schedule.update(steps=12, warmup_steps=2, step_mode="step")
    # Without a scaled rate: the paper's is for a batch a hundred times as large.
    config.optimizer.update(lr=1e-3, lr_batch_size=0)
    config.checkpoint.every_steps = 6
