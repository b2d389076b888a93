"""Image classification: a backbone and a classifier."""

import flax.linen as nn
import jax


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
