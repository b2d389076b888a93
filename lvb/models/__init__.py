"""The four families and their registry."""
