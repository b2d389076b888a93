"""Backbone, head, loss and metric put together."""
