"""Example plugin for streamd: a sink, a source and a head."""
