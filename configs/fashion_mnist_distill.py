r"""A student on Fashion-MNIST with and without a teacher: is distillation worth it?

    python -m lvb.train --config configs/fashion_mnist_distill.py:role=teacher \
        --workdir runs/fashion/teacher --data_dir /data
    python scripts/sweep.py --run --workdir runs/fashion/students --data_dir /data \
        --config configs/fashion_mnist_distill.py:teacher=runs/fashion/teacher

The sweep trains the same two-head student three times without a teacher and three
times with each form of distillation, and compares them seed by seed. The teacher has
seen all 60,000 pictures; the student gets 2,000, and what the teacher says of them.
`/data` holds fashion_mnist/ with the four official files. A few CPU minutes each.

Switches: `role=student` or `role=teacher`; `kind=none`, `soft` or `hard`; `teacher=W`;
`smoke`, a handful of steps. All numbers are ours.
"""

from configs import quickstart
from lvb.config import args, schema

STUDENT_PICTURES = 2000
STUDENT = dict(dims=(16, 16, 32, 48), depths=(0, 1, 1, 1))


def get_config(arg=""):
    """Returns the config; `arg` is what stands behind the colon."""
    arg = args.parse(arg, role="student", kind="none", teacher="W", smoke=False)
    if arg.role not in ("student", "teacher"):
        raise ValueError(f"role={arg.role!r} is unknown; use student or teacher.")
    is_student = arg.role == "student"
    size = STUDENT if is_student else quickstart.SMALL["lsnet"]
    config = schema.classification(**size)
    config.model.update(name="lsnet_t", distilled=is_student)
    config.batch_size = 128
    config.log_every = 50
    config.data.update(
        source=f"fashion_mnist:{STUDENT_PICTURES}" if is_student else "fashion_mnist",
        image_size=32,
        channels=1,
        mean=(0.286,),  # Of the training pictures.
        std=(0.353,),
        crop="shift",
        # The student's pictures are the same in each epoch, so that the teacher is
        # asked once about each.
        shift=0 if is_student else 2,
        flip_prob=0.0 if is_student else 0.5,
        crop_ratio=1.0,
    )
    config.optimizer.update(lr=4e-3, weight_decay=0.05)
    config.schedule.update(
        epochs=30.0 if is_student else 10.0,
        warmup_epochs=2.0 if is_student else 0.2,
        min_lr=1e-5,
    )
    config.eval.every_epochs = 10.0 if is_student else 1.0
    if is_student:
        config.distillation.update(kind=arg.kind, alpha=0.5, tau=3.0, cache=True)
        if arg.kind != "none":
            config.distillation.teacher = arg.teacher
    if arg.smoke:
        config.schedule.update(steps=12, warmup_steps=2)
        config.log_every = 4
    return config


def get_hyper(hyper):
    """Each form of distillation with three seeds."""
    return hyper.product(
        [
            hyper.sweep("kind", ("none", "soft", "hard")),
            hyper.sweep("config.seed", (0, 1, 2)),
        ]
    )
