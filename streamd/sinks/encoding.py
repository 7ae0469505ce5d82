"""Makes messages of version 1 from detections, statuses and frames that were not looked at, and encodes them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from streamd.sinks.attributes import attributes_of
from streamd.sinks.message import (
    SCHEMA,
    Detection,
    DetectionsMessage,
    GlanceMessage,
    Latency,
    Looked,
    Model,
    StatusMessage,
    Track,
)
from streamd.sinks.native import BoxEncoder, library
from streamd.types import Details, Detections, Float32Array, Glanced, StreamCounts, StreamStatus

_STEPS = np.array([[100.0, 100.0, 100.0, 100.0, 10_000.0]])
"""Precision of corners and score, as fractions of 1; (1, 5), so that NumPy need not broadcast for a single box."""
_TRACK_STEPS = np.array([[100.0, 100.0, 100.0, 100.0, 10_000.0, 1000.0, 10.0, 10.0]])
"""The same, then age and velocity of the track."""


def _rounded(d: Detections) -> list[Detection]:
    """Rounds all boxes of a frame at once: one by one, it was the largest part of a frame's cost in Python.

    The product of a float32 and a step is exact in float64, so these are the very floats that round() gives.
    """
    n = len(d.score)
    if not n:
        return []
    tracks = d.tracks
    steps = _STEPS if tracks is None else _TRACK_STEPS
    rows = np.empty((n, steps.size))
    rows[:, :4], rows[:, 4] = d.xyxy, d.score
    if tracks is not None:
        rows[:, 5], rows[:, 6:] = tracks.age_s, tracks.velocity
    rows *= steps
    np.rint(rows, rows)
    rows /= steps
    labels = d.model.labels
    if d.details is not None or d.attributes is not None:
        return _detailed(d, d.details or Details(), rows)
    if tracks is None:
        return [
            Detection(class_id, labels[class_id], score, (x1, y1, x2, y2))
            for class_id, (x1, y1, x2, y2, score) in zip(d.class_id.tolist(), rows.tolist(), strict=True)
        ]
    return [
        Detection(
            class_id, labels[class_id], score, (x1, y1, x2, y2),
            Track(number, age, True, (vx, vy)) if number else None,
        )
        for class_id, number, (x1, y1, x2, y2, score, age, vx, vy) in zip(
            d.class_id.tolist(), tracks.number.tolist(), rows.tolist(), strict=True
        )
    ]  # fmt: skip


def _detailed(d: Detections, details: Details, rows: npt.NDArray[np.float64]) -> list[Detection]:
    """The boxes with what a model says of them besides; `rows` are rounded, in the columns of `_TRACK_STEPS`."""
    nothing = [msgspec.UNSET] * len(rows)
    tracks: Any = nothing
    if d.tracks is not None:
        tracks = [
            Track(number, age, True, (vx, vy)) if number else None
            for number, (age, vx, vy) in zip(d.tracks.number.tolist(), rows[:, 5:].tolist(), strict=True)
        ]
    keypoints: Any = nothing
    if details.keypoints is not None:
        steps = np.array([100.0, 100.0, 1000.0])
        keypoints = (np.rint(details.keypoints * steps) / steps).tolist()
    oriented: Any = nothing if details.oriented is None else _points(details.oriented)
    polygons: Any = nothing if details.polygons is None else [_points(p) for p in details.polygons]
    attributes: Any = nothing if d.attributes is None else [attributes_of(said) for said in d.attributes]
    return [
        Detection(class_id, d.model.labels[class_id], score, (x1, y1, x2, y2), *more)
        for class_id, (x1, y1, x2, y2, score), *more in zip(
            d.class_id.tolist(), rows[:, :5].tolist(), tracks, keypoints, oriented, polygons, attributes, strict=True
        )
    ]


def _points(xy: Float32Array) -> Any:
    """Nested lists of points (…, 2), rounded to a tenth of a pixel."""
    return (np.rint(xy.astype(np.float64) * 10) / 10).tolist()


def _counts(d: Detections) -> Any:
    return msgspec.UNSET if d.counts is None else d.counts


def _look(d: Detections) -> Any:
    return msgspec.UNSET if d.why is None else Looked(d.why, d.unlooked)


def _fields(d: Detections, boot_id: str) -> Any:
    """All fields of a frame's message before `dropped`, in order."""
    t = d.times
    now_wall, now = time.time(), time.monotonic_ns()
    return (
        SCHEMA,
        boot_id,
        d.stream,
        d.epoch,
        d.seq,
        d.pts_ns,
        d.wall_ns / 1e9,
        d.clock,
        now_wall,
        d.width,
        d.height,
        Model(d.model.name, d.model.sha256),
        Latency(
            round((t.decoded - t.captured) / 1e6, 3),
            round((t.batched - t.decoded) / 1e6, 3),
            round((t.preprocessed - t.batched) / 1e6, 3),
            round((t.inferred - t.preprocessed) / 1e6, 3),
            round((t.postprocessed - t.inferred) / 1e6, 3),
            round((now - t.captured) / 1e6, 3),
        ),
    )


