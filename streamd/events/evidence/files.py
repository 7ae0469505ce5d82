"""Files of evidence: their names, how they come into being as a whole, and what errors of the disk are called."""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import re
import threading
import time
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

PARTIAL = ".partial"
"""Ending of a file that is being written. Without it, a file is complete."""
INCOMPLETE = ".incomplete"
"""Before the ending of a clip whose process died: playable up to its last fragment."""
VIDEO = (".mp4", ".mov", ".mkv")
"""Endings of clips."""
_ODD = re.compile(r"[^A-Za-z0-9_-]")
_CHECK_S = 1.0
PROBE_S = 10.0
"""How often is tried whether files can be written again."""
_PROBE = bytes(1 << 18)
_REASONS = {
    errno.ENOSPC: "disk_full", errno.EDQUOT: "disk_full", errno.EFBIG: "disk_full", errno.EROFS: "read_only",
    errno.EACCES: "not_permitted", errno.EPERM: "not_permitted",
}  # fmt: skip


class EvidenceError(Exception):
    """Evidence could not be written.

    Args:
        reason: one word, for the journal.
        text: what happened.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def reason_of(error: BaseException) -> str:
    """The reason of an event's file that failed with `error`."""
    if isinstance(error, EvidenceError):
        return error.reason
    if isinstance(error, OSError):
        return _REASONS.get(error.errno or 0, "io_error")
    return "internal"


def stem_of(stream: str, wall_ns: int, event_id: str) -> Path:
    """Where the files of an event go, relative to the media folder, without an ending: STREAM/DATE/TIME-ID, in UTC.

    What is added begins with a dot, and the id has none.
    """
    moment = datetime.datetime.fromtimestamp(wall_ns // 1_000_000 / 1e3, datetime.timezone.utc)
    name = f"{moment:%H%M%S}.{moment.microsecond // 1000:03d}-{_ODD.sub('_', event_id)[-80:]}"
    return Path(stream, f"{moment:%Y-%m-%d}", name)


class NewFile:
    """A file that appears under its name once it is complete and on the disk. Also what a muxer writes into.

    Args:
        path: its name; folders are made. While being written it is called `path` + `PARTIAL`.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path.with_name(path.name + PARTIAL)
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._descriptor = os.open(self.partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        self.error: OSError | None = None
        """The first failed write: whatever is reported later, this file is not complete."""
        self.size = 0

    def write(self, data: bytes) -> int:
        """See `io.RawIOBase.write`; writes everything."""
        view = memoryview(data)
        done = 0
        try:
            while done < len(view):
                done += os.write(self._descriptor, view[done:])
        except OSError as error:
            self.error = self.error or error
            raise
        self.size += done
        return done

    def seek(self, offset: int, whence: int = 0) -> int:
        """See `io.RawIOBase.seek`."""
        return os.lseek(self._descriptor, offset, whence)

    def tell(self) -> int:
        """See `io.RawIOBase.tell`."""
        return os.lseek(self._descriptor, 0, os.SEEK_CUR)

    def sync(self) -> None:
        """Waits until it is on the disk.

        Raises:
            OSError: it cannot be written.
        """
        os.fsync(self._descriptor)

    def finish(self) -> None:
        """Puts it on the disk under its name.

        Raises:
            OSError: a write has failed, now or before; it is removed.
        """
        try:
            if self.error is not None:
                raise self.error
            self.sync()
            os.rename(self.partial, self.path)
        except OSError:
            self.discard()
            raise
        self._close()

    def discard(self) -> None:
        """Removes it. Idempotent."""
        self._close()
        with contextlib.suppress(OSError):
            os.unlink(self.partial)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)


class Room:
    """Whether there is room for more evidence. One thread.

    Args:
        folder: of the media.
        min_free_bytes: what is to stay free on its file system.
    """

    def __init__(self, folder: Path, min_free_bytes: int) -> None:
        self._folder, self._min_free = folder, min_free_bytes
        self._checked_at = 0.0
        self._free = 0
        self._error: OSError | None = None

    def check(self) -> None:
        """Looks at most once a second.

        Raises:
            EvidenceError: `disk_full`: less is free than is to stay free.
            OSError: the folder cannot be made or looked at.
        """
        now = time.monotonic()
        if now >= self._checked_at + _CHECK_S:
            self._checked_at = now
            try:
                self._folder.mkdir(mode=0o750, parents=True, exist_ok=True)
                found = os.statvfs(self._folder)
                self._free, self._error = found.f_bavail * found.f_frsize, None
            except OSError as error:
                self._error = error
        if self._error is not None:
            raise self._error
        if self._free < self._min_free:
            text = f"{self._folder}: {self._free >> 20} MiB are free, {self._min_free >> 20} MiB are to stay free"
            raise EvidenceError("disk_full", f"{text} (media.min_free_gb)")

    def probe(self) -> None:
        """Writes a file of 256 KiB to the disk, and removes it.

        Raises:
            EvidenceError: see `check`.
            OSError: the folder or the file cannot be written.
        """
        self._checked_at = 0.0
        self.check()
        file = NewFile(self._folder / f"probe-{os.getpid()}-{threading.get_native_id()}")
        try:
            file.write(_PROBE)
            file.sync()
        finally:
            file.discard()


class Writability:
    """Whether files can be written: as the newest one says, and after one that could not be written, a probe. One
    thread; `problem` may be read by any."""

    def __init__(self) -> None:
        self.problem = ""
        """Why the newest file could not be written; empty once one can be."""
        self._probe_at = float("inf")

    @property
    def wait_s(self) -> float | None:
        """How long `look` need not be called; None until the next failure."""
        return None if self._probe_at == float("inf") else max(0.0, self._probe_at - time.monotonic())

    def written(self) -> None:
        """A file was written."""
        self.problem, self._probe_at = "", float("inf")

    def failed(self, error: Exception, reason: str) -> None:
        """A file could not be written."""
        self.problem = f"{reason}: {error}"
        # That a camera's packets cannot be stored has nothing to do with the disk.
        self._probe_at = float("inf") if reason == "not_recordable" else time.monotonic() + PROBE_S

    def look(self, room: Room) -> None:
        """Probes if it is time. Never raises."""
        if time.monotonic() < self._probe_at:
            return
        try:
            room.probe()
        except Exception as error:  # noqa: BLE001 - as for a clip, whatever it is
            self.failed(error, reason_of(error))
            return
        self.written()
        log.info("clips and snapshots can be written again")
