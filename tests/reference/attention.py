"""Attention as loops over queries and keys, written from FMViT Eqs. (3) and (4)."""

import math

import numpy as np


def attention_loops(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    *,
    scale: float,
    bias: np.ndarray | None = None,
) -> np.ndarray:
    """Eq. (3) per image, head and query: (B, N, h, D), (B, M, h, D), (B, M, h, Dv)."""
    batch, num_queries, heads, _ = query.shape
    num_keys = key.shape[1]
    out = np.zeros((batch, num_queries, heads, value.shape[-1]))
    for b, n, h in np.ndindex(batch, num_queries, heads):
        scores = []
        for m in range(num_keys):
            score = scale * float(np.dot(query[b, n, h], key[b, m, h]))
            scores.append(score if bias is None else score + float(bias[h, n, m]))
        largest = max(scores)
        weights = [math.exp(score - largest) for score in scores]
        for m in range(num_keys):
            out[b, n, h] += weights[m] / sum(weights) * value[b, m, h]
    return out


def shared_projection_attention(
    tokens: np.ndarray,
    kernel: np.ndarray,
    bias: np.ndarray,
    *,
    head_dim: int,
    scale: float,
) -> np.ndarray:
    """Eq. (4), Softmax(X (X W)^T) X W per head: tokens (B, N, C), kernel (C, C)."""
    batch, num_tokens, channels = tokens.shape
    out = np.zeros(tokens.shape)
    for b in range(batch):
        projected = np.stack([row @ kernel + bias for row in tokens[b]])  # K' = V'
        for start in range(0, channels, head_dim):
            head = slice(start, start + head_dim)
            for n in range(num_tokens):
                scores = [
                    scale * sum(tokens[b, n, head] * projected[m, head])
                    for m in range(num_tokens)
                ]
                weights = np.exp(np.array(scores) - max(scores))
                for m in range(num_tokens):
                    out[b, n, head] += weights[m] / weights.sum() * projected[m, head]
    return out
