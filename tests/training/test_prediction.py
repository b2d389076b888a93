"""Predictors: the rows of a batch, on one device and on eight, over crops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lvb.training import prediction, sharding

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
WEIGHTS = {"kernel": np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)}


def apply(variables, images):
    return images.mean(axis=(1, 2)) @ variables["kernel"]


def a_batch(rows=8, crops=None, seed=0):
    rng = np.random.default_rng(seed)
    shape = (rows, 6, 6, 3) if crops is None else (rows, crops, 6, 6, 3)
    return {
        "image": rng.integers(0, 256, shape, np.uint8),
        "label": rng.integers(5, size=rows).astype(np.int32),
        "index": np.arange(rows, dtype=np.int64),
        "mask": np.arange(rows) < rows - 2,
    }


def model(devices=None):
    mesh = sharding.make_mesh(devices)
    return prediction.model_predictor(apply, WEIGHTS, mesh=mesh, mean=MEAN, std=STD)


def expected(images):
    x = (images / 255 - np.array(MEAN)) / np.array(STD)
    return x.mean(axis=(-3, -2)) @ WEIGHTS["kernel"]


def test_logits_and_rows():
    batch = a_batch()
    rows = model()(batch)
    np.testing.assert_allclose(rows["logits"], expected(batch["image"]), atol=1e-5)
    for name in ("label", "index", "mask"):
        np.testing.assert_array_equal(rows[name], batch[name])


def test_one_and_eight_devices_agree():
    batch = a_batch(rows=16)
    one = model(jax.devices()[:1])(batch)
    eight = model()(batch)
    np.testing.assert_allclose(one["logits"], eight["logits"], rtol=1e-6)
    np.testing.assert_array_equal(one["index"], eight["index"])


def test_crops_average_probabilities():
    batch = a_batch(crops=5)
    rows = model()(batch)
    logits = expected(batch["image"])  # (8, 5, 5)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(
        np.exp(rows["logits"]), probabilities.mean(axis=1), rtol=1e-4
    )
    np.testing.assert_array_equal(rows["label"], batch["label"])


def test_one_crop_repeated_is_one_crop():
    batch = a_batch()
    many = {**batch, "image": np.repeat(batch["image"][:, None], 10, axis=1)}
    one, ten = model()(batch)["logits"], model()(many)["logits"]
    np.testing.assert_array_equal(one.argmax(axis=1), ten.argmax(axis=1))


def test_host_predictor_normalises_unless_the_model_does():
    batch = a_batch()

    def from_floats(images):
        assert images.dtype == np.float32
        return apply({"kernel": jnp.asarray(WEIGHTS["kernel"])}, jnp.asarray(images))

    floats = prediction.host_predictor(
        from_floats, mean=MEAN, std=STD, dtype="float32"
    )(batch)
    np.testing.assert_allclose(floats["logits"], expected(batch["image"]), atol=1e-5)

    def from_pixels(images):
        assert images.dtype == np.uint8
        return expected(images)

    pixels = prediction.host_predictor(from_pixels, mean=MEAN, std=STD, dtype="uint8")
    np.testing.assert_allclose(pixels(batch)["logits"], floats["logits"], atol=1e-5)


def test_compiles_once_for_each_shape():
    traces = []

    def counted(variables, images):
        traces.append(images.shape)
        return apply(variables, images)

    predictor = prediction.model_predictor(
        counted, WEIGHTS, mesh=sharding.make_mesh(), mean=MEAN, std=STD
    )
    for seed in range(3):
        predictor(a_batch(seed=seed))
    assert traces == [(8, 6, 6, 3)]


def test_a_single_host_decides_alone():
    assert prediction.agree(True) is True
    assert prediction.agree(False) is False


def test_several_hosts_cannot_share_an_exported_model(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="one process, not 2; leave out"):
        prediction.host_predictor(expected, mean=MEAN, std=STD, dtype="uint8")
