"""Maps cut into chunks and put together again."""

import numpy as np
import pytest

from lvb.ops import token_chunks

# (height, width, chunk size): exact, ragged, smaller than a chunk, one token.
SIZES = [(4, 6, 4), (5, 7, 9), (3, 2, 16), (1, 1, 4), (1, 9, 4)]


def image(height, width, *, channels=2):
    values = np.arange(3 * height * width * channels, dtype=np.float32) + 1
    return values.reshape(3, height, width, channels)


@pytest.mark.parametrize("layout", token_chunks.LAYOUTS)
@pytest.mark.parametrize(("height", "width", "chunk_size"), SIZES)
def test_merge_undoes_split_and_the_mask_tells_padding(
    height, width, chunk_size, layout
):
    x = image(height, width)
    grid = token_chunks.chunk_grid(height, width, chunk_size=chunk_size, layout=layout)
    chunks = np.asarray(token_chunks.split(x, grid))
    mask = token_chunks.valid_tokens(grid)
    assert chunks.shape[1:3] == mask.shape
    assert mask.shape[1] <= chunk_size
    assert mask.any(axis=1).all()  # No chunk is all padding.
    assert mask.sum() == height * width
    np.testing.assert_array_equal(chunks[0, ..., 0] > 0, mask)
    merged = token_chunks.merge(chunks, grid, height=height, width=width)
    np.testing.assert_array_equal(merged, x)


def test_raster_chunks_are_runs_of_rows():
    x = image(5, 7)
    grid = token_chunks.chunk_grid(5, 7, chunk_size=9)
    chunks = np.asarray(token_chunks.split(x, grid))
    sequence = x.reshape(3, 35, 2)
    assert chunks.shape == (3, 4, 9, 2)
    for t in range(3):
        np.testing.assert_array_equal(chunks[:, t], sequence[:, 9 * t : 9 * t + 9])
    np.testing.assert_array_equal(chunks[:, 3, :8], sequence[:, 27:])
    np.testing.assert_array_equal(chunks[:, 3, 8:], 0)


def test_windows_are_square_tiles():
    x = image(5, 7)
    grid = token_chunks.chunk_grid(5, 7, chunk_size=9, layout="window")
    chunks = np.asarray(token_chunks.split(x, grid))
    assert chunks.shape == (3, 6, 9, 2)
    np.testing.assert_array_equal(chunks[:, 1], x[:, :3, 3:6].reshape(3, 9, 2))
    corner = chunks[:, 5].reshape(3, 3, 3, 2)
    np.testing.assert_array_equal(corner[:, :2, :1], x[:, 3:, 6:])
    assert corner.sum() == x[:, 3:, 6:].sum()


@pytest.mark.parametrize("as_product", [True, False])
@pytest.mark.parametrize("attention", [True, False])
def test_pooling_weighs_valid_tokens(attention, as_product):
    rng = np.random.default_rng(0)
    tokens, logits = rng.standard_normal((2, 2, 3, 4, 5)).astype(np.float32)
    mask = np.ones((3, 4), bool)
    mask[2, 1:] = False
    mask[1, 3] = False
    pooled = token_chunks.pool_chunks(
        tokens,
        mask,
        logits=logits if attention else None,
        as_product=as_product,
    )
    for b, u, c in np.ndindex(2, 3, 5):
        valid = mask[u]
        weights = np.exp(logits[b, u, valid, c]) if attention else np.ones(valid.sum())
        expected = np.sum(weights * tokens[b, u, valid, c]) / weights.sum()
        # Four float32 products of size one.
        np.testing.assert_allclose(pooled[b, u, c], expected, rtol=0, atol=1e-6)


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"chunk_size=200 is no square.* 196 or 225"):
        token_chunks.chunk_grid(8, 8, chunk_size=200, layout="window")
    with pytest.raises(ValueError, match="chunk_size=0 holds no token"):
        token_chunks.chunk_grid(8, 8, chunk_size=0)
    with pytest.raises(ValueError, match="chunk_layout='spiral' is unknown"):
        token_chunks.chunk_grid(8, 8, chunk_size=4, layout="spiral")
