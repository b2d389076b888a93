"""From files to host batches."""
