"""Calibration cache: the histograms of a calibration as JSON, so that another method or other float layers reuse them.

The key is a hash over the model file, the pictures and everything that affects the network's input. Each method's
thresholds follow from the histograms in under a second, so one file serves all four methods.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamd.errors import ConfigError
from streamd.models.calibrate import BINS, Histogram, Peaks
from streamd.models.graph import write_whole
from streamd.types import CENTERED, ModelSpec

VERSION = 2
MAX_BYTES = 256 << 20


def default_folder() -> Path:
    """The user's cache folder (XDG base directory specification)."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(base)) / "streamd" / "calibration"


def key_of(spec: ModelSpec, pictures: str, watched: Sequence[str]) -> str:
    """Hex SHA-256 over everything that determines the histograms."""
    parts: list[Any] = [
        VERSION, BINS, spec.sha256, pictures, spec.input_width, spec.input_height, spec.color, spec.scale,
        spec.pad_value, spec.layout, list(watched),
    ]  # fmt: skip
    if (spec.mean, spec.std, spec.placement) != (None, None, CENTERED):
        parts += [spec.mean, spec.std, spec.placement.resize, spec.placement.align]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def load(path: Path, key: str) -> tuple[dict[str, Histogram], Peaks] | None:
    """What is in `path`, or None if there is no valid file for this key."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["key"] != key or body["version"] != VERSION:
            return None
        peaks = {name: np.array(p, np.float32) for name, p in body["peaks"].items()}
        if not all(p.ndim == 1 and np.isfinite(p).all() for p in peaks.values()):
            return None
        return {name: Histogram.from_json(h) for name, h in body["histograms"].items()}, peaks
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return None


def save(path: Path, key: str, spec: ModelSpec, pictures: str, histograms: dict[str, Histogram], peaks: Peaks) -> None:
    """Writes the cache atomically.

    Raises:
        ConfigError: it cannot be written.
    """
    body = {
        "version": VERSION,
        "key": key,
        "model_sha256": spec.sha256,
        "pictures_sha256": pictures,
        "histograms": {name: h.as_json() for name, h in histograms.items()},
        "peaks": {name: p.tolist() for name, p in peaks.items()},
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"calibration cache {path}: cannot be written: {error.strerror}; choose another --cache, or give --no-cache"
        ) from error
    write_whole(path, json.dumps(body, separators=(",", ":")).encode())
