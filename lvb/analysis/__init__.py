"""What a model is, read without changing it."""
