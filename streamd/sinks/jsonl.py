"""JSON lines to a file or standard output: one message per line, complete or not at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from streamd.errors import SinkError
from streamd.settings import FieldPath, PathMark
from streamd.sinks import SINKS, Sink, SinkSettings
from streamd.sinks.envelope import STATUS, Message

STDOUT = "-"


@SINKS.register
class JsonlSettings(SinkSettings):
    """JSON lines, one message per line, to a file or standard output."""

    kind: Literal["jsonl"] = "jsonl"
    path: Annotated[str, PathMark((STDOUT,))] = Field(STDOUT, description="File to append to; - for standard output.")
    rotate_mb: float | None = Field(None, gt=0, description="Size at which a new file is started, in megabytes.")
    keep: int = Field(5, ge=1, le=1000, description="Number of rotated files to keep (path.1 is the newest).")
    status: bool = Field(False, description="Also write status messages.")

    def claims(self) -> Iterator[tuple[FieldPath, str, str]]:
        """See `SinkSettings.claims`."""
        yield ("path",), "file", "standard output" if self.path == STDOUT else os.path.realpath(self.path)

    def open(self) -> Sink:
        """See `SinkSettings.open`."""
        return JsonlSink(self)


class JsonlSink(Sink):
    """See `streamd.sinks.Sink`.

    Args:
        settings: path and rotation.
    """

    def __init__(self, settings: JsonlSettings) -> None:
        self._settings = settings
        self._fd = -1
        self._size = 0
        self._limit = int(settings.rotate_mb * 1e6) if settings.rotate_mb else 0

    @property
    def _is_stdout(self) -> bool:
        return self._settings.path == STDOUT

    def open(self) -> None:
        """See `Sink.open`."""
        if self._is_stdout:
            sys.stdout.flush()
            self._fd = sys.stdout.fileno()
            return
        path = Path(self._settings.path)
        try:
            # Unbuffered and appending: a line is one write, so a crash cannot leave part of an earlier line.
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
            self._size = os.fstat(self._fd).st_size
            self._mend(path)
        except OSError as error:
            raise SinkError(
                f"jsonl sink: cannot open {path}: {error.strerror}; check that the folder exists and who owns it"
            ) from error

    def _mend(self, path: Path) -> None:
        """Completes a line that an earlier process left unfinished."""
        if self._size:
            with path.open("rb") as handle:
                handle.seek(-1, os.SEEK_END)
                if handle.read(1) != b"\n":
                    self._size += os.write(self._fd, b"\n")

    def send(self, message: Message) -> str | None:
        """See `Sink.send`."""
        if self._settings.status or message.kind is not STATUS:
            self._write(message.payload + b"\n")
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
                # A full disk accepted part of the line: remove it, so that the file contains only complete lines.
                os.ftruncate(self._fd, self._size)
            raise SinkError(
                f"jsonl sink: cannot write to {self._settings.path}: {error.strerror}; "
                "messages are lost until it is writable again"
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

    def close(self) -> None:
        """See `Sink.close`."""
        if self._fd >= 0 and not self._is_stdout:
            os.close(self._fd)
        self._fd = -1
