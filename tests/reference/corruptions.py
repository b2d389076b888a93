"""Corruptions written as loops and library calls, from their definitions.

Each takes a float64 image in [0, 1] and a generator, and consumes the generator in the
order the definition states. Independent of lvb: only NumPy, SciPy and colorsys.
"""

import colorsys
import math

import numpy as np
from scipy import ndimage


def gaussian_noise(x, rng, *, scale):
    return x + scale * rng.standard_normal(x.shape)


def shot_noise(x, rng, *, photons):
    return rng.poisson(photons * x).astype(float) / photons


def impulse_noise(x, rng, *, amount):
    hit, salt = rng.random(x.shape) < amount, rng.random(x.shape) < 0.5
    y = x.copy()
    y[hit & salt] = 1
    y[hit & ~salt] = 0
    return y


def speckle_noise(x, rng, *, scale):
    return x * (1 + scale * rng.standard_normal(x.shape))


def gaussian_blur(x, rng, *, sigma):
    radius = int(4 * sigma + 0.5)
    taps = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (taps / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        last = x.shape[axis] - 1
        y = np.zeros_like(x)
        for tap, weight in zip(taps, kernel, strict=True):
            index = np.clip(np.arange(last + 1) + tap, 0, last)
            y += weight * np.take(x, index, axis=axis)
        x = y
    return x


def glass_blur(x, rng, *, sigma, max_delta, iterations):
    levels = np.floor(gaussian_blur(x, rng, sigma=sigma) * 255 + 1e-6)
    height, width, _ = x.shape
    for _ in range(iterations):
        rows = range(height - max_delta, max_delta, -1)
        columns = range(width - max_delta, max_delta, -1)
        size = (len(rows), len(columns), 2)
        offsets = rng.integers(-max_delta, max_delta, size=size)
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                dx, dy = offsets[i, j]
                levels[row, column] = levels[row + dy, column + dx]
    return gaussian_blur(levels / 255, rng, sigma=sigma)


def disk(radius, alias_blur):
    reach, taps = (8, 1) if radius <= 8 else (radius, 2)
    size = 2 * reach + 1
    aliased = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            aliased[i, j] = (i - reach) ** 2 + (j - reach) ** 2 <= radius**2
    aliased /= aliased.sum()
    g = np.array(
        [math.exp(-(t**2) / (2 * alias_blur**2)) for t in range(-taps, taps + 1)]
    )
    g /= g.sum()
    padded = np.pad(aliased, taps, mode="reflect")
    kernel = np.zeros_like(aliased)
    for i in range(2 * taps + 1):
        for j in range(2 * taps + 1):
            kernel += g[i] * g[j] * padded[i : i + size, j : j + size]
    return kernel


def defocus_blur(x, rng, *, radius, alias_blur):
    kernel = disk(radius, alias_blur)
    planes = [
        ndimage.correlate(x[..., c], kernel, mode="mirror") for c in range(x.shape[-1])
    ]
    return np.stack(planes, axis=-1)


def motion_blur(x, rng, *, radius, sigma):
    angle = math.radians(rng.uniform(-45, 45))
    height, width, _ = x.shape
    y, total = np.zeros_like(x), 0.0
    for i in range(2 * radius + 1):
        weight = math.exp(-(i**2) / (2 * sigma**2))
        dy = math.ceil(i * math.sin(angle) - 0.5)
        dx = math.ceil(i * math.cos(angle) - 0.5)
        rows = np.clip(np.arange(height) + dy, 0, height - 1)
        columns = np.clip(np.arange(width) + dx, 0, width - 1)
        y += weight * x[rows][:, columns]
        total += weight
    return y / total


def clipped_zoom(x, factor):
    """The definition's own words: crop, scipy's zoom, trim."""
    size = x.shape[0]
    crop = math.ceil(size / factor)
    first = (size - crop) // 2
    centre = x[first : first + crop, first : first + crop]
    zoomed = ndimage.zoom(centre, (factor, factor, 1), order=1)
    trim = (zoomed.shape[0] - size) // 2
    return zoomed[trim : trim + size, trim : trim + size]


def zoom_blur(x, rng, *, stop, step):
    factors = np.arange(1, stop, step)
    return (x + sum(clipped_zoom(x, f) for f in factors)) / (len(factors) + 1)


def contrast(x, rng, *, factor):
    y = np.empty_like(x)
    for c in range(x.shape[-1]):
        mean = np.mean(x[..., c])
        y[..., c] = (x[..., c] - mean) * factor + mean
    return y


def pixelate(x, rng, *, factor):
    """Box average along rows, then along columns, rounded; then nearest neighbour."""
    size = x.shape[0]
    small = int(size * factor)
    shares = np.zeros((small, size))
    for i in range(small):
        start, stop = i * size / small, (i + 1) * size / small
        # A source pixel belongs to the box that holds its centre.
        centres = np.arange(size) + 0.5
        shares[i] = (centres > start) & (centres <= stop)
        shares[i] /= shares[i].sum()
    levels = np.rint(x * 255)
    wide = np.floor(np.einsum("lk,jkc->jlc", shares, levels) + 0.5)
    coarse = np.floor(np.einsum("ij,jlc->ilc", shares, wide) + 0.5) / 255
    nearest = np.floor((np.arange(size) + 0.5) * small / size).astype(int)
    return coarse[nearest][:, nearest]


def brightness(x, rng, *, offset):
    y = np.empty_like(x)
    for i, j in np.ndindex(x.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*x[i, j])
        y[i, j] = colorsys.hsv_to_rgb(h, s, min(v + offset, 1))
    return y


def saturate(x, rng, *, factor, offset):
    y = np.empty_like(x)
    for i, j in np.ndindex(x.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*x[i, j])
        y[i, j] = colorsys.hsv_to_rgb(h, min(max(s * factor + offset, 0), 1), v)
    return y


def fog(x, rng, *, strength, decay):
    """Diamond-square point by point, on a torus."""
    size = 1
    while size < max(x.shape[:2]):
        size *= 2
    h = np.zeros((size, size))
    step, wobble = size, 100.0
    while step >= 2:
        half, a, n = step // 2, wobble**2, size // step
        noise = rng.uniform(-a, a, (n, n))
        for i in range(n):
            for j in range(n):
                r, c = i * step, j * step
                around = [(r, c), (r, c + step), (r + step, c), (r + step, c + step)]
                value = sum(h[p % size, q % size] for p, q in around) / 4
                h[r + half, c + half] = value + noise[i, j]
        for down, right in ((0, half), (half, 0)):
            noise = rng.uniform(-a, a, (n, n))
            for i in range(n):
                for j in range(n):
                    r, c = i * step + down, j * step + right
                    around = [
                        (r - half, c),
                        (r + half, c),
                        (r, c - half),
                        (r, c + half),
                    ]
                    value = sum(h[p % size, q % size] for p, q in around) / 4
                    h[r, c] = value + noise[i, j]
        step, wobble = half, wobble / decay
    h = (h - h.min()) / (h.max() - h.min())
    mist = h[: x.shape[0], : x.shape[1], None]
    return (x + strength * mist) * x.max() / (x.max() + strength)


def elastic_transform(x, rng, *, alpha, sigma, affine):
    height, width, _ = x.shape
    cx, cy, reach = width // 2, height // 2, min(height, width) // 3
    before = [
        (cx + reach, cy + reach),
        (cx + reach, cy - reach),
        (cx - reach, cy - reach),
    ]
    after = np.array(before) + rng.uniform(-affine, affine, (3, 2))
    homogeneous = np.vstack([np.array(before, float).T, np.ones(3)])
    forward = after.T @ np.linalg.inv(homogeneous)  # (2, 3): (x, y, 1) -> (x', y').
    inverse = np.linalg.inv(np.vstack([forward, [0, 0, 1]]))
    rows, columns = np.indices((height, width)).astype(float)
    sx = inverse[0, 0] * columns + inverse[0, 1] * rows + inverse[0, 2]
    sy = inverse[1, 0] * columns + inverse[1, 1] * rows + inverse[1, 2]

    def sample(image, r, c, mode):
        planes = [
            ndimage.map_coordinates(image[..., k], [r, c], order=1, mode=mode)
            for k in range(image.shape[-1])
        ]
        return np.stack(planes, axis=-1)

    def displacement():
        noise = rng.uniform(-1, 1, (height, width))
        return alpha * ndimage.gaussian_filter(noise, sigma, mode="reflect", truncate=3)

    warped = sample(x, sy, sx, "mirror")
    dx, dy = displacement(), displacement()
    return sample(warped, rows + dy, columns + dx, "reflect")
