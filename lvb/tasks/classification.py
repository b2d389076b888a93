"""Image classification: a backbone and a classifier, and what a step does to them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lvb.losses import cross_entropy
from lvb.metrics import accuracy
from lvb.ops import erasing, mixup, preprocess


class ImageClassifier(nn.Module):
    """Logits of images: (B, H, W, 1 or 3) normalised float -> (B, num_classes).

    Parameters and batch statistics lie under `backbone` and `head`, so that another
    task can restore the backbone by name.

    Attributes:
      backbone: module, `backbone(images, train=) -> {"stage1": ..., "stage4": ...}`.
      head: module with `head(features, train=) -> logits`; a distilled head returns
        a pair of logits in training.
    """

    backbone: nn.Module
    head: nn.Module

    def __call__(
        self, images: jax.Array, *, train: bool
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        features = self.backbone(images, train=train)
        return self.head(features["stage4"], train=train)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationTask:
    """What a step needs to know about image classification.

    Attributes:
      model: the classifier.
      num_classes: width of its logits.
      mean: of pixels in [0, 1], per channel.
      std: of pixels in [0, 1], per channel.
      label_smoothing: probability mass spread over all classes.
      mixup_alpha: 0 switches mixup off.
      cutmix_alpha: 0 switches CutMix off.
      mix_prob: of mixing a batch at all.
      switch_prob: of CutMix when both are on.
      mix_groups: parts of the batch with draws of their own.
      erasing_prob: share of images with a random rectangle of noise.
    """

    model: ImageClassifier
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    label_smoothing: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    mix_prob: float = 1.0
    switch_prob: float = 0.5
    mix_groups: int = 1
    erasing_prob: float = 0.0

    def init(self, key: jax.Array, *, image_shape: tuple[int, ...]) -> dict[str, Any]:
        """Makes the model's variables.

        Args:
          key: random key of the parameters.
          image_shape: (H, W, C) of an input.

        Returns:
          {"params": ..., "batch_stats": ...}, the latter empty if there are none.
        """
        images = jnp.zeros((1, *image_shape), jnp.float32)
        variables = self.model.init(key, images, train=False)
        return {"batch_stats": {}, **variables}

    def prepare(
        self, batch: Mapping[str, jax.Array], *, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Normalises, erases and mixes a whole training batch, in this order.

        Args:
          batch: "image", (B, H, W, C) uint8, and "label", (B,) int32.
          key: random key of this step.

        Returns:
          "image", float32; "label" as it came; "target", (B, num_classes) float32.
        """
        erasing_key, mixing_key = jax.random.split(key)
        images = preprocess.normalize(batch["image"], mean=self.mean, std=self.std)
        images = erasing.random_erasing(erasing_key, images, prob=self.erasing_prob)
        targets = cross_entropy.smooth_one_hot(
            batch["label"],
            num_classes=self.num_classes,
            smoothing=self.label_smoothing,
        )
        images, targets = mixup.mixup_or_cutmix(
            mixing_key,
            images,
            targets=targets,
            mixup_alpha=self.mixup_alpha,
            cutmix_alpha=self.cutmix_alpha,
            prob=self.mix_prob,
            switch_prob=self.switch_prob,
            num_groups=self.mix_groups,
        )
        return {"image": images, "label": batch["label"], "target": targets}

    def loss(
        self,
        params: Any,
        batch_stats: Any,
        batch: Mapping[str, jax.Array],
        *,
        rngs: Mapping[str, jax.Array],
    ) -> tuple[jax.Array, tuple[Any, dict[str, accuracy.Mean]]]:
        """The mean loss of a prepared batch, and what comes with it.

        Args:
          params: of the model.
          batch_stats: of the model, before the batch.
          batch: from `prepare`.
          rngs: keys of the model's random layers.

        Returns:
          The loss, a float32 scalar; the new batch statistics; the metrics, where an
          image counts as right if its original label wins, mixed or not.
        """
        outputs, updates = self.model.apply(
            {"params": params, "batch_stats": batch_stats},
            batch["image"],
            train=True,
            rngs=dict(rngs),
            mutable=["batch_stats"],
        )
        heads = outputs if isinstance(outputs, tuple) else (outputs,)
        losses = self.losses(heads, batch)  # (B,)
        metrics = accuracy.classification_metrics(
            sum(heads) / len(heads),
            labels=batch["label"],
            losses=losses,
            mask=jnp.ones_like(batch["label"], bool),
        )
        return losses.mean(), (updates.get("batch_stats", batch_stats), metrics)

    def losses(
        self, heads: Sequence[jax.Array], batch: Mapping[str, jax.Array]
    ) -> jax.Array:
        """One loss per example; both heads of LSNet* learn from the labels here.

        Args:
          heads: logits of one head or two, (B, num_classes) each.
          batch: from `prepare`.

        Returns:
          (B,) float32; with two heads the mean of theirs.
        """
        return sum(
            cross_entropy.soft_cross_entropy(logits, targets=batch["target"])
            for logits in heads
        ) / len(heads)

    def evaluate(
        self, variables: Mapping[str, Any], batch: Mapping[str, jax.Array]
    ) -> dict[str, accuracy.Mean]:
        """The metrics of an evaluation batch; the loss is plain cross entropy.

        Args:
          variables: {"params": ..., "batch_stats": ...}.
          batch: "image", (B, H, W, C) uint8; "label", (B,) int32; "mask", (B,) bool.

        Returns:
          (total, count) pairs over the rows with mask True.
        """
        images = preprocess.normalize(batch["image"], mean=self.mean, std=self.std)
        logits = self.model.apply(dict(variables), images, train=False)
        targets = cross_entropy.smooth_one_hot(
            batch["label"], num_classes=self.num_classes, smoothing=0.0
        )
        return accuracy.classification_metrics(
            logits,
            labels=batch["label"],
            losses=cross_entropy.soft_cross_entropy(logits, targets=targets),
            mask=batch["mask"],
        )
