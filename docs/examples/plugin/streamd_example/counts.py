"""A sink that counts detections: one CSV line per interval, stream and label."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Literal, TextIO

from pydantic import Field

from streamd.errors import SinkError
from streamd.settings import ConfigPath, Seconds
from streamd.sinks import Sink, SinkSettings
from streamd.sinks.envelope import DETECTIONS, Message


class CountsSettings(SinkSettings):
    """Number of detections per stream and label, as CSV: Unix time, stream, label, count."""

    kind: Literal["counts"] = "counts"
    path: ConfigPath = Field(description="File to append to.")
    interval_s: Seconds = Field(60.0, description="Time that a line covers, in seconds.")

    def open(self) -> Sink:
        """See `SinkSettings.open`."""
        return CountsSink(self)


class CountsSink(Sink):
    """See `streamd.sinks.Sink`.

    Args:
        settings: file and interval.
    """

    def __init__(self, settings: CountsSettings) -> None:
        self._settings = settings
        self._counts: Counter[tuple[str, str]] = Counter()
        self._file: TextIO | None = None
        self._due = 0.0

    def open(self) -> None:
        """See `Sink.open`."""
        path = Path(self._settings.path)
        try:
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise SinkError(f"counts sink: cannot open {path}: {error.strerror}; check the folder") from error
        self._due = time.monotonic() + self._settings.interval_s

    def send(self, message: Message) -> str | None:
        """See `Sink.send`."""
        if message.kind is DETECTIONS:
            found = json.loads(message.payload)["detections"]
            self._counts.update((message.stream, each["label"]) for each in found)
        return None

    def poll(self) -> None:
        """See `Sink.poll`."""
        if time.monotonic() >= self._due:
            self._due += self._settings.interval_s
            self._write()

    def _write(self) -> None:
        if self._file is None:
            return
        now = int(time.time())
        try:
            for (stream, label), count in sorted(self._counts.items()):
                self._file.write(f"{now},{stream},{label},{count}\n")
            self._file.flush()
        except OSError as error:
            raise SinkError(f"counts sink: cannot write to {self._settings.path}: {error.strerror}") from error
        self._counts.clear()

    def close(self) -> None:
        """See `Sink.close`."""
        if self._file is not None:
            try:
                self._write()
            finally:
                self._file.close()
                self._file = None
