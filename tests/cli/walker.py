"""A backend that finds one box, which moves by a known path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streamd.engine import BatchSettings, ModelSettings
from streamd.engine.null import NullBackend, NullSettings, NullSlot
from streamd.types import Frame, Letterbox
from tests.clips import write_clip

WIDTH, HEIGHT, FPS = 192, 108, 25


class Walker(NullBackend):
    """One box, 20 x 30 pixels, whose middle goes from x = 20 by 1.5 pixels a frame."""

    def __init__(self, _: Any, model: ModelSettings) -> None:
        same_size = model.model_copy(update={"input_size": (HEIGHT, WIDTH)})
        super().__init__(NullSettings(), same_size, batch=BatchSettings(max=4))

    def preprocess(self, slot: NullSlot, frames: Sequence[Frame]) -> Sequence[Letterbox]:
        for row, frame in zip(slot.outputs[:, 0], frames, strict=False):
            assert frame.pts_ns is not None
            x = 20 + 1.5 * round(frame.pts_ns * FPS / 1e9)
            row[:] = x - 10, 40, x + 10, 70, 0.9, 0
        return super().preprocess(slot, frames)


def clip_for(path: Path, frames: int) -> Path:
    """A clip of the walker's size and rate."""
    return write_clip(path, frames=frames, size=(WIDTH, HEIGHT), fps=FPS)
