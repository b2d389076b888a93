"""One small network of each family, for tests that compute."""

# Options of `lvb.create_model` that make each family small and keep every kind of part.
SMALL = {
    "lsnet_t": dict(dims=(16, 16, 32, 32), depths=(0, 2, 2, 2)),
    "convneur_m1": dict(
        dims=(8, 8, 16, 16), depths=(1, 1, 2, 1), memory_width=8, chunk_size=16
    ),
    "fvnet_n": dict(dims=(16, 16, 32, 32), depths=(1, 1, 1, 1)),
    "fmvit_t": dict(
        stem_dim=16,
        stage1_dim=16,
        embed_dims=(16, 16, 16),
        attention_dims=(32, 32, 32),
        frequency_dims=(8, 8, 16),
        depths=(1, 1, 1, 1),
    ),
}
