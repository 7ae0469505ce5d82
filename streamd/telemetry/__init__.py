"""Metrics, logs and the service manager: what the daemon reports to the outside."""
