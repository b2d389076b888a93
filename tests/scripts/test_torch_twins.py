"""The PyTorch twins compute what lvb's networks do, with lvb's weights."""

import importlib
import sys

import jax
import numpy as np
import pytest
from flax import traverse_util

import lvb
from lvb import random_weights

torch = pytest.importorskip("torch", reason="comes with lvb[bench]")

CASES = {
    "lsnet_t": {},
    "fvnet_n": {},
    "convneur_m1": {"memory_at": "none"},
}


@pytest.fixture(scope="module")
def peer_torch(repo_root):
    folder = str(repo_root / "scripts")
    sys.path.insert(0, folder)
    try:
        yield importlib.import_module("peer_torch")
    finally:
        sys.path.remove(folder)


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_twin_computes_the_same_logits(peer_torch, name, fused):
    model = lvb.create_model(name, **CASES[name])
    variables = random_weights.random_variables(model)
    variables = random_weights.calibrated(model, variables, random_weights.noise(224))
    if fused:
        model, variables = lvb.fuse(model, variables)
    images = random_weights.noise(224, batch_size=2, seed=1)
    logits = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    twin = peer_torch._twin(name, flat, deploy=fused).eval()
    with torch.no_grad():
        theirs = twin(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    # Logits of order 1 behind some fifty layers of float32.
    np.testing.assert_allclose(logits, theirs, rtol=0, atol=1e-4)


def test_a_twin_refuses_other_weights(peer_torch):
    model = lvb.create_model("fvnet_n", num_classes=7)
    variables = random_weights.random_variables(model)
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    with pytest.raises(RuntimeError, match=r"head\.classifier\.weight"):
        peer_torch._twin("fvnet_n", flat, deploy=False)
