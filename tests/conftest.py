"""Where tests find real models, images and clips."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("STREAMD_TEST_DATA", ROOT.parent / "shared"))


def shared(path: str) -> Path:
    """The test material at `path` below the data folder; skips (fails in CI) where it is absent."""
    found = DATA / path
    if not found.exists():
        message = f"test material {path} is not in {DATA}; set STREAMD_TEST_DATA to the folder that has it"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found
