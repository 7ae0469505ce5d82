"""The boxes of a frame as they stand in its message, by compiled code, where it was compiled: `encode.c`.

Without it msgspec does it, with the same bytes."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from streamd.analysis.compiled import address_of, either_way, joined_bytes
from streamd.types import Detections, PartOfBlock

_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64
SHORT = 300
"""Up to this number of boxes a call takes less than 20 µs, and keeps the interpreter lock."""
_FIXED = 320
"""Most bytes of a box without its label, as in encode.c."""
_BOXES = (np.dtype(np.float32), np.dtype(np.float32), np.dtype(np.int32))
_MODELS = 16
"""Of so many label lists what stands before a score is kept."""


class _Labels(NamedTuple):
    """What stands in a message before the score of a box of each class."""

    of: Sequence[str]
    text: bytes
    """One after the other."""
    ends: bytes
    """(classes,) int64: the end of each."""
    longest: int


@functools.cache
def library(path: str | None = None) -> tuple[Any, Any] | None:
    """The compiled encoder: with the interpreter lock, and without; None where there is none.

    Args:
        path: of the file; the one that was built with the package by default.
    """
    arguments = (_COUNT, _POINTER, _COUNT, _COUNT, _COUNT, _COUNT, _POINTER, _POINTER, _COUNT, _POINTER)
    return either_way(Path(__file__).with_name("_encode"), "encode_part", arguments, path)


class BoxEncoder:
    """Encodes boxes. Any thread.

    Args:
        encoding: of the messages.
        functions: see `library`.
    """

    def __init__(self, encoding: Literal["json", "msgpack"], functions: tuple[Any, Any]) -> None:
        self._packed, self._functions = encoding == "msgpack", functions
        self._labels: dict[int, _Labels] = {}
        self._rooms: list[tuple[memoryview, int]] = []
        """Memory that is not in use, and its address."""

    def __call__(self, d: Detections, before: bytes = b"", after: bytes = b"") -> bytes | None:
        """The value of `detections` in the message of a frame without details and attributes, between other bytes; None
        where msgspec is to make it: a number is not finite or huge, or a class has no label."""
        boxes: bytes | int
        part = d.boxes
        if type(part) is PartOfBlock:
            block, first, n = part.block, part.begin, part.end - part.begin
            boxes, columns, tracked = block.address, block.room, block.tracked
        else:
            first, n, tracks = 0, len(d.score), d.tracks
            columns, tracked = n, tracks is not None
            if tracks is None:
                boxes = joined_bytes((d.xyxy, d.score, d.class_id), 24 * n, _BOXES)
            else:
                boxes = joined_bytes(
                    (tracks.number, tracks.age_s, tracks.velocity, d.xyxy, d.score, d.class_id), 56 * n, _TRACKED
                )
        labels = self._labels.get(id(d.model.labels)) or self._prepared(d.model.labels)
        size = 8 + n * (_FIXED + labels.longest)
        # Taking from a list and appending to it are atomic.
        room, address = self._rooms.pop() if self._rooms else _NO_ROOM
        if len(room) < size:
            memory = np.empty(2 * size, np.uint8)
            room, address = memoryview(memory), address_of(memory)  # type: ignore[arg-type]
        written = self._functions[n > SHORT](
            n, boxes, columns, first, tracked, self._packed, labels.text, labels.ends, len(labels.of), address
        )
        made = b"".join((before, room[:written], after)) if written >= 0 else None
        self._rooms.append((room, address))
        return made

    def _prepared(self, labels: Sequence[str]) -> _Labels:
        before = [self._before(i, label) for i, label in enumerate(labels)]
        ends = np.cumsum([len(each) for each in before], dtype=np.int64).tobytes()
        prepared = _Labels(labels, b"".join(before), ends, max(map(len, before), default=0))
        if len(self._labels) >= _MODELS:
            self._labels.clear()
        # It refers to the labels, so that no others get their number.
        self._labels[id(labels)] = prepared
        return prepared

    def _before(self, class_id: int, label: str) -> bytes:
        if self._packed:
            pack = msgspec.msgpack.encode
            return b"".join(map(pack, ("class_id", class_id, "label", label, "score")))
        return b'{"class_id":%d,"label":%b,"score":' % (class_id, msgspec.json.encode(label))


_TRACKED = (np.dtype(np.int64), np.dtype(np.float64), np.dtype(np.float64), *_BOXES)
_NO_ROOM = (memoryview(b""), 0)
