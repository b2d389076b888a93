"""Liquid dynamics by integration and by loops, float64, from the text of FVNet."""

import decimal
import itertools
import math

import numpy as np
from reference import convolution


def phi_exact(z):
    """(1 - e^-z) / z and its derivative in 60 digits, for one z."""
    with decimal.localcontext(prec=60):
        z = decimal.Decimal(float(z))
        if z == 0:
            return 1.0, -0.5
        e = (-z).exp()
        return float((1 - e) / z), float((e * (1 + z) - 1) / z**2)


def integrate(x, gate, *, alpha, amplitude, duration, num_steps):
    """Runge-Kutta 4 on Eq. (2), dx/dt = -alpha x + f A, with f and alpha frozen."""
    x, gate, alpha, amplitude, duration = np.broadcast_arrays(
        *(np.asarray(a, np.float64) for a in (x, gate, alpha, amplitude, duration))
    )
    h = duration / num_steps

    def slope(x):
        return -alpha * x + gate * amplitude

    for _ in range(num_steps):
        k1 = slope(x)
        k2 = slope(x + h / 2 * k1)
        k3 = slope(x + h / 2 * k2)
        k4 = slope(x + h * k3)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


def time_constants(params, pooled, *, spans, carry=None):
    """Eq. (4) with the low-rank gate for one image: pooled (C,) -> tau (N, C)."""
    t = params["t"]
    tau = np.zeros(t.shape)
    for n, c in np.ndindex(t.shape):
        u = t[n, c]
        if pooled is not None:
            hidden = [
                sum(
                    pooled[i] * params["reduce"]["kernel"][i, r]
                    for i in range(len(t[0]))
                )
                for r in range(params["reduce"]["kernel"].shape[1])
            ]
            drive = sum(
                hidden[r] * params["expand"]["kernel"][r, c] for r in range(len(hidden))
            )
            u += params["s"][n, c] * drive
        if carry is not None:
            u += params["kappa"][c] * carry[c]
        low, high = spans[n]
        tau[n, c] = low + (high - low) / (1 + math.exp(-u))
    return tau


def flow_unit(params, x, neighbourhood, tau):
    """Eqs. (5), (6) with the division by alpha: x, F (H, W, C), tau (C,)."""
    y = np.zeros(x.shape)
    for i, j, c in np.ndindex(x.shape):
        beta = 2 * math.tanh(params["beta"][c] / 2)
        f = beta * math.tanh(
            params["gamma"][c] * neighbourhood[i, j, c] + params["delta"][c]
        )
        alpha = tau[c] + f
        retained = math.exp(-alpha * tau[c])
        y[i, j, c] = x[i, j, c] * retained + f * params["A"][c] / alpha * (1 - retained)
    return y


def attention_weights(params, pooled, num_phases):
    """Eq. (7) for one image: pooled (C,) -> w (N, C)."""
    channels = len(pooled)
    hidden = []
    for r in range(len(params["reduce"]["bias"])):
        a = params["reduce"]["bias"][r] + sum(
            pooled[i] * params["reduce"]["kernel"][i, r] for i in range(channels)
        )
        hidden.append(a * (1 + math.erf(a / math.sqrt(2))) / 2)
    weights = np.zeros((num_phases, channels))
    for n, c in np.ndindex(weights.shape):
        column = n * channels + c
        logit = params["expand"]["bias"][column] + sum(
            h * params["expand"]["kernel"][r, column] for r, h in enumerate(hidden)
        )
        weights[n, c] = math.exp(logit)
    return weights / weights.sum(axis=0)


def squeeze_excite_weights(params, phases):
    """Gates of the N C concatenated channels of one image, (N, C)."""
    means = np.concatenate([phase.mean(axis=(0, 1)) for phase in phases])
    reduce, expand = params["reduce"], params["expand"]
    hidden = np.maximum(means @ reduce["kernel"][0, 0] + reduce["bias"], 0)
    logits = hidden @ expand["kernel"][0, 0] + expand["bias"]
    return np.reshape(1 / (1 + np.exp(-logits)), (len(phases), -1))


def fluid_block(params, batch_stats, x, *, spans, carry=None, fusion="attention"):
    """Eqs. (4)-(8) image by image: x (B, H, W, C), carry (C,) or None.

    Args:
      params: those of a default MultiPhaseFluidBlock, NumPy.
      batch_stats: its statistics.
      x: the normalised state.
      spans: (low, high) per phase.
      carry: from the stage before.
      fusion: a row of Table 7.

    Returns:
      Y, (B, H, W, C), batch norm at inference.
    """
    stats = batch_stats["local"]["norm"]
    local = convolution.conv2d(
        x, params["local"]["conv"]["kernel"], padding=(1, 1), groups=x.shape[-1]
    )
    local = (local - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    outputs = []
    for image, neighbourhood in zip(x, local, strict=True):
        pooled = sum(
            image[i, j] for i, j in itertools.product(*map(range, image.shape[:2]))
        ) / (image.shape[0] * image.shape[1])
        tau = time_constants(params["gate"], pooled, spans=spans, carry=carry)
        phases = [
            flow_unit(params[f"phase{n}"], image, neighbourhood, tau[n])
            for n in range(len(spans))
        ]
        fused = params.get("fusion", {})
        bias = 0.0
        if len(spans) == 1:
            weights = [1.0]
        elif fusion == "attention":
            weights = attention_weights(fused, pooled, len(spans))
        elif fusion == "average":
            weights = np.full(len(spans), 1 / len(spans))
        elif fusion == "concat":
            weights = fused["concat"]["kernel"][0, 0]
            bias = fused["concat"]["bias"]
        else:
            weights = squeeze_excite_weights(fused["squeeze_excite"], phases)
        outputs.append(sum(w * y for w, y in zip(weights, phases, strict=True)) + bias)
    return np.stack(outputs)
