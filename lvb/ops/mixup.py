"""Mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899) of a mirrored batch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Box(NamedTuple):
    """Half-open pixel box [top, bottom) x [left, right); scalars or arrays."""

    top: jax.Array
    bottom: jax.Array
    left: jax.Array
    right: jax.Array


def cutmix_box(key: jax.Array, lam: jax.Array, *, height: int, width: int) -> Box:
    """Draws the box that CutMix takes from the partner image.

    The box has sides sqrt(1 - lam) of the image's, rounded down to an even number of
    pixels, and a centre uniform over the image; what hangs over the border is clipped.

    Args:
      key: random key.
      lam: wanted share of the first image, a scalar in [0, 1].
      height: image height, pixels.
      width: image width, pixels.

    Returns:
      The clipped box.
    """
    row_key, column_key = jax.random.split(key)
    side = jnp.sqrt(1.0 - lam)
    half_height = jnp.floor(side * height).astype(jnp.int32) // 2
    half_width = jnp.floor(side * width).astype(jnp.int32) // 2
    row = jax.random.randint(row_key, (), 0, height)
    column = jax.random.randint(column_key, (), 0, width)
    return Box(
        top=jnp.maximum(row - half_height, 0),
        bottom=jnp.minimum(row + half_height, height),
        left=jnp.maximum(column - half_width, 0),
        right=jnp.minimum(column + half_width, width),
    )


def box_mask(box: Box, *, height: int, width: int) -> jax.Array:
    """Returns a bool mask, (height, width), True inside the box."""
    rows = jnp.arange(height)
    columns = jnp.arange(width)
    in_rows = (rows >= box.top) & (rows < box.bottom)
    in_columns = (columns >= box.left) & (columns < box.right)
    return in_rows[:, None] & in_columns[None, :]


def mixing_weights(
    key: jax.Array,
    *,
    height: int,
    width: int,
    mixup_alpha: float,
    cutmix_alpha: float,
    prob: float = 1.0,
    switch_prob: float = 0.5,
) -> tuple[jax.Array, jax.Array]:
    """Draws the share of the first image per pixel, and over the image.

    Args:
      key: random key.
      height: image height, pixels.
      width: image width, pixels.
      mixup_alpha: lambda ~ Beta(alpha, alpha) of mixup; 0 switches mixup off.
      cutmix_alpha: the same of CutMix; 0 switches CutMix off.
      prob: probability of mixing at all.
      switch_prob: probability of CutMix when both are on.

    Returns:
      Pixel weights, (height, width), float32: lambda everywhere for mixup; 0 inside
      the box and 1 outside for CutMix. And lambda, a float32 scalar: for CutMix the
      share of pixels left over after clipping the box, hence exact.
    """
    mix_key, switch_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 5)
    if mixup_alpha > 0 and cutmix_alpha > 0:
        use_cutmix = jax.random.uniform(switch_key) < switch_prob
    else:
        use_cutmix = jnp.asarray(cutmix_alpha > 0)
    # An alpha of 0 is replaced by any valid number: its draw is never selected.
    mixup_lam = jax.random.beta(mixup_key, mixup_alpha or 1.0, mixup_alpha or 1.0)
    cutmix_lam = jax.random.beta(cutmix_key, cutmix_alpha or 1.0, cutmix_alpha or 1.0)
    box = cutmix_box(box_key, cutmix_lam, height=height, width=width)
    inside = box_mask(box, height=height, width=width)
    area = (box.bottom - box.top) * (box.right - box.left)
    cutmix_lam = 1.0 - area / (height * width)
    weights = jnp.where(use_cutmix, jnp.where(inside, 0.0, 1.0), mixup_lam)
    lam = jnp.where(use_cutmix, cutmix_lam, mixup_lam)
    mix = jax.random.uniform(mix_key) < prob
    return jnp.where(mix, weights, 1.0), jnp.where(mix, lam, 1.0)


def mixup_or_cutmix(
    key: jax.Array,
    images: jax.Array,
    *,
    targets: jax.Array,
    mixup_alpha: float,
    cutmix_alpha: float,
    prob: float = 1.0,
    switch_prob: float = 0.5,
    num_groups: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """Mixes each image, and its target, with the one at the mirrored batch position.

        image  <- w * image + (1 - w) * partner,  w from `mixing_weights`
        target <- lambda * target + (1 - lambda) * partner's target

    Args:
      key: random key of this step.
      images: float images, (B, H, W, C), normalised or not.
      targets: soft targets, (B, num_classes).
      mixup_alpha: see `mixing_weights`; 0.8 in the DeiT and LSNet recipes.
      cutmix_alpha: see `mixing_weights`; 1.0 in the DeiT and LSNet recipes.
      prob: probability of mixing at all.
      switch_prob: probability of CutMix when both are on.
      num_groups: consecutive parts of the batch that draw their own lambda and are
        mirrored within themselves. The papers mix per GPU: LSNet's batch of 2048 is 8
        groups of 256. A multiple of the device count keeps the mirror on the device.

    Returns:
      Mixed images, the type of `images`, and targets, float32, rows summing to 1.

    Raises:
      ValueError: for integer images, or a batch to mix that the groups do not divide.
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"mixup_or_cutmix: images are {images.dtype}; normalise them first."
        )
    if prob <= 0 or (mixup_alpha <= 0 and cutmix_alpha <= 0):
        return images, targets.astype(jnp.float32)
    batch_size, height, width, channels = images.shape
    if num_groups < 1 or batch_size % num_groups:
        raise ValueError(
            f"mixup_or_cutmix: a batch of {batch_size} does not split into "
            f"num_groups={num_groups} equal groups; use a divisor of the batch."
        )

    def mix_group(
        key: jax.Array, images: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        weights, lam = mixing_weights(
            key,
            height=height,
            width=width,
            mixup_alpha=mixup_alpha,
            cutmix_alpha=cutmix_alpha,
            prob=prob,
            switch_prob=switch_prob,
        )
        weights = weights[None, :, :, None]  # (1, H, W, 1)
        # In float32 also for bfloat16 images, so that pixels and targets share lambda.
        x = images.astype(jnp.float32)
        mixed = weights * x + (1.0 - weights) * x[::-1]
        targets = targets.astype(jnp.float32)
        return mixed.astype(images.dtype), lam * targets + (1.0 - lam) * targets[::-1]

    groups = (num_groups, batch_size // num_groups)
    mixed, mixed_targets = jax.vmap(mix_group)(
        jax.random.split(key, num_groups),
        images.reshape(*groups, height, width, channels),  # (G, B/G, H, W, C)
        targets.reshape(*groups, -1),  # (G, B/G, num_classes)
    )
    return mixed.reshape(images.shape), mixed_targets.reshape(targets.shape)
