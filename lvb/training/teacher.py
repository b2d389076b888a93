"""Teachers for distillation, as functions that can be traced into a training step.

A checkpoint of lvb and an exported StableHLO file run on the devices. An ONNX file
runs in onnxruntime on the hosts: images leave the device and logits come back, while
the step waits. That is right for a teacher that exists in no other form and slow on an
accelerator; a network that can be had in JAX is better exported by `lvb.export`.
"""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from lvb.training import exported


class Teacher(NamedTuple):
    """A classifier to learn from.

    Attributes:
      name: for messages.
      logits_of: (variables, images) -> logits, traceable; (B, H, W, C) normalised
        float32 -> (B, num_classes).
      variables: its arrays, on the host; a file that holds its own has none.
      num_classes: number of logits.
      class_names: of the logits, in order; empty when nobody noted them.
      image_shape: (H, W, C) that it learnt from.
      any_size: whether it takes other sizes.
      mean: of pixels in [0, 1], per channel; None when nobody noted it.
      std: of pixels in [0, 1], per channel; None when nobody noted it.
    """

    name: str
    logits_of: Callable[[Any, jax.Array], jax.Array]
    variables: Any
    num_classes: int
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    any_size: bool
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def check(
        self, *, image_shape: tuple[int, int, int], class_names: tuple[str, ...]
    ) -> str:
        """Whether it can teach on these images and classes.

        Args:
          image_shape: (H, W, C) of the student's images.
          class_names: of the data.

        Returns:
          What is worth knowing, such as another image size, or "".

        Raises:
          ValueError: if channels, a fixed size or the classes do not fit.
        """
        size, own = image_shape[:2], self.image_shape[:2]
        if image_shape[2] != self.image_shape[2] or (size != own and not self.any_size):
            raise ValueError(
                f"the teacher {self.name} takes images of "
                f"{_times(self.image_shape)}, the student gets {_times(image_shape)}; "
                "set --config.data.image_size and data.channels to the teacher's, or "
                "take another one."
            )
        if self.num_classes != len(class_names):
            raise ValueError(
                f"the teacher {self.name} knows {self.num_classes} classes and the "
                f"data has {len(class_names)}; a teacher has learnt the same classes."
            )
        if self.class_names and self.class_names != class_names:
            if set(self.class_names) == set(class_names):
                raise ValueError(
                    f"the teacher {self.name} has the data's classes in another order; "
                    "its logits would teach the wrong ones."
                )
            return (
                f"its classes have other names than the data's, for example "
                f"{self.class_names[0]!r} for {class_names[0]!r}"
            )
        if size != own:
            return f"it learnt from images of {_times(self.image_shape)}"
        return ""


def open_file(path: str | pathlib.Path, *, mesh: Mesh) -> Teacher:
    """Opens an exported classifier as a teacher.

    Args:
      path: a .stablehlo or .onnx file, see `lvb.training.exported`.
      mesh: of all devices; each one's rows pass through an ONNX file by themselves.

    Raises:
      ValueError: if the file does not fit, or normalises pixels itself: the teacher
        sees images that are mixed, not pixels.
    """
    path = pathlib.Path(path)
    model = exported.open_exported(path)
    if model.dtype == "uint8":
        raise ValueError(
            f"{path} takes pixels, and mixed images are none; export the teacher with "
            "--input float32."
        )
    shape = (model.batch_size or 1, *model.image_shape)
    num_classes = model.logits_of(np.zeros(shape, model.dtype)).shape[-1]
    call = _stablehlo_call(path) if path.suffix == ".stablehlo" else None

    def logits_of(variables: Any, images: jax.Array) -> jax.Array:
        del variables
        images = images.astype(model.dtype)
        if call is not None:
            _check_batch(path, model.batch_size, images.shape[0])
            return call(images).astype(jnp.float32)
        return _host_logits(images, model=model, num_classes=num_classes, mesh=mesh)

    preprocessing = model.certificate.get("preprocessing", {})
    return Teacher(
        name=path.name,
        logits_of=logits_of,
        variables={},
        num_classes=num_classes,
        class_names=tuple(model.certificate.get("class_names", ())),
        image_shape=model.image_shape,
        any_size=False,
        mean=_optional_tuple(preprocessing.get("mean")),
        std=_optional_tuple(preprocessing.get("std")),
    )


def _stablehlo_call(path: pathlib.Path) -> Callable[[jax.Array], jax.Array]:
    """The file's function of images, channels last."""
    from jax import export

    function = export.deserialize(bytearray(path.read_bytes()))
    shape = function.in_avals[0].shape
    channels_first = shape[1] in (1, 3) and shape[3] not in (1, 3)

    def call(images: jax.Array) -> jax.Array:
        if channels_first:
            images = jnp.transpose(images, (0, 3, 1, 2))
        return jax.tree.leaves(function.call(images))[0]

    return call


def _host_logits(
    images: jax.Array, *, model: exported.ExportedModel, num_classes: int, mesh: Mesh
) -> jax.Array:
    """Calls a function of host arrays; every device sends its own rows."""

    def on_host(images: np.ndarray) -> np.ndarray:
        return np.asarray(model.logits_of(np.asarray(images)), np.float32)

    def rows(images: jax.Array) -> jax.Array:
        _check_batch(model.digest[:12], model.batch_size, images.shape[0])
        out = jax.ShapeDtypeStruct((images.shape[0], num_classes), jnp.float32)
        return jax.pure_callback(on_host, out, images)

    split = PartitionSpec(mesh.axis_names)
    return jax.shard_map(rows, mesh=mesh, in_specs=split, out_specs=split)(images)


def _check_batch(name: object, batch_size: int | None, rows: int) -> None:
    if batch_size not in (None, rows):
        raise ValueError(
            f"the teacher {name} takes batches of {batch_size} only, and gets {rows}; "
            "export it with a free batch."
        )


def _optional_tuple(values: Any) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
