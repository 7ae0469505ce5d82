"""What streamd's contract suite for sources needs to test raw_folder; see docs/extending.md, "Test a plugin"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from streamd_example.raw_folder import RawFolderSettings

WIDTH, HEIGHT, COUNT = 192, 108, 12


def contract(folder: Path, paced: bool, **settings: Any) -> RawFolderSettings:
    """Settings of a source with as many frames of that size as the suite expects."""
    for i in range(COUNT):
        np.full(WIDTH * HEIGHT * 3 // 2, 100 + i, np.uint8).tofile(folder / f"{i:03}.yuv")
    fps = 25 if paced else 0
    return RawFolderSettings(id="s", folder=str(folder), width=WIDTH, height=HEIGHT, fps=fps, **settings)
