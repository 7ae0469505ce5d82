"""Grey bars, as a source."""

import threading
import time
from collections.abc import Iterator
from typing import Literal

import av
import numpy as np
from pydantic import Field
from streamd.flow.contracts import Source, SourceInfo
from streamd.sources import SourceSettings
from streamd.sources.picture import picture_of
from streamd.types import Box, Frame


class BarsSettings(SourceSettings):
    """Grey bars that move."""

    kind: Literal["bars"] = "bars"
    width: int = Field(640, ge=16, multiple_of=2, description="Pixels.")
    height: int = Field(480, ge=16, multiple_of=2, description="Pixels.")
    fps: float = Field(25.0, ge=0, description="Pictures per second; 0: as fast as possible.")
    count: int = Field(100, ge=1, description="Number of pictures.")

    @property
    def live(self) -> bool:
        return False

    @property
    def paced(self) -> bool:
        return self.fps > 0

    def open(self, *, device: int | None = None, held: int = 8) -> Source:
        return Bars(self)


class Bars(Source):
    def __init__(self, settings: BarsSettings) -> None:
        self._settings = settings
        self._closed = threading.Event()

    def open(self) -> SourceInfo:
        s = self._settings
        return SourceInfo("bars", "software", s.width, s.height, s.fps, live=False)

    def frames(self) -> Iterator[Frame]:
        s = self._settings
        crop = Box(s.crop.x, s.crop.y, s.crop.width, s.crop.height) if s.crop else None
        rate, started, due = s.fps or 25.0, time.monotonic(), 0.0
        for i in range(s.count):
            if self._closed.wait(max(0.0, started + i / rate - time.monotonic()) if s.fps else 0):
                return
            if s.max_fps and i / rate < due:
                self.skipped += 1
                continue
            due = i / rate + 1 / s.max_fps if s.max_fps else 0.0
            captured, wall = time.monotonic_ns(), time.time_ns()
            row = ((np.arange(s.width) // 16 + i) % 2 * 128 + 64).astype(np.uint8)
            picture = picture_of(av.VideoFrame.from_ndarray(np.tile(row, (s.height, 1)), format="gray"))
            decoded, pts = time.monotonic_ns(), round(i / rate * 1e9)
            yield Frame(s.id, picture, s.width, s.height, captured, wall, decoded, pts, crop)

    def close(self) -> None:
        self._closed.set()
