"""Frames, statuses and detections for tests that need no decoder: those of the contract suites, and a backend."""

from __future__ import annotations

from streamd.engine.null import NullBackend
from streamd.testing.made import MODEL, detections, frames, status

__all__ = ["MODEL", "NullBackend", "detections", "frames", "status"]
