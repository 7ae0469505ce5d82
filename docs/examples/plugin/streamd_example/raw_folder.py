"""A source that plays a folder of raw pictures: *.yuv files of one yuv420p picture each, sorted by name."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import av
import numpy as np
from pydantic import Field

from streamd.errors import SourceError
from streamd.flow.contracts import Source, SourceInfo
from streamd.settings import ConfigPath
from streamd.sources import SourceSettings
from streamd.sources.picture import picture_of
from streamd.types import Box, Frame


class RawFolderSettings(SourceSettings):
    """A folder of raw pictures: *.yuv files of one yuv420p picture each."""

    kind: Literal["raw_folder"] = "raw_folder"
    folder: ConfigPath = Field(description="Folder with the files.")
    width: int = Field(ge=16, le=8192, multiple_of=2, description="Pixels.")
    height: int = Field(ge=16, le=8192, multiple_of=2, description="Pixels.")
    fps: float = Field(25.0, ge=0, le=1000, description="Pictures per second; 0: as fast as possible.")

    @property
    def live(self) -> bool:
        """See `StreamSettings.live`."""
        return False

    @property
    def paced(self) -> bool:
        """See `StreamSettings.paced`."""
        return self.fps > 0

    def open(self, *, device: int | None = None, held: int = 8) -> Source:
        """See `SourceSettings.open`."""
        return RawFolder(self)


class RawFolder(Source):
    """See `streamd.flow.contracts.Source`.

    Args:
        settings: folder, size and rate.
    """

    def __init__(self, settings: RawFolderSettings) -> None:
        self._settings = settings
        self._files: list[Path] = []
        self._closed = threading.Event()

    def open(self) -> SourceInfo:
        """See `Source.open`."""
        s = self._settings
        self._files = sorted(Path(s.folder).glob("*.yuv"))
        if not self._files:
            problem = f"stream {s.id}: {s.folder}: no *.yuv file in this folder; expected raw pictures"
            raise SourceError("not_found", problem, permanent=True)
        return SourceInfo("rawvideo", "software", s.width, s.height, s.fps, live=False)

    def frames(self) -> Iterator[Frame]:
        """See `Source.frames`."""
        s = self._settings
        crop = Box(s.crop.x, s.crop.y, s.crop.width, s.crop.height) if s.crop else None
        rate = s.fps or 25.0
        started, due_s = time.monotonic(), 0.0
        for i, file in enumerate(self._files):
            if self._closed.wait(max(0.0, started + i / rate - time.monotonic()) if s.fps else 0):
                return
            if s.max_fps and i / rate < due_s:
                self.skipped += 1
                continue
            due_s = max(due_s + 1 / s.max_fps, i / rate) if s.max_fps else 0.0
            read_ns, wall_ns = time.monotonic_ns(), time.time_ns()
            picture = picture_of(self._read(file))
            now_ns = time.monotonic_ns()
            yield Frame(s.id, picture, s.width, s.height, read_ns, wall_ns, now_ns, round(i / rate * 1e9), crop)

    def _read(self, file: Path) -> av.VideoFrame:
        s = self._settings
        expected = s.width * s.height * 3 // 2
        try:
            pixels = np.fromfile(file, np.uint8)
        except OSError as error:
            raise SourceError("not_found", f"stream {s.id}: {file}: {error.strerror}") from error
        if len(pixels) != expected:
            size = f"{len(pixels)} bytes; expected {expected} for {s.width} x {s.height} pixels"
            raise SourceError("corrupt", f"stream {s.id}: {file}: has {size}; check width and height")
        return av.VideoFrame.from_ndarray(pixels.reshape(-1, s.width), format="yuv420p")

    def close(self) -> None:
        """See `Source.close`."""
        self._closed.set()
