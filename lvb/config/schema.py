"""Every leaf of a classification config, its type, its unit and a neutral default.

A recipe starts here and sets what its paper states. The type of a default is the type
of the leaf: an override of another type is refused.
"""

from typing import Any

from ml_collections import config_dict

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # Of RGB in [0, 1].
IMAGENET_STD = (0.229, 0.224, 0.225)


def classification(**model_options: Any) -> config_dict.ConfigDict:
    """Returns a config with every leaf of a classification run.

    Args:
      **model_options: fields of the family's backbone that become leaves of
        `config.model`, with their defaults.

    Returns:
      The config, locked: setting an unknown name raises an error.
    """
    config = config_dict.ConfigDict()
    config.seed = 0
    config.batch_size = 128  # Images per step, over all devices and micro-batches.
    config.grad_accum = 1  # Micro-batches per step; each has its own batch statistics.
    config.log_every = 50  # Steps between log lines.
    config.log_health = True  # With them FVNet's and ConvNeur's inner dynamics.
    config.compilation_cache = "default"  # A folder; "default" is the user's; "" none.
    config.model = _model(**model_options)
    config.data = _data()
    config.mixup = _mixup()
    config.erasing = config_dict.create(prob=0.0)  # Random erasing, share of images.
    config.loss = config_dict.create(label_smoothing=0.0)
    config.distillation = _distillation()
    config.optimizer = _optimizer()
    config.schedule = _schedule()
    config.ema = config_dict.create(
        decay=0.0,  # 0 keeps no average.
        warmup=True,  # Ramp the decay up; without, the start values linger.
        recalibrate_batches=0,  # Measure the averages' batch statistics on so many.
    )
    config.eval = config_dict.create(
        every_epochs=1.0,
        batch_size=0,  # 0 is that of training.
        use_ema=False,  # Evaluate the averages instead of the raw weights.
        confusion=False,  # Say at the end which classes are taken for which.
    )
    config.checkpoint = config_dict.create(
        every_steps=0,  # 0 is once per epoch.
        keep_last=2,
        keep_every=0,  # Also keep every checkpoint at a multiple of this step; 0 none.
        keep_best=True,  # Also keep the one with the best top-1.
    )
    config.init = _init()
    config.sharding = _sharding()
    return config.lock()


def _model(**options: Any) -> config_dict.ConfigDict:
    return config_dict.create(
        name="",  # One of lvb.list_models(); the other leaves are its options.
        num_classes=0,  # 0 is as many as the data set has.
        distilled=False,  # The second head of LSNet*.
        dtype="float32",  # Of convolutions and matrix products; or "bfloat16".
        op_form="auto",  # How an operator is computed; see `lvb.ops.forms`.
        drop_path_rate=0.0,
        remat=False,  # Recompute each stage in the backward pass to save memory.
        **options,
    )


def _data() -> config_dict.ConfigDict:
    return config_dict.create(
        source="",  # "digits", "synthetic", "folder:/path", "tfds:name[:version]".
        synthetic_length=512,  # Examples of "synthetic", in each split.
        in_memory=False,  # Decode everything at the start and keep the pixels.
        image_size=224,  # Pixels.
        channels=3,  # 3 or 1.
        mean=IMAGENET_MEAN,  # Of pixels in [0, 1], per channel.
        std=IMAGENET_STD,
        crop="resized",  # RandomResizedCrop; or "shift", for small pictures.
        area=(0.08, 1.0),  # Of "resized", share of the picture.
        ratio=(3 / 4, 4 / 3),  # Of "resized", width / height.
        shift=0,  # Of "shift", pixels.
        flip_prob=0.5,
        augment="none",  # Host policy, such as "rand-m9-mstd0.5-inc1".
        interpolation="bicubic",
        crop_ratio=0.875,  # Evaluation: 224 / 256 of the short side is kept.
        repeats=1,  # Repeated augmentation: copies of a picture in one epoch.
        num_workers=0,  # Decoding processes; 0 decodes in threads of the trainer.
        max_broken=0.01,  # Share of unreadable pictures that ends the run.
    )


def _mixup() -> config_dict.ConfigDict:
    return config_dict.create(
        mixup_alpha=0.0,  # 0 switches mixup off.
        cutmix_alpha=0.0,  # 0 switches CutMix off.
        prob=1.0,  # Of mixing a batch at all.
        switch_prob=0.5,  # Of CutMix when both are on.
        num_groups=1,  # Parts of the batch with draws of their own.
    )


def _distillation() -> config_dict.ConfigDict:
    return config_dict.create(
        kind="none",  # "hard", the teacher's decision; "soft", its probabilities.
        teacher="",  # A workdir or checkpoint of lvb; a .stablehlo or .onnx file.
        alpha=0.5,  # Weight of the teacher against the labels, in [0, 1].
        tau=3.0,  # Temperature of "soft".
        cache=False,  # Ask once per picture; only if every epoch sees it the same.
    )


def _init() -> config_dict.ConfigDict:
    return config_dict.create(
        checkpoint="",  # A workdir or checkpoint to start from; "" is the seed.
        # "raw", "ema", "auto": those that its run evaluates; "none": only the network.
        weights="auto",
        reset_head=False,  # A new linear layer, for other classes.
        check_inputs=True,  # Refuse another mean, std or number of channels.
    )


def _sharding() -> config_dict.ConfigDict:
    return config_dict.create(
        model_axis=1,  # Devices that split each large array; 1 gives all a copy.
        min_elements=2**14,  # Smaller arrays stay whole.
        whole=(),  # Names that stay whole, such as "head" or "stage1/block0".
    )


def _optimizer() -> config_dict.ConfigDict:
    return config_dict.create(
        name="adamw",
        lr=1e-3,  # Peak learning rate for a batch of `lr_batch_size`.
        lr_batch_size=0,  # lr scales as batch_size / lr_batch_size; 0 does not scale.
        weight_decay=0.0,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        momentum=0.9,  # Of "sgd".
        clip_mode="none",  # "agc", "global_norm" or "none".
        clip=0.0,
        no_decay=(),  # Names without decay, besides vectors and the family's own.
        layer_rates="",  # Path=rate multiplier, "backbone=0.1,backbone/stem=0".
    )


def _schedule() -> config_dict.ConfigDict:
    return config_dict.create(
        kind="cosine",  # "cosine", "poly" or "multi_step".
        epochs=300.0,
        steps=0,  # Length in steps; 0 is that of `epochs`.
        warmup_epochs=0.0,
        warmup_steps=0,  # Length in steps; 0 is that of `warmup_epochs`.
        warmup_init_lr=0.0,
        min_lr=0.0,
        step_mode="step",  # "step", or "epoch_lagged" as LSNet's released code.
        decay_from="start",  # "start" or "warmup_end".
        power=0.9,  # Of "poly".
        milestones=(),  # Epochs of "multi_step".
        factor=0.1,  # Of "multi_step".
    )
