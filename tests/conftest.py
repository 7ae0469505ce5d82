"""Where tests find real models, images and clips."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamd.redact import forget

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


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """No test hears of another's secrets, nor loses pytest's hooks to another's logs."""
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    yield
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
    forget()
