"""Rings, stages, batches and stream readers: what moves frames. Uses no third-party library."""
