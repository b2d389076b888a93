"""Distillation of a two-head student: DeiT (arXiv:2012.12877), Eqs. (2) and (3).

The class head learns from the labels and the distillation head from the teacher, which
sees the same augmented and mixed images. LSNet's distilled models use the hard form
with alpha = 0.5; evaluation averages the logits of both heads.
"""

import jax
import jax.numpy as jnp
import optax

from lvb.losses import cross_entropy

MODES = ("hard", "soft")


def hard_distillation(
    distill_logits: jax.Array, *, teacher_logits: jax.Array
) -> jax.Array:
    """Cross entropy with the teacher's decision, DeiT Eq. (3): CE(y, argmax z_t).

    Args:
      distill_logits: the distillation head's logits, (B, num_classes).
      teacher_logits: (B, num_classes); no gradient flows into them.

    Returns:
      One loss per example, (B,), float32.
    """
    decision = jnp.argmax(teacher_logits, axis=-1)  # (B,)
    return optax.softmax_cross_entropy_with_integer_labels(
        distill_logits.astype(jnp.float32), decision
    )


def soft_distillation(
    distill_logits: jax.Array, *, teacher_logits: jax.Array, tau: float
) -> jax.Array:
    """Divergence from the teacher's softened outputs, DeiT Eq. (2).

        tau^2 KL(softmax(z_t / tau) || softmax(z_s / tau))

    DeiT's released code also divides by the number of classes; the equation, and
    Hinton et al. (arXiv:1503.02531), which it follows, do not, nor does this.

    Args:
      distill_logits: the distillation head's logits z_s, (B, num_classes).
      teacher_logits: z_t, (B, num_classes); no gradient flows into them.
      tau: temperature, positive.

    Returns:
      One loss per example, (B,), float32.
    """
    if tau <= 0:
        raise ValueError(f"soft_distillation: tau={tau} is not positive; DeiT uses 3.")
    teacher = jax.lax.stop_gradient(teacher_logits.astype(jnp.float32))
    student_log = jax.nn.log_softmax(distill_logits.astype(jnp.float32) / tau)
    teacher_log = jax.nn.log_softmax(teacher / tau)
    divergence = jnp.sum(jnp.exp(teacher_log) * (teacher_log - student_log), axis=-1)
    return tau**2 * divergence


def distillation_loss(
    logits: jax.Array,
    distill_logits: jax.Array,
    *,
    targets: jax.Array,
    teacher_logits: jax.Array,
    mode: str = "hard",
    alpha: float = 0.5,
    tau: float = 3.0,
) -> jax.Array:
    """Weighs label loss and teacher loss: (1 - alpha) CE + alpha distillation.

    Args:
      logits: the class head's logits, (B, num_classes).
      distill_logits: the distillation head's logits, (B, num_classes).
      targets: soft label targets, (B, num_classes).
      teacher_logits: (B, num_classes); no gradient flows into them.
      mode: "hard" or "soft".
      alpha: weight of the teacher, in [0, 1]; 0.5 in DeiT and LSNet.
      tau: temperature of the soft form; the hard form has none.

    Returns:
      One loss per example, (B,), float32.
    """
    if mode not in MODES:
        raise ValueError(
            f"distillation_loss: mode={mode!r} is unknown; use hard or soft."
        )
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"distillation_loss: alpha={alpha} is outside [0, 1].")
    if teacher_logits.shape != distill_logits.shape:
        raise ValueError(
            f"distillation_loss: teacher logits {teacher_logits.shape} and student "
            f"logits {distill_logits.shape} differ; both need the same classes."
        )
    label_loss = cross_entropy.soft_cross_entropy(logits, targets=targets)
    if mode == "hard":
        teacher_loss = hard_distillation(distill_logits, teacher_logits=teacher_logits)
    else:
        teacher_loss = soft_distillation(
            distill_logits, teacher_logits=teacher_logits, tau=tau
        )
    return (1.0 - alpha) * label_loss + alpha * teacher_loss
