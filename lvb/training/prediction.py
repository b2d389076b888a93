"""Logits of host batches from a model on the mesh, or from anything that computes them.

A predictor takes the batches of `lvb.data.loader.eval_batches` and returns the rows of
all hosts, so that every host counts every image and one of them writes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lvb.ops import preprocess
from lvb.training import compilation, sharding

Batch = Mapping[str, np.ndarray]
Predictor = Callable[[Batch], dict[str, np.ndarray]]

_COUNTED = ("label", "index", "mask")


def model_predictor(
    apply: Callable[..., jax.Array],
    variables: Any,
    *,
    mesh: jax.sharding.Mesh,
    mean: Sequence[float],
    std: Sequence[float],
) -> Predictor:
    """A predictor that runs a model, normalisation included, over all devices.

    Args:
      apply: (variables, images) -> logits, (B, H, W, C) normalised -> (B, classes).
      variables: of the model, on the host.
      mesh: of all devices; the batch must split over it.
      mean: per channel, of pixels in [0, 1].
      std: per channel, of pixels in [0, 1].

    Returns:
      A function of a host batch with "image" (b, H, W, C) or (b, crops, H, W, C) uint8,
      "label", "index" and "mask"; it returns the global rows of the latter three and
      "logits", (B, classes) float32. It is compiled once for each shape of image.
    """
    replicated = sharding.replicated(mesh)
    placed = jax.device_put(variables, replicated)

    def step(variables: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        images = preprocess.normalize(batch["image"], mean=mean, std=std)
        rows = {name: batch[name] for name in _COUNTED if name in batch}
        return {"logits": apply(variables, images).astype("float32"), **rows}

    compiled: dict[tuple[int, ...], Callable[..., Any]] = {}

    def call(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays = sharding.put_batch(batch, mesh, names=tuple(batch))
        shape = arrays["image"].shape
        if shape not in compiled:
            rows = sharding.batch_sharding(mesh)
            compiled[shape] = compilation.compile_step(
                step,
                placed,
                arrays,
                in_shardings=(replicated, rows),
                out_shardings=rows,
            ).call
        return sharding.to_host(compiled[shape](placed, arrays))

    return _over_crops(call)


def host_predictor(
    logits_of: Callable[[np.ndarray], np.ndarray], *, mean: Any, std: Any, dtype: str
) -> Predictor:
    """A predictor around a function of host arrays, such as an exported model.

    Args:
      logits_of: images (B, H, W, C) -> logits (B, classes).
      mean: per channel, of pixels in [0, 1]; unused for uint8.
      std: per channel, of pixels in [0, 1]; unused for uint8.
      dtype: "uint8" when the function normalises, else the type it takes.

    Returns:
      As for `model_predictor`; one process only.

    Raises:
      ValueError: when there are several processes.
    """
    if jax.process_count() > 1:
        raise ValueError(
            f"an exported model runs in one process, not {jax.process_count()}; leave"
            " out --distributed."
        )

    def call(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        images = batch["image"]
        if dtype != "uint8":
            scaled = images.astype(np.float32) / 255
            images = (scaled - np.float32(mean)) / np.float32(std)
            images = images.astype(dtype)
        logits = np.asarray(logits_of(images), np.float32)
        return {"logits": logits} | {name: batch[name] for name in _COUNTED}

    return _over_crops(call)


def _over_crops(call: Callable[..., dict[str, np.ndarray]]) -> Predictor:
    """Averages the probabilities over crops (Krizhevsky et al., 2012, Section 4.1).

    The logarithm of the mean stands in for the logits.
    """

    def predict(batch: Batch) -> dict[str, np.ndarray]:
        batch = dict(batch)
        batch["index"] = batch["index"].astype(np.int32)  # JAX has no int64 here.
        images = batch["image"]
        if images.ndim == 4:
            return call(batch)
        outputs = [
            call({**batch, "image": images[:, k]}) for k in range(images.shape[1])
        ]
        probabilities = np.mean(
            [_softmax(output["logits"]) for output in outputs], axis=0
        )
        tiny = np.finfo(np.float64).tiny  # Keeps the logarithm finite.
        logits = np.log(np.maximum(probabilities, tiny))
        return {**outputs[0], "logits": logits}

    return predict


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def agree(decision: bool) -> bool:
    """What the first host decided, on every host."""
    if jax.process_count() == 1:
        return decision
    # Here, because the module starts a backend when it is imported.
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.array(decision)))
