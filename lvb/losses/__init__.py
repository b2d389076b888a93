"""Losses: one value per example."""
