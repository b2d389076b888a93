"""The official LSNet in NumPy float64: names, shapes and forward pass, NCHW.

Written from the paper and from the names of the released checkpoints, with PyTorch's
conventions (OIHW kernels, NCHW maps, cross-correlation); it imports nothing of lvb.
"""

import itertools

import numpy as np

EPSILON = 1e-5
KEY_DIM, HEADS, SIDE = 16, 4, 4  # Attention: keys, heads, side of the last map.


def layout(
    dims, depths, *, num_classes=1000, two_heads=False, rep_branch=True, buffers=True
):
    """Shapes by name, in the order of PyTorch's modules."""
    shapes = {}

    def conv_norm(name, out, fan_in, side):
        shapes[f"{name}.c.weight"] = (out, fan_in, side, side)
        batch_norm(f"{name}.bn", out)

    def batch_norm(name, width):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{leaf}"] = (width,)
        if buffers:
            shapes[f"{name}.num_batches_tracked"] = ()

    def affine(name, out, *rest):
        shapes[f"{name}.weight"] = (out, *rest)
        shapes[f"{name}.bias"] = (out,)

    def attention(name, width):
        conv_norm(f"{name}.qkv", 2 * HEADS * KEY_DIM + width, width, 1)
        conv_norm(f"{name}.proj.1", width, width, 1)
        conv_norm(f"{name}.dw", HEADS * KEY_DIM, 1, 3)
        shapes[f"{name}.attention_biases"] = (HEADS, SIDE**2)
        if buffers:
            shapes[f"{name}.attention_bias_idxs"] = (SIDE**2, SIDE**2)

    def large_small(name, width):
        conv_norm(f"{name}.lkp.cv1", width // 2, width, 1)
        conv_norm(f"{name}.lkp.cv2", width // 2, 1, 7)
        conv_norm(f"{name}.lkp.cv3", width // 2, width // 2, 1)
        affine(f"{name}.lkp.cv4", 9 * width // 8, width // 2, 1, 1)
        affine(f"{name}.lkp.norm", 9 * width // 8)
        batch_norm(f"{name}.bn", width)

    for index, divisor in enumerate((4, 2, 1)):
        fan_in = 3 if index == 0 else dims[0] // (2 * divisor)
        conv_norm(f"patch_embed.{2 * index}", dims[0] // divisor, fan_in, 3)
    for stage, (width, depth) in enumerate(zip(dims, depths, strict=True)):
        prefix, first = f"blocks{stage + 1}", 0
        if stage:
            conv_norm(f"{prefix}.0", dims[stage - 1], 1, 3)
            conv_norm(f"{prefix}.1", width, dims[stage - 1], 1)
            first = 2
        for block in range(depth):
            name = f"{prefix}.{first + block}"
            if block % 2 == 0:
                conv_norm(f"{name}.mixer.conv", width, 1, 3)
                if rep_branch:
                    conv_norm(f"{name}.mixer.conv1", width, 1, 1)
                hidden = max(8, int(width / 4 + 4) // 8 * 8)
                affine(f"{name}.se.fc1", hidden, width, 1, 1)
                affine(f"{name}.se.fc2", width, hidden, 1, 1)
            elif stage == 3:
                attention(f"{name}.mixer.m", width)
            else:
                large_small(f"{name}.mixer", width)
            conv_norm(f"{name}.ffn.m.pw1", 2 * width, width, 1)
            conv_norm(f"{name}.ffn.m.pw2", width, 2 * width, 1)
    for head in ("head", "head_dist") if two_heads else ("head",):
        batch_norm(f"{head}.bn", dims[3])
        affine(f"{head}.l", num_classes, dims[3])
    return shapes


def random_state(shapes, *, seed=0):
    """Arrays that keep activations of order 1, with no zero scale."""
    rng = np.random.default_rng(seed)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = np.asarray(7, np.int64)
        elif name.endswith("attention_bias_idxs"):
            state[name] = bias_index(SIDE)
        elif len(shape) == 4:
            bound = np.prod(shape[1:]) ** -0.5
            state[name] = rng.uniform(-bound, bound, shape)
        elif name.endswith(".l.weight"):
            state[name] = rng.normal(0, 0.1, shape)
        elif name.endswith(("weight", "running_var")):
            state[name] = rng.uniform(0.5, 1.5, shape)
        else:
            state[name] = rng.normal(0, 0.2, shape)
    return state


def bias_index(side):
    """Numbers offsets in the order in which pairs of positions first show them."""
    points = list(itertools.product(range(side), range(side)))
    numbers, index = {}, []
    for (row, column), (other_row, other_column) in itertools.product(points, points):
        offset = (abs(row - other_row), abs(column - other_column))
        index.append(numbers.setdefault(offset, len(numbers)))
    return np.reshape(index, (side**2, side**2))


class Network:
    """The forward pass; `outputs` holds each module's output by its name."""

    def __init__(self, state, depths):
        self.state, self.depths, self.outputs = state, depths, {}

    def __call__(self, x):
        for index in range(3):
            x = relu(x) if index else x
            x = self.conv_norm(f"patch_embed.{2 * index}", x, strides=2)
        for stage, depth in enumerate(self.depths):
            prefix, first = f"blocks{stage + 1}", 0
            if stage:
                x = self.conv_norm(f"{prefix}.0", x, strides=2)
                x = self.conv_norm(f"{prefix}.1", x)
                first = 2
            for block in range(depth):
                x = self.block(f"{prefix}.{first + block}", x)
        pooled = x.mean((2, 3))
        logits = [self.head(name, pooled) for name in ("head", "head_dist")]
        return sum(known := [y for y in logits if y is not None]) / len(known)

    def block(self, name, x):
        if f"{name}.mixer.conv.c.weight" in self.state:
            y = self.conv_norm(f"{name}.mixer.conv", x) + x
            if f"{name}.mixer.conv1.c.weight" in self.state:
                y = y + self.conv_norm(f"{name}.mixer.conv1", x)
            x = self.squeeze_excite(f"{name}.se", y)
        elif f"{name}.mixer.m.qkv.c.weight" in self.state:
            x = x + self.attention(f"{name}.mixer.m", x)
        else:
            x = self.large_small(f"{name}.mixer", x)
        hidden = relu(self.conv_norm(f"{name}.ffn.m.pw1", x))
        x = x + self.conv_norm(f"{name}.ffn.m.pw2", hidden)
        return self.keep(name, x)

    def large_small(self, name, x):
        y = relu(self.conv_norm(f"{name}.lkp.cv1", x))
        y = self.conv_norm(f"{name}.lkp.cv2", y)
        y = relu(self.conv_norm(f"{name}.lkp.cv3", y))
        w = conv(y, self.state[f"{name}.lkp.cv4.weight"])
        w = w + self.column(f"{name}.lkp.cv4.bias")
        w = self.keep(f"{name}.lkp.cv4", w)
        batch, _, height, width = w.shape
        grouped = w.reshape(batch, -1, 9, height, width)
        mean = grouped.mean((2, 3, 4), keepdims=True)
        var = grouped.var((2, 3, 4), keepdims=True)
        w = ((grouped - mean) / np.sqrt(var + EPSILON)).reshape(w.shape)
        w = w * self.column(f"{name}.lkp.norm.weight")
        w = w + self.column(f"{name}.lkp.norm.bias")
        w = w.reshape(grouped.shape)  # (B, M, 9, H, W)
        kernel = np.arange(x.shape[1]) % w.shape[1]
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        y = np.zeros(x.shape)
        for u, v in np.ndindex(3, 3):
            y += w[:, kernel, 3 * u + v] * padded[:, :, u : u + height, v : v + width]
        return self.keep(name, self.batch_norm(f"{name}.bn", y) + x)

    def attention(self, name, x):
        batch, channels, height, width = x.shape
        qkv = self.conv_norm(f"{name}.qkv", x)
        query, key, value = np.split(qkv, (HEADS * KEY_DIM, 2 * HEADS * KEY_DIM), 1)
        query = self.conv_norm(f"{name}.dw", query)
        query, key, value = (
            y.reshape(batch, HEADS, -1, height * width) for y in (query, key, value)
        )
        scores = np.einsum("bhdn,bhdm->bhnm", query, key) * KEY_DIM**-0.5
        scores = scores + self.state[f"{name}.attention_biases"][:, bias_index(height)]
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        y = np.einsum("bhdm,bhnm->bhdn", value, weights)
        y = relu(y.reshape(batch, channels, height, width))
        return self.keep(name, self.conv_norm(f"{name}.proj.1", y))

    def squeeze_excite(self, name, x):
        y = x.mean((2, 3), keepdims=True)
        for layer, activation in (("fc1", relu), ("fc2", sigmoid)):
            y = conv(y, self.state[f"{name}.{layer}.weight"])
            y = activation(y + self.column(f"{name}.{layer}.bias"))
        return self.keep(name, x * y)

    def head(self, name, pooled):
        if f"{name}.l.weight" not in self.state:
            return None
        y = self.batch_norm(f"{name}.bn", pooled[:, :, None, None])[:, :, 0, 0]
        return y @ self.state[f"{name}.l.weight"].T + self.state[f"{name}.l.bias"]

    def conv_norm(self, name, x, *, strides=1):
        y = conv(x, self.state[f"{name}.c.weight"], strides=strides)
        return self.keep(name, self.batch_norm(f"{name}.bn", y))

    def batch_norm(self, name, x):
        scale = self.column(f"{name}.weight")
        scale = scale / np.sqrt(self.column(f"{name}.running_var") + EPSILON)
        return (x - self.column(f"{name}.running_mean")) * scale + self.column(
            f"{name}.bias"
        )

    def column(self, name):
        return self.state[name][:, None, None]

    def keep(self, name, x):
        self.outputs[name] = x
        return x


def conv(x, kernel, *, strides=1):
    """Cross-correlation, padding (k - 1) / 2; depthwise if the kernel's fan-in is 1."""
    side = kernel.shape[-1]
    margin = (side - 1) // 2
    padded = np.pad(x, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), (2, 3))
    windows = windows[:, :, ::strides, ::strides]
    if kernel.shape[1] == 1 and kernel.shape[0] == x.shape[1]:
        return np.einsum("bchwij,cij->bchw", windows, kernel[:, 0])
    y = np.tensordot(windows, kernel, ((1, 4, 5), (1, 2, 3)))  # (B, H', W', O)
    return np.moveaxis(y, -1, 1)


def relu(x):
    return np.maximum(x, 0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))
