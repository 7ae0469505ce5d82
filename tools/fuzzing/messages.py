"""Data that streamd itself wrote: its caches, and the messages that a subscriber receives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing.target import Target
from streamd.errors import ConfigError


class Caches(Target):
    """Damaged caches."""

    name = "caches"
    what = "calibration caches, plan cache, flight recorder's memory"
    tokens = (b"null", b"NaN", b"[]", b"{}", b"-1", b"[" * 3000, b'"counts"', b"1e400", b"\xff")

    @classmethod
    def seeds(cls, folder: Path) -> list[bytes]:
        from streamd.models.calibrate import Histogram
        from streamd.runtime.recorder.memory import LOG, Memory

        histogram = Histogram()
        histogram.add(np.linspace(-3, 9, 4000, dtype=np.float32))
        body = {"version": 2, "key": "k", "histograms": {"x": histogram.as_json()}, "peaks": {"x": [9.0, -0.25]}}
        memory = Memory({"pid": 1, "boot_id": "b", "started": 1.0}, 1)
        memory.stream("a", 5, (1, 1, 0, 0, 0), 1, 0, 0)
        memory.note(LOG, {"event": "x", "level": "warning"})
        block = bytes(memory._map)
        begin = memory._at[2]
        # Most of it is empty: only the header and the first rows are kept, and the target restores the rest.
        kept = block[:4400] + block[begin : begin + 256] + block[memory._at[3] : memory._at[3] + 4096]
        return [json.dumps(body).encode(), b'{"key": "k"}', b"M" + kept]

    def open(self) -> None:
        from streamd.runtime.recorder.memory import Memory

        memory = Memory({}, 1)
        self._at = memory._at

    def _block(self, data: bytes) -> bytes:
        head, rows, notes = data[1:4401], data[4401:4657], data[4657:]
        block = bytearray(self._at[-1])
        block[: len(head)] = head
        block[self._at[2] : self._at[2] + len(rows)] = rows
        block[self._at[3] : self._at[3] + len(notes)] = notes
        return bytes(block[: self._at[-1]])

    def run(self, data: bytes) -> None:
        from streamd.engine.tensorrt.calibrator import _note_of
        from streamd.models.cache import load
        from streamd.models.calibrate import threshold

        if data[:1] == b"M":
            self._recorder(data)
            return
        found = load(self.file("c.json", data), "k")
        self.file("cache.json", data)
        _note_of(self.folder / "cache")
        for histogram in (found[0] if found is not None else {}).values():
            for method in ("minmax", "percentile", "mse", "entropy"):
                threshold(histogram, method)

    def _recorder(self, data: bytes) -> None:
        from streamd.runtime.recorder.memory import read_left_behind
        from streamd.runtime.recorder.summary import summary

        path = self.file("flight-1", self._block(data))
        try:
            record = read_left_behind(path)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        breach: dict[str, Any] = dict.fromkeys(
            ("reason", "detail", "at", "version", "pid", "host", "config", "boot_id", "traceback"), "x"
        )
        summary(record, {**breach, "frames_held_s": 0.0, "seconds_held_s": 0.0, "seconds": 5.0})


class Messages(Target):
    """Messages received by a subscriber: `streamd watch`."""

    name = "messages"
    what = "messages on the subscriber's side: decode, watch's table"
    share = 1.5
    tokens = (
        b"null",
        b"NaN",
        b"1e400",
        b"[]",
        b"{}",
        b"\x91" * 40,
        b"\xc1",
        b"\xdf\xff\xff\xff\xff",
        b"streamd/1/",
        b"\xff",
    )

    @classmethod
    def seeds(cls, folder: Path) -> list[bytes]:
        from streamd.sinks.encoding import detections_message, encoder, status_message
        from streamd.sinks.envelope import DETECTIONS, STATUS
        from streamd.types import Boxes, Detections, ModelInfo, StageTimes, StreamCounts, StreamStatus

        seen = Detections(
            "gate",
            0,
            7,
            280_000_000,
            1_700_000_000_000_000_000,
            1920,
            1080,
            StageTimes(1, 2, 3, 4, 5, 6),
            ModelInfo("yolov5n", "0" * 64, ("person",)),
            Boxes(np.array([[1, 2, 3, 4]], np.float32), np.array([0.9], np.float32), np.array([0], np.int32)),
        )
        status = StreamStatus("gate", "BACKOFF", "refused", "nothing listens", 1, 1_700_000_000_000_000_000, 0.5)
        made = []
        for encoding in ("json", "msgpack"):
            encode = encoder(encoding)
            made.append(DETECTIONS.topic("gate") + b"\n" + encode(detections_message(seen, "b", 0)))
            made.append(STATUS.topic("gate") + b"\n" + encode(status_message(status, StreamCounts(), "b")))
        return made

    def open(self) -> None:
        from streamd.cli.board import Board

        self._board = Board()

    def run(self, data: bytes) -> None:
        from streamd.sinks.message import DetectionsMessage, StatusMessage, decode

        message = decode(data.split(b"\n", 1))
        if not isinstance(message, (DetectionsMessage, StatusMessage)):
            return
        self._board.add(message, 1.0)
        self._board.rows[message.stream].view(1.5)
        if len(self._board.rows) > 50:
            self.open()


TARGETS: tuple[type[Target], ...] = (Caches, Messages)
