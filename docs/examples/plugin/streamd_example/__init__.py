"""Example plugin for streamd: a sink and a head."""
