"""JSON lines to a file or standard output: one message a line, whole or not at all."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from streamd.errors import SinkError
from streamd.sinks import JsonlSettings
from streamd.sinks.message import STATUS_SUFFIX, Gaps, detections_message, encoder, status_message
from streamd.types import Detections, StreamCounts, StreamStatus


class JsonlSink:
    """See `streamd.sinks.Sink`.

    Args:
        settings: path and rotation.
        boot_id: identity of this process in every message.
    """

    def __init__(self, settings: JsonlSettings, *, boot_id: str) -> None:
        self._settings = settings
        self._boot_id = boot_id
        self._encode = encoder("json")
        self._gaps = Gaps()
        self._fd = -1
        self._size = 0
        self._limit = int(settings.rotate_mb * 1e6) if settings.rotate_mb else 0

    @property
    def _is_stdout(self) -> bool:
        return self._settings.path == "-"

    def open(self) -> None:
        """See `Sink.open`."""
        if self._is_stdout:
            sys.stdout.flush()
            self._fd = sys.stdout.fileno()
            return
        path = Path(self._settings.path)
        try:
            # Unbuffered and appending: a line is one write, so a crash cannot leave half of an old one.
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
            self._size = os.fstat(self._fd).st_size
            self._mend(path)
        except OSError as error:
            raise SinkError(
                f"jsonl sink: cannot open {path}: {error.strerror}; check the folder and its owner"
            ) from error

    def _mend(self, path: Path) -> None:
        """Ends a line that an earlier process left unfinished."""
        if self._size:
            with path.open("rb") as handle:
                handle.seek(-1, os.SEEK_END)
                if handle.read(1) != b"\n":
                    self._size += os.write(self._fd, b"\n")

    def publish(self, detections: Detections) -> str | None:
        """See `Sink.publish`."""
        stream, seq = detections.stream, detections.seq
        dropped = self._gaps.before(stream, seq)
        try:
            self._write(self._encode(detections_message(detections, self._boot_id, dropped)) + b"\n")
        except SinkError:
            self._gaps.take_back(stream, seq, dropped)
            raise
        return None

    def status(self, status: StreamStatus, counts: StreamCounts) -> None:
        """See `Sink.status`."""
        if self._settings.status:
            self._write(self._encode(status_message(status, counts, self._boot_id)) + b"\n")

    def forward(self, name: bytes, payload: bytes) -> str | None:
        """See `Sink.forward`."""
        if self._settings.status or not name.endswith(STATUS_SUFFIX):
            self._write(payload + b"\n")
        return None

    def _write(self, line: bytes) -> None:
        if self._limit and self._size and self._size + len(line) > self._limit:
            self._rotate()
        done = 0
        try:
            while done < len(line):
                done += os.write(self._fd, line[done:])
        except OSError as error:
            if done and not self._is_stdout:
                # A full disk took part of the line: take it back, so that the file stays lines.
                os.ftruncate(self._fd, self._size)
            raise SinkError(
                f"jsonl sink: cannot write to {self._settings.path}: {error.strerror}; "
                "messages are lost until it can be written again"
            ) from error
        self._size += done

    def _rotate(self) -> None:
        path = Path(self._settings.path)
        try:
            for i in range(self._settings.keep - 1, 0, -1):
                older = path.with_name(f"{path.name}.{i}")
                if older.exists():
                    older.replace(path.with_name(f"{path.name}.{i + 1}"))
            path.replace(path.with_name(f"{path.name}.1"))
        except OSError as error:
            raise SinkError(f"jsonl sink: cannot rotate {path}: {error.strerror}") from error
        os.close(self._fd)
        self._fd = -1
        self.open()

    def poll(self) -> None:
        """See `Sink.poll`. Nothing is buffered, so there is nothing to do."""

    def close(self) -> None:
        """See `Sink.close`."""
        if self._fd >= 0 and not self._is_stdout:
            os.close(self._fd)
        self._fd = -1
