"""streamd's contract suites on the kinds of this package: `pytest test_kinds.py`, with the package installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from streamd_example.raw_folder import RawFolderSettings

from streamd.testing.heads import HeadContract
from streamd.testing.objects import CELLS, CLASSES, OBJECTS, Case, Encoded, spec
from streamd.testing.sources import COUNT, FPS, HEIGHT, WIDTH, SourceContract


class TestRawFolder(SourceContract):
    """The source."""

    kind = "raw_folder"

    def contract(self, folder: Path, paced: bool, **settings: Any) -> RawFolderSettings:
        """Settings of a source with as many pictures of that size as the suite expects."""
        for i in range(COUNT):
            np.full(WIDTH * HEIGHT * 3 // 2, 100 + i, np.uint8).tofile(folder / f"{i:03}.yuv")
        fps = FPS if paced else 0
        return RawFolderSettings(id="s", folder=str(folder), width=WIDTH, height=HEIGHT, fps=fps, **settings)


class TestYolov8Rows(HeadContract):
    """The head."""

    kind = "yolov8_rows"

    def cases(self) -> Sequence[Case]:
        """The only form of its outputs. No device decodes them, and their shapes do not tell the head."""
        return [Case("", encode, None, recognised=False)]


def encode(batch: int, index: int) -> Encoded:
    """A model and its outputs: the suite's objects in frame `index` of the batch."""
    rows = np.zeros((batch, CELLS, 4 + CLASSES), np.float32)
    for i, (cx, cy, width, height, objectness, label, score) in enumerate(OBJECTS):
        rows[index, i, :4] = cx, cy, width, height
        rows[index, i, 4 + label] = objectness * score
    return spec((-1, CELLS, 4 + CLASSES), head={"kind": "yolov8_rows"}), [rows]
