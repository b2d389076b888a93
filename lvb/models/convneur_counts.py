"""ConvNeur's size as the paper counted it, beside the network's own.

The published parameters fit only if each memory's M_0 is counted twice: the authors'
package registers a template that is never trained. The published FLOPs fit a counter
that hooks modules and so leaves out the products with fast weights, read and write
alike; they are half of the true multiply-adds, which `lvb.analysis.flops` counts.
"""

import itertools

from lvb.models.convneur import STRIDES, ConvNeur, Variant


def template_params(memory_width: int) -> int:
    """Parameters of a memory's untrained template: W_1, W_2 and the gain.

    Args:
      memory_width: C_m.

    Returns:
      8 C_m^2 + C_m; add it once per memory to ours for the published figure.
    """
    return 8 * memory_width**2 + memory_width


def published_params(variant: Variant, *, num_classes: int = 1000) -> int:
    """Parameters by the paper's count: all of ours and four templates.

    Args:
      variant: a size of the default network.
      num_classes: of the classifier.

    Returns:
      10.628 M for M3, published as 10.6 M.
    """
    dims, width = variant.dims, variant.memory_width
    count = 16 * 3 * dims[0] + 3 * dims[0]  # Stem: convolution, bias, layer norm.
    for before, after in itertools.pairwise(dims):
        count += 2 * before + 4 * before * after + after
    for depth, channels in zip(variant.depths, dims, strict=True):
        # Depthwise 7x7 and bias, LN, two linear layers and biases, GRN.
        count += depth * (8 * channels**2 + (49 + 1 + 2 + 5 + 8) * channels)
        count += 2 * channels * width + width + channels  # Scaffold.
        count += _memory_params(width) + template_params(width)
    return count + 2 * dims[-1] + (dims[-1] + 1) * num_classes


def published_macs(
    variant: Variant,
    *,
    image_size: int = 224,
    chunk_size: int = 196,
    num_classes: int = 1000,
) -> int:
    """Multiply-adds of the modules by the paper's count, without the fast weights.

    Convolutions and linear layers only. The authors' counter adds 1 to 2 % for norms,
    biases and activations (M3: 1.747 G here, published as 1.77 G). Their package writes
    every full chunk, the last one too, and shifts the queries by one token, which costs
    another chunk where the chunks were full.

    Args:
      variant: a size of the default network.
      image_size: side of the square images, pixels.
      chunk_size: L, tokens.
      num_classes: of the classifier.

    Returns:
      Multiply-adds of one image.
    """
    dims, width = variant.dims, variant.memory_width
    tokens = [(-(-image_size // stride)) ** 2 for stride in STRIDES]
    count = 16 * 3 * dims[0] * tokens[0] + dims[-1] * num_classes
    for stage in range(1, len(dims)):
        count += 4 * dims[stage - 1] * dims[stage] * tokens[stage]
    for depth, channels, num in zip(variant.depths, dims, tokens, strict=True):
        count += depth * (49 * channels + 8 * channels**2) * num
        count += 2 * channels * width * num  # Scaffold.
        read_chunks = -(-(num + 1) // chunk_size)
        count += width**2 * read_chunks * chunk_size  # W_q
        chunks = num // chunk_size  # An incomplete last chunk is never written.
        count += (3 * width**2 + width) * chunks * chunk_size  # W_k, W_v, W_p, step.
        count += 2 * width * chunks  # Momentum and decay.
    return count


def _memory_params(width: int) -> int:
    """M_0, W_q, W_k, W_v, chunk pooling, two RMSNorm gains and three rates."""
    square = 4 * width**2 + width
    return template_params(width) + square + 2 * width + 3 * (width + 1)


def paper_params(backbone: ConvNeur, params: int) -> int:
    """Parameters by the paper's count: ours and a template for each memory."""
    return params + sum(_memories(backbone)) * template_params(backbone.memory_width)


def unpublished_macs(backbone: ConvNeur, image_size: int) -> int:
    """Our multiply-adds that the paper's count lacks, less those it has beyond ours.

    Left out are the fast weights, read and written, and the products of the
    self-attention branch; added are chunks that the authors' package pads or writes
    without reading them, see `published_macs`.

    Args:
      backbone: any form of the network.
      image_size: side of the square images, pixels.

    Returns:
      Multiply-adds of one image; subtract them from ours.
    """
    width, chunk = backbone.memory_width, backbone.chunk_size
    tokens = [(-(-image_size // stride)) ** 2 for stride in STRIDES]
    if backbone.global_branch == "attention":
        return sum(
            branches * 2 * width * num**2
            for branches, num in zip(_branches(backbone), tokens, strict=True)
        )
    total = 0
    for memories, num in zip(_memories(backbone), tokens, strict=True):
        written = (-(-num // chunk) - 1) * chunk
        # Read, then forward and backward pass of the inner loss.
        fast = 8 * width**2 * num + 20 * width**2 * written
        queries = -(-(num + 1) // chunk) * chunk - num
        more = num // chunk * chunk - written
        padding = width**2 * queries + (3 * width**2 + width) * more
        total += memories * (fast - padding - 2 * width * (more // chunk))
    return total


def _branches(backbone: ConvNeur) -> list[int]:
    """Global branches in each stage."""
    if backbone.memory_at == "every_block":
        return list(backbone.depths)
    return [int(backbone.memory_at == "stage_start")] * len(backbone.depths)


def _memories(backbone: ConvNeur) -> list[int]:
    """Memories in each stage."""
    is_memory = backbone.global_branch == "memory"
    return [count * is_memory for count in _branches(backbone)]
