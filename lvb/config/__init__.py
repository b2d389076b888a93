"""Helpers for the files in configs/."""
