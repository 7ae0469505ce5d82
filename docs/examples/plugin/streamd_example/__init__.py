"""Example plugin for streamd: a sink."""
