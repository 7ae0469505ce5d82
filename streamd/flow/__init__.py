"""Rings, stages, batches and stream lives: what moves frames, knowing nothing of any vendor."""
