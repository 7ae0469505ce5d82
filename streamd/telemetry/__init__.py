"""Metrics, logs and the service manager: how the outside sees the daemon."""
