"""Generated frames, for load, scheduling and fault tests without a file or a camera."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from typing import Literal

import numpy as np
from pydantic import Field

from streamd.errors import SourceError
from streamd.flow.contracts import Source, SourceInfo
from streamd.flow.settings import StreamSettings
from streamd.sources import SOURCES, SourceSettings
from streamd.sources.clock import StreamClock
from streamd.sources.picture import picture_of
from streamd.types import Box, Frame, Picture

_PICTURES = 8
SLOWEST_FPS = 1e-5
"""About a frame a day: longer waits cannot be asked of the system."""


@SOURCES.register
class SyntheticStreamSettings(SourceSettings):
    """Generated frames without a file or camera, for load, scheduling and fault tests."""

    kind: Literal["synthetic"] = "synthetic"
    width: int = Field(640, ge=16, le=8192, description="Width, in pixels.")
    height: int = Field(480, ge=16, le=8192, description="Height, in pixels.")
    fps: float = Field(25.0, ge=0, le=10_000, description="Frames per second. 0: as fast as possible.")
    count: int | None = Field(None, ge=0, description="Number of frames. Default: no end.")
    fail_after: int | None = Field(
        None, ge=0, description="Number of frames after which the source fails with the reason corrupt. Default: never."
    )

    @property
    def live(self) -> bool:
        """See `StreamSettings.live`."""
        return self.count is None

    @property
    def paced(self) -> bool:
        """See `StreamSettings.paced`."""
        return self.fps > 0

    def open(self, *, device: int | None = None, held: int = 8) -> Source:
        """See `SourceSettings.open`."""
        return SyntheticSource(self)


class SyntheticSource:
    """See `streamd.sources.Source`. A bright square moves across a grey picture."""

    def __init__(self, settings: SyntheticStreamSettings) -> None:
        self._settings = settings
        self._closed = threading.Event()
        self._pictures: list[Picture] = []
        self.corrupt = 0
        self.skipped = self.overtaken = self.discarded = 0
        self.behind_s: float | None = None
        self.lost = 0
        self.codec = ""
        self.deadline = math.inf
        self.clock = StreamClock()

    def open(self) -> SourceInfo:
        """See `Source.open`."""
        import av

        s = self._settings
        for i in range(_PICTURES):
            image = np.full((s.height // 2 * 2 * 3 // 2, s.width // 2 * 2), 128, np.uint8)
            side = min(s.width, s.height) // 4
            x = (s.width - side) * i // _PICTURES
            image[side : 2 * side, x : x + side] = 235
            self._pictures.append(picture_of(av.VideoFrame.from_ndarray(image, format="yuv420p")))
        first = self._pictures[0]
        return SourceInfo("drawn", "software", first.width, first.height, s.fps, live=s.fps > 0)

    def frames(self) -> Iterator[Frame]:
        """See `Source.frames`."""
        s = self._settings
        crop = Box(s.crop.x, s.crop.y, s.crop.width, s.crop.height) if s.crop else None
        started = time.monotonic_ns()
        rate = max(min(s.fps or 1e9, s.max_fps or 1e9), SLOWEST_FPS)
        seq = 0
        while s.count is None or seq < s.count:
            if s.fail_after is not None and seq >= s.fail_after:
                raise SourceError(
                    "corrupt", f"stream {s.id}: failed after {s.fail_after} frames, as fail_after requests"
                )
            pts_ns = int(seq * 1e9 / (rate if s.fps else 25))
            if s.fps:
                delay = (started + pts_ns - time.monotonic_ns()) / 1e9
                if self._closed.wait(delay) if delay > 0 else self._closed.is_set():
                    return
            elif self._closed.is_set():
                return
            picture = self._pictures[seq % _PICTURES]
            now = time.monotonic_ns()
            yield Frame(s.id, picture, picture.width, picture.height, now, time.time_ns(), now, pts_ns, crop)
            seq += 1

    def adapt(self, settings: StreamSettings) -> None:
        """See `Source.adapt`. It has nothing of that kind."""

    def close(self) -> None:
        """See `Source.close`."""
        self._closed.set()