def detections_message(
    d: Detections, boot_id: str, dropped: int, source: str | msgspec.UnsetType = msgspec.UNSET, generation: int = 0
) -> DetectionsMessage:
    """The message of one frame. Box corners are rounded to 0.01 pixel, scores to 0.0001."""
    told = generation or msgspec.UNSET
    fields: Any = (*_fields(d, boot_id), dropped, _rounded(d), _counts(d), source, _look(d), told)
    return DetectionsMessage(*fields)


_NAMES = DetectionsMessage.__struct_fields__
_SPLIT_AT = _NAMES.index("dropped")
_Before = msgspec.defstruct("_Before", [(name, Any) for name in _NAMES[:_SPLIT_AT]], frozen=True)
_ENCODERS: dict[str, Callable[[Any], bytes]] = {
    "json": msgspec.json.Encoder().encode,
    "msgpack": msgspec.msgpack.Encoder().encode,
}
_COMPILED = library()
_NATIVE: dict[str, BoxEncoder | None] = {
    "json": None if _COMPILED is None else BoxEncoder("json", _COMPILED),
    "msgpack": None if _COMPILED is None else BoxEncoder("msgpack", _COMPILED),
}
_KEY = {"json": b',"dropped":', "msgpack": _ENCODERS["msgpack"]("dropped")}
_MAP_16 = 0xDE


_BOXES = {"json": b',"detections":', "msgpack": _ENCODERS["msgpack"]("detections")}


class _Rest(msgspec.Struct, frozen=True):
    """All fields of a frame's message after `detections`."""

    counts: Any
    look: Any
    generation: Any


class _After(msgspec.Struct, frozen=True):
    """All fields of a frame's message after `dropped`."""

    detections: list[Detection]
    counts: Any
    look: Any
    generation: Any


def split_detections(
    d: Detections, boot_id: str, encoding: Literal["json", "msgpack"], generation: int = 0
) -> tuple[bytes, bytes]:
    """A frame's message in two parts: the bytes before the number of dropped frames, and those after it.

    `generation` is 0 outside a fleet. With `encoded_number` between them, they equal the encoded `detections_message`.
    """
    encode, json = _ENCODERS[encoding], encoding == "json"
    before = encode(_Before(*_fields(d, boot_id)))
    after, more = None, 1
    if d.details is None and d.attributes is None and (native := _NATIVE[encoding]) is not None:
        rest = b"}" if json else b""
        if d.counts is not None or d.why is not None or generation:
            fields = encode(_Rest(_counts(d), _look(d), generation or msgspec.UNSET))
            more += fields[0] & 0x0F
            rest = b"," + fields[1:] if json else fields[1:]
        after = native(d, _BOXES[encoding], rest)
    if after is None:
        fields = encode(_After(_rounded(d), _counts(d), _look(d), generation or msgspec.UNSET))
        more = fields[0] & 0x0F
        after = b"," + fields[1:] if json else fields[1:]
    if json:
        return before[:-1] + _KEY["json"], after
    # Both are maps of fewer than 16 fields, whose first byte contains their number.
    return bytes((_MAP_16, 0, (before[0] & 0x0F) + 1 + more)) + before[1:] + _KEY["msgpack"], after


def encoded_number(number: int, encoding: Literal["json", "msgpack"]) -> bytes:
    """A number as encoded in a message."""
    return b"%d" % number if encoding == "json" else _ENCODERS["msgpack"](number)


def glance_message(g: Glanced, boot_id: str, generation: int = 0) -> GlanceMessage:
    """The message of a frame that the network did not look at. `generation` is 0 outside a fleet."""
    why: Any = g.look.why
    share = g.look.moved.share if g.look.moved is not None else 0.0
    looked_at = g.looked_wall_ns / 1e9 if g.looked_wall_ns is not None else None
    return GlanceMessage(
        SCHEMA, boot_id, g.stream, g.epoch, g.seq, g.pts_ns, g.wall_ns / 1e9, g.clock, time.time(), g.width, g.height,
        why, round(share, 4), g.looked_seq, looked_at, g.unlooked,
        msgspec.UNSET if g.counts is None else dict(g.counts), generation or msgspec.UNSET,
    )  # fmt: skip


def status_message(s: StreamStatus, counts: StreamCounts, boot_id: str, generation: int = 0) -> StatusMessage:
    """The message of one status. `generation` is 0 outside a fleet."""
    return StatusMessage(
        SCHEMA, boot_id, s.stream, s.state, s.reason, s.detail, s.epoch, s.since_wall_ns / 1e9, time.time(),
        s.retry_left_s(time.time_ns()), s.codec, s.decoder, s.width, s.height, s.fps,
        counts.received, counts.published, dict(counts.dropped), counts.reconnects,
        msgspec.UNSET if s.camera_health is None else s.camera_health,
        generation or msgspec.UNSET,
        msgspec.UNSET if s.behind_s is None else s.behind_s,
    )  # fmt: skip


def encoder(encoding: Literal["json", "msgpack"]) -> Callable[[Any], bytes]:
    """The function that turns a message into bytes."""
    return _ENCODERS[encoding]
