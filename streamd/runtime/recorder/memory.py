"""The recorder's memory: three rings of fixed size in one block, which may outlive the process.

If $RUNTIME_DIRECTORY is set, the block is a file there, which systemd keeps in memory and across restarts: its content
survives SIGKILL, a segmentation fault and the kernel's out-of-memory killer.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import mmap
import os
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamd.types import Detections

MAGIC = b"streamd1"
FRAMES_A_SECOND, STREAMS_A_SECOND = 1000, 256
"""The frame rate that the rings are sized for: at higher rates they hold fewer seconds."""
NOTES, NOTE_BYTES = 1024, 2048
NAMES, NAME_BYTES = 4096, 64
_HEADER_BYTES = 4096

_FRAME = struct.Struct("<IIqqqqqqq")
_STREAM = struct.Struct("<qqqqqqIIII")
_NOTE = struct.Struct("<QdII")
_PREFIX = struct.Struct("<8sqI")

FRAME_TYPE = np.dtype(
    [(n, "<u4") for n in ("stream", "epoch")]
    + [(n, "<i8") for n in ("seq", "captured", "decoded", "batched", "preprocessed", "inferred", "postprocessed")]
)
"""Times are monotonic nanoseconds, see `types.StageTimes`."""
STREAM_TYPE = np.dtype(
    [(n, "<i8") for n in ("at", "received", "published", "dropped", "held", "missed")]
    + [(n, "<u4") for n in ("stream", "state", "waiting", "reconnects")]
)
"""Totals of one stream at one second; `at` is monotonic nanoseconds, `waiting` the frames in its ring."""

LOG, STATUS, PROCESS = 1, 2, 3
"""Kinds of notes."""


@dataclass(frozen=True, slots=True)
class Note:
    """An event, or the state of the process at one second."""

    wall_s: float
    kind: int
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Record:
    """A copy of the recorded history, oldest first."""

    header: Mapping[str, Any]
    wall_minus_monotonic_ns: int
    names: list[str]
    """Names of streams, by number."""
    frames: npt.NDArray[np.void]
    streams: npt.NDArray[np.void]
    notes: list[Note]

    def wall_s(self, monotonic_ns: Any) -> Any:
        """Converts a monotonic time, or an array of them, to Unix seconds."""
        return (monotonic_ns + self.wall_minus_monotonic_ns) / 1e9


class Memory:
    """The rings. Any thread may write; no writer waits for another.

    Args:
        header: description of the process, a small JSON object.
        seconds: the history that the rings are sized for.
        folder: where to create the block as a file; None, or a failure to create it: anonymous memory.
    """

    def __init__(self, header: Mapping[str, Any], seconds: float, folder: Path | None = None) -> None:
        self.frames = max(1000, int(seconds * FRAMES_A_SECOND))
        self.streams = max(1000, int(seconds * STREAMS_A_SECOND))
        header = {**header, "frames": self.frames, "streams": self.streams}
        self._at = _offsets(self.frames, self.streams)
        self.path: Path | None = None
        self._file: int | None = None
        if folder is not None:
            with contextlib.suppress(OSError):
                self._open_file(folder / f"flight-{os.getpid()}")
        self._map = mmap.mmap(-1 if self._file is None else self._file, self._at[-1])
        text = json.dumps(header).encode()[: _HEADER_BYTES - _PREFIX.size]
        self._map[_PREFIX.size : _PREFIX.size + len(text)] = text
        self._header_bytes = len(text)
        self.set_clock()
        self._seconds = seconds
        self._names: dict[str, int] = {}
        self._gone: dict[str, float] = {}
        """When streams were removed from the configuration, monotonic seconds, the earliest first."""
        self._lock = threading.Lock()
        self._next_frame = itertools.count().__next__
        self._next_stream = itertools.count().__next__
        self._next_note = itertools.count(1).__next__

    @property
    def size(self) -> int:
        """Bytes."""
        return self._at[-1]

    def _open_file(self, path: Path) -> None:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            # The lock shows that the owner is alive. Space is allocated now: a page missing later would be a SIGBUS.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(file, 0, self._at[-1])
        except OSError:
            os.close(file)
            path.unlink(missing_ok=True)
            raise
        self.path, self._file = path, file

    def set_clock(self) -> None:
        """Records the current offset between wall time and monotonic time."""
        _PREFIX.pack_into(self._map, 0, MAGIC, time.time_ns() - time.monotonic_ns(), self._header_bytes)

    def number(self, stream: str) -> int:
        """The stream's number in the rings."""
        found = self._names.get(stream)
        if found is not None:
            return found
        with self._lock:
            number = self._names.setdefault(stream, self._free_number())
            at = self._at[0] + number * NAME_BYTES
            name = b"(others)" if number == NAMES - 1 else stream.encode()[:NAME_BYTES]
            self._map[at : at + NAME_BYTES] = name.ljust(NAME_BYTES, b"\0")
        return number

    def forget(self, stream: str) -> None:
        """The stream was removed: another one may have its number once no row of it is kept any more."""
        with self._lock:
            if stream in self._names:
                self._gone.setdefault(stream, time.monotonic())

    def keep(self, stream: str) -> None:
        """A removed stream is back."""
        if stream in self._gone:
            with self._lock:
                self._gone.pop(stream, None)

    def _free_number(self) -> int:
        if len(self._names) < NAMES - 1:
            return len(self._names)
        oldest = next(iter(self._gone), None)
        if oldest is None or time.monotonic() - self._gone[oldest] <= self._seconds:
            return NAMES - 1
        del self._gone[oldest]
        return self._names.pop(oldest)

    def frame(self, detections: Detections) -> None:
        """Records a published frame. The hot path: no lock, no lasting allocation."""
        t = detections.times
        stream = self._names.get(detections.stream)
        if stream is None:
            stream = self.number(detections.stream)
        at = self._at[1] + (self._next_frame() % self.frames) * _FRAME.size
        _FRAME.pack_into(
            self._map, at, stream, detections.epoch, detections.seq,
            t.captured, t.decoded, t.batched, t.preprocessed, t.inferred, t.postprocessed,
        )  # fmt: skip

    def stream(self, stream: str, at_ns: int, totals: tuple[int, int, int, int, int], state: int, waiting: int,
               reconnects: int) -> None:  # fmt: skip
        """Records one second of one stream; see `STREAM_TYPE`."""
        at = self._at[2] + (self._next_stream() % self.streams) * _STREAM.size
        _STREAM.pack_into(self._map, at, at_ns, *totals, self.number(stream), state, waiting, reconnects)

    def note(self, kind: int, values: Mapping[str, Any]) -> None:
        """Records an event; one that is too long is truncated."""
        room = NOTE_BYTES - _NOTE.size
        text = json.dumps(values, default=str).encode()
        if len(text) > room:
            # The end of a traceback is more informative than its beginning.
            text = json.dumps({k: _cut(v) for k, v in values.items()}, default=str).encode()
        if len(text) > room:
            text = json.dumps({"event": "(too long)", "text": text.decode()[: room // 2]}).encode()
        number = self._next_note()
        at = self._at[3] + (number % NOTES) * NOTE_BYTES
        self._map[at + _NOTE.size : at + _NOTE.size + len(text)] = text
        _NOTE.pack_into(self._map, at, number, time.time(), len(text), kind)

    def read(self) -> Record:
        """A copy of everything in the rings."""
        return _read(self._map)

    def close(self) -> None:
        """Discards everything, for a process that ends normally. Idempotent."""
        if self._file is not None and self.path is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None


def _cut(value: Any) -> Any:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return value if len(text) <= 160 else f"…{text[-700:]}" if "Traceback" in text else f"{text[:150]}…"


def _offsets(frames: int, streams: int) -> tuple[int, ...]:
    """Offsets of the names, frames, streams and notes, and the end."""
    sizes = (NAMES * NAME_BYTES, frames * _FRAME.size, streams * _STREAM.size, NOTES * NOTE_BYTES)
    return tuple(itertools.accumulate(sizes, initial=_HEADER_BYTES))


def left_behind(folder: Path) -> list[Path]:
    """Blocks in `folder` whose processes are dead."""
    found = []
    for path in sorted(folder.glob("flight-*")):
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found.append(path)
    return found


def read_left_behind(path: Path) -> Record:
    """What a dead process recorded.

    Raises:
        ValueError: the file is not such a block.
        OSError: it cannot be read.
    """
    try:
        return _read(path.read_bytes())
    except (struct.error, KeyError, TypeError) as error:
        raise ValueError(f"not a flight recorder's block: {error!r}") from error


def _read(block: mmap.mmap | bytes) -> Record:
    magic, offset_ns, length = _PREFIX.unpack_from(block, 0)
    if magic != MAGIC:
        raise ValueError("not a flight recorder's block")
    header = json.loads(bytes(block[_PREFIX.size : _PREFIX.size + length]))
    names_at, frames_at, streams_at, notes_at, end = _offsets(header["frames"], header["streams"])
    if len(block) < end:
        raise ValueError("cut short")
    frames = np.frombuffer(block, FRAME_TYPE, header["frames"], frames_at)
    streams = np.frombuffer(block, STREAM_TYPE, header["streams"], streams_at)
    names = [
        bytes(block[at : at + NAME_BYTES]).rstrip(b"\0").decode(errors="replace")
        for at in range(names_at, frames_at, NAME_BYTES)
    ]
    names = list(itertools.takewhile(bool, names))
    # A row that was never written is all zeros; one that was being written may contain anything.
    frames = frames[(frames["postprocessed"] > 0) & (frames["stream"] < len(names))]
    streams = streams[(streams["at"] > 0) & (streams["stream"] < len(names))]
    return Record(
        header,
        offset_ns,
        names,
        frames[np.argsort(frames["postprocessed"], kind="stable")],
        streams[np.argsort(streams["at"], kind="stable")],
        _read_notes(block, notes_at),
    )


def _read_notes(block: mmap.mmap | bytes, start: int) -> list[Note]:
    found = []
    for at in range(start, start + NOTES * NOTE_BYTES, NOTE_BYTES):
        number, wall_s, length, kind = _NOTE.unpack_from(block, at)
        if number and length <= NOTE_BYTES - _NOTE.size:
            # An entry that is just being written is not valid JSON: skip it.
            with contextlib.suppress(ValueError):
                values = json.loads(bytes(block[at + _NOTE.size : at + _NOTE.size + length]))
                found.append((number, Note(wall_s, kind, values)))
    return [note for _, note in sorted(found, key=lambda each: each[0])]
