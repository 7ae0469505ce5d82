"""JSON lines to a file or standard output: one message per line, complete or not at all."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from streamd.errors import SinkError
from streamd.settings import FieldPath, PathMark, Problems
from streamd.settings.places import unwritable_file
from streamd.sinks import SINKS, Sink, SinkSettings
from streamd.sinks.envelope import GLANCE, STATUS, Message, MessageKind

STDOUT = "-"


@SINKS.register
class JsonlSettings(SinkSettings):
    """JSON lines, one message per line, to a file or standard output."""

    kind: Literal["jsonl"] = "jsonl"
    path: Annotated[str, PathMark((STDOUT,))] = Field(STDOUT, description="File to append to; - for standard output.")
    rotate_mb: float | None = Field(
        None, gt=0, le=1e9, description="Size at which a new file is started, in megabytes. Default: never."
    )
    keep: int = Field(5, ge=1, le=1000, description="Number of rotated files to keep (path.1 is the newest).")
    status: bool = Field(False, description="Also write status messages.")
    glances: bool = Field(
        False, description="Also write a message for each frame that the network did not look at (look.when: motion)."
    )

    @property
    def wants(self) -> frozenset[MessageKind]:
        """See `SinkSettings.wants`."""
        return super().wants | {GLANCE} if self.glances else super().wants

    def check(self) -> Problems:
        """See `KindSettings.check`."""
        if self.rotate_mb is not None and (self.path == STDOUT or _is_special(self.path)):
            yield ("rotate_mb",), f"{self.path} is no regular file and cannot be rotated; remove rotate_mb"

    @property
    def address(self) -> str:
        """See `SinkSettings.address`."""
        return "standard output" if self.path == STDOUT else self.path

    def claims(self) -> Iterator[tuple[FieldPath, str, str]]:
        """See `SinkSettings.claims`."""
        yield ("path",), "file", "standard output" if self.path == STDOUT else os.path.realpath(self.path)

    def look(self) -> Iterator[tuple[FieldPath, str]]:
        """See `SinkSettings.look`."""
        if self.path != STDOUT and (found := unwritable_file(Path(self.path))) is not None:
            yield ("path",), found

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
        self._path = Path(settings.path)
        self._fd = -1
        self._inode = (0, 0)
        """Device and number of the file that is open."""
        self._regular = False
        """Neither standard output, nor a device, nor a FIFO."""
        self._limit = int(settings.rotate_mb * 1e6) if settings.rotate_mb else 0

    def open(self) -> None:
        """See `Sink.open`. A FIFO may wait for its reader: messages are lost, and told, until there is one."""
        if self._settings.path == STDOUT:
            sys.stdout.flush()
            self._fd = sys.stdout.fileno()
            return
        try:
            self._fd = self._opened(self._path)
            found = os.fstat(self._fd)
            self._inode, self._regular = (found.st_dev, found.st_ino), stat.S_ISREG(found.st_mode)
            self._mend()
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise SinkError(
                f"jsonl sink: cannot open {self._path}: {error.strerror}; check that the folder exists and who owns it"
            ) from error

    @staticmethod
    def _opened(path: Path, *, new: bool = False) -> int:
        # Unbuffered and appending: a line is one write, so a crash cannot leave part of an earlier line. A FIFO must
        # neither be waited for nor written to with waiting.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_EXCL if new else 0)
        return os.open(path, flags, 0o640)

    def _mend(self) -> None:
        """Completes a line that an earlier process left unfinished."""
        if self._regular and os.fstat(self._fd).st_size:
            with self._path.open("rb") as handle:
                handle.seek(-1, os.SEEK_END)
                if handle.read(1) != b"\n":
                    os.write(self._fd, b"\n")

    def send(self, message: Message) -> str | None:
        """See `Sink.send`."""
        if self._settings.status or message.kind is not STATUS:
            self._write(message.payload + b"\n")
        return None

    def _write(self, line: bytes) -> None:
        if self._fd < 0:
            raise SinkError(f"jsonl sink: {self._path} has no reader; messages are lost until it has one")
        if self._limit:
            size = os.fstat(self._fd).st_size
            if size and size + len(line) > self._limit:
                self._rotate()
        done = 0
        try:
            while done < len(line):
                done += os.write(self._fd, line[done:])
        except OSError as error:
            if done and self._regular:
                # A full disk accepted part of the line: remove it, so that the file contains only complete lines. Its
                # size is asked for: somebody may have cut the file since.
                os.ftruncate(self._fd, max(0, os.fstat(self._fd).st_size - done))
            raise SinkError(
                f"jsonl sink: cannot write to {self._settings.address}: {error.strerror}; "
                "messages are lost until it is writable again"
            ) from error

    def poll(self) -> None:
        """See `Sink.poll`. Follows a file that was renamed or removed, as logrotate does, and a FIFO's reader."""
        if self._settings.path == STDOUT or (self._fd >= 0 and self._in_place()):
            return
        self.close()
        self.open()

    def _in_place(self) -> bool:
        """Whether the path still leads to the file that is open."""
        try:
            found = os.stat(self._path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._inode

    def _rotate(self) -> None:
        """Starts a new file. Where a step fails the old one stays in use, and nothing is shifted twice."""
        if not self._in_place():
            # Somebody has taken the file away: what lies there now is not ours to shift.
            self.poll()
            return
        path, keep = self._path, self._settings.keep
        following = path.with_name(f"{path.name}.new")
        archives = [path.with_name(f"{path.name}.{i}") for i in range(1, keep + 1)]
        fd = -1
        try:
            following.unlink(missing_ok=True)
            fd = self._opened(following, new=True)
            # Up to the first free number only: a rotation that is tried again finds .1 free, and moves nothing.
            last = next((i for i, archive in enumerate(archives) if not os.path.lexists(archive)), keep - 1)
            for archive in archives[: last + 1]:
                if archive.is_dir() and not archive.is_symlink():
                    raise IsADirectoryError(errno.EISDIR, f"{archive} is a folder; move it away")
            for i in range(last, 0, -1):
                archives[i - 1].replace(archives[i])
            path.replace(archives[0])
            following.replace(path)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
                following.unlink(missing_ok=True)
            raise SinkError(f"jsonl sink: cannot rotate {path}: {error.strerror}") from error
        os.close(self._fd)
        self._fd = fd
        found = os.fstat(fd)
        self._inode = found.st_dev, found.st_ino

    def close(self) -> None:
        """See `Sink.close`."""
        if self._fd >= 0 and self._settings.path != STDOUT:
            os.close(self._fd)
        self._fd = -1


def _is_special(path: str) -> bool:
    """Whether there is something at `path` that is neither a file nor a folder."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
