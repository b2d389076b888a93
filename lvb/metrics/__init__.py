"""Metrics as (sum, count) pairs."""
