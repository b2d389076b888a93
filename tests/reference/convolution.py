"""Convolution by explicit loops, float64."""

import numpy as np


def conv2d(x, kernel, *, strides=1, padding=(0, 0), groups=1):
    """x (B, H, W, C), kernel (kh, kw, C / groups, C') -> (B, H', W', C')."""
    x = np.pad(
        np.asarray(x, np.float64),
        ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)),
    )
    kernel = np.asarray(kernel, np.float64)
    height, width, fan_in, features = kernel.shape
    rows = (x.shape[1] - height) // strides + 1
    columns = (x.shape[2] - width) // strides + 1
    y = np.zeros((x.shape[0], rows, columns, features))
    for out in range(features):
        group = out // (features // groups)
        channels = slice(group * fan_in, (group + 1) * fan_in)
        for i in range(rows):
            for j in range(columns):
                top, left = i * strides, j * strides
                window = x[:, top : top + height, left : left + width, channels]
                y[:, i, j, out] = np.sum(window * kernel[..., out], axis=(1, 2, 3))
    return y
