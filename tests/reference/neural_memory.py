"""The neural memory as loops over images, chunks and tokens, from ConvNeur §3.3.

W2 is held turned around, (d, 4d), as `lvb.ops.neural_memory` holds it. The inner
gradient is derived by hand. With a = k W1, h = gelu(a), z = h W2,
n = (z - mean z) r, r = 1 / sqrt(var z + eps), M(k) = k + (1 + gamma) n and
e = 2 theta (M(k) - v) / d, a token adds

    dgamma = e n                dn = e (1 + gamma)
    dz = r (dn - mean dn - n mean(dn n))
    dW2 = h^T dz                dW1 = k^T [(dz W2^T) gelu'(a)]
"""

import math

import numpy as np

_erf = np.vectorize(math.erf, otypes=[float])


def gelu(x):
    """x Phi(x)."""
    return x * 0.5 * (1 + _erf(x / math.sqrt(2)))


def gelu_slope(x):
    """Phi(x) + x phi(x)."""
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + _erf(x / math.sqrt(2))) + x * density


def _forward(weights, token, epsilon):
    w1, w2, gain = weights
    a = token @ w1
    h = gelu(a)
    z = w2 @ h
    r = 1 / math.sqrt(np.mean((z - z.mean()) ** 2) + epsilon)
    n = (z - z.mean()) * r
    return a, h, r, n, token + (1 + gain) * n


def read(weights, token, *, epsilon):
    """M(x) of one token (d,)."""
    return _forward(weights, token, epsilon)[-1]


def loss(weights, keys, values, thetas, *, epsilon):
    """Eq. (3), summed over tokens with weights theta."""
    total = 0.0
    for key, value, theta in zip(keys, values, thetas, strict=True):
        error = read(weights, key, epsilon=epsilon) - value
        total += theta * np.mean(error**2)
    return total


def gradient(weights, keys, values, thetas, *, epsilon):
    """The slope of `loss` in (W1, W2, gamma), by hand."""
    _, w2, gain = weights
    slopes = [np.zeros_like(w) for w in weights]
    for key, value, theta in zip(keys, values, thetas, strict=True):
        a, h, r, n, out = _forward(weights, key, epsilon)
        e = 2 * theta * (out - value) / len(key)
        dn = e * (1 + gain)
        dz = r * (dn - dn.mean() - n * np.mean(dn * n))
        slopes[0] += np.outer(key, (w2.T @ dz) * gelu_slope(a))
        slopes[1] += np.outer(dz, h)
        slopes[2] += e * n
    return slopes


def clipped(slopes, clip):
    """g c / sqrt(c^2 + |g|^2) for each tensor; clip 0 is off."""
    if not clip:
        return slopes
    return [g * clip / math.sqrt(clip**2 + np.sum(g**2)) for g in slopes]


def memory(
    queries,
    writes,
    *,
    initial,
    epsilon=1e-3,
    clip=1.0,
    grad_at="previous",
    read_order="before",
):
    """All images and chunks: y (B, T, L, d) and the losses before each update."""
    keys, values, thetas, etas, alphas = writes
    batch, chunks, length, _ = queries.shape
    y, losses = np.zeros(queries.shape), np.zeros(etas.shape)
    for b in range(batch):
        weights = [np.array(w, np.float64) for w in initial]
        momentum = [np.zeros_like(w) for w in weights]
        for t in range(chunks):
            old = weights
            if t < etas.shape[1]:
                write = (keys[b, t], values[b, t], thetas[b, t])
                at = weights if grad_at == "previous" else initial
                slopes = gradient(at, *write, epsilon=epsilon)
                losses[b, t] = loss(weights, *write, epsilon=epsilon)
                momentum = [
                    etas[b, t] * v - g
                    for v, g in zip(momentum, clipped(slopes, clip), strict=True)
                ]
                weights = [
                    (1 - alphas[b, t]) * w + v
                    for w, v in zip(weights, momentum, strict=True)
                ]
            source = old if read_order == "before" else weights
            for i in range(length):
                y[b, t, i] = read(source, queries[b, t, i], epsilon=epsilon)
    return y, losses
