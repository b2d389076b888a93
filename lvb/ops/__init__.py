"""The equations: pure functions of arrays."""
