"""A reader of a live input that can be made too slow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from streamd.errors import SourceError
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_source import AvSource


class Reader:
    """Reads an input; the thread takes `slow_s` more for each frame."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.slow_s = 0.0
        self.source = AvSource(AvStreamSettings(id="s", url=url, **settings))
        self.count = 0
        self.latency_s = 0.0
        """Of the latest frame, by its own time of capture."""
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Reader:
        self.source.open()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.source.close()
        self._thread.join(15)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            for frame in self.source.frames():
                self.count += 1
                self.latency_s = (time.monotonic_ns() - frame.captured_ns) / 1e9
                time.sleep(self.slow_s)
        except SourceError:
            pass


def until(condition: Callable[[], bool], limit_s: float) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit_s, "not in time"
        time.sleep(0.02)
