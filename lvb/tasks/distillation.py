"""Image classification with a teacher: LSNet* and any other student."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import jax

from lvb.losses import distillation
from lvb.ops import preprocess
from lvb.tasks import classification

# Under this name a batch may bring the teacher's logits, (B, num_classes), along.
TEACHER_LOGITS = "teacher_logits"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationTask(classification.ClassificationTask):
    """Classification whose student also learns from a teacher.

    The teacher sees the very images the student sees, augmented and mixed (DeiT,
    arXiv:2012.12877, section 4), in its own normalisation. Of two heads the second
    learns from it; a single head learns from labels and teacher (Hinton et al.,
    arXiv:1503.02531). At evaluation, which is the base class's, heads are averaged.

    Attributes:
      teacher: (variables, images) -> logits, (B, H, W, C) -> (B, num_classes).
      teacher_variables: what it is called with; a step that is compiled gets them as
        an argument and calls `bind`, or they would become part of the program.
      teacher_mean: of pixels in [0, 1], per channel.
      teacher_std: of pixels in [0, 1], per channel.
      mode: "hard" or "soft".
      alpha: weight of the teacher, in [0, 1].
      tau: temperature of the soft form.
    """

    teacher: Callable[[Any, jax.Array], jax.Array]
    teacher_variables: Any
    teacher_mean: tuple[float, ...]
    teacher_std: tuple[float, ...]
    mode: str = "hard"
    alpha: float = 0.5
    tau: float = 3.0

    def bind(self, teacher_variables: Any) -> Self:
        """The task with other variables of the teacher, such as traced ones."""
        return dataclasses.replace(self, teacher_variables=teacher_variables)

    def prepare(
        self, batch: Mapping[str, jax.Array], *, key: jax.Array
    ) -> dict[str, jax.Array]:
        """As the base class, keeping logits of the teacher that came along."""
        prepared = super().prepare(batch, key=key)
        if TEACHER_LOGITS in batch:
            prepared[TEACHER_LOGITS] = batch[TEACHER_LOGITS]
        return prepared

    def teacher_logits(self, images: jax.Array) -> jax.Array:
        """The teacher's opinion of images in the student's normalisation.

        Args:
          images: (B, H, W, C), normalised with `mean` and `std`.

        Returns:
          (B, num_classes); no gradient flows through it.
        """
        images = preprocess.renormalize(
            images,
            old=(self.mean, self.std),
            new=(self.teacher_mean, self.teacher_std),
        )
        return jax.lax.stop_gradient(self.teacher(self.teacher_variables, images))

    def losses(
        self, heads: Sequence[jax.Array], batch: Mapping[str, jax.Array]
    ) -> jax.Array:
        """(1 - alpha) label loss + alpha teacher loss of each example, (B,)."""
        if TEACHER_LOGITS in batch:
            teacher_logits = batch[TEACHER_LOGITS]
        else:
            teacher_logits = self.teacher_logits(batch["image"])
        return distillation.distillation_loss(
            heads[0],
            heads[-1],
            targets=batch["target"],
            teacher_logits=teacher_logits,
            mode=self.mode,
            alpha=self.alpha,
            tau=self.tau,
        )
