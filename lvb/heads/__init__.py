"""Modules on backbone features."""
