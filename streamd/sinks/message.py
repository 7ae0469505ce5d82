"""Message version 1: what subscribers receive, its encoders, and a strict decoder for clients.

Topic `streamd/1/<stream>/detections` or `/status`, or `streamd/glance/1/<stream>`; payload JSON or MessagePack of the
structures below.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from streamd.errors import SinkError
from streamd.sinks.attributes import Attribute, ClassifiedMessage, attributes_of
from streamd.types import Clock, Details, Detections, Float32Array, Glanced, StreamCounts, StreamStatus, Tracks

SCHEMA: Literal[1] = 1
TOPIC_PREFIX = f"streamd/{SCHEMA}/"
CLASSIFIED_PREFIX = f"streamd/classified/{SCHEMA}/"
GLANCE_PREFIX = f"streamd/glance/{SCHEMA}/"
MAX_MESSAGE_BYTES = 16 << 20


class Model(msgspec.Struct, frozen=True):
    """The model that made the detections."""

    name: str
    sha256: str


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds. total runs from reading the packet to encoding the message."""

    decode: float
    queue: float
    preprocess: float
    infer: float
    postprocess: float
    total: float


class Track(msgspec.Struct, frozen=True):
    """The object that a box belongs to, confirmed by more than one look or by a sure one."""

    id: int
    """Unique together with `boot_id`; never given twice."""
    age_s: float
    """Observed seconds since the object was first seen."""
    confirmed: bool
    velocity: tuple[float, float]
    """To the right and down, in pixels a second."""


class Detection(msgspec.Struct, frozen=True):
    """One box: corners x1, y1, x2, y2 in pixels of the upright picture."""

    class_id: int
    label: str
    score: float
    box: tuple[float, float, float, float]
    track: Track | msgspec.UnsetType | None = msgspec.UNSET
    """Only where tracking is on; null while no object is confirmed."""
    keypoints: list[tuple[float, float, float]] | msgspec.UnsetType = msgspec.UNSET
    """Only from pose models: x, y in pixels of the upright picture, and the score of the point, 0 to 1."""
    oriented_box: list[tuple[float, float]] | msgspec.UnsetType = msgspec.UNSET
    """Only from models with rotated boxes: four corners x, y in order around it. `box` is the upright one around it."""
    polygon: list[tuple[float, float]] | msgspec.UnsetType = msgspec.UNSET
    """Only from segmentation models: outline of the object, 64 points x, y at most; empty where it has no mask."""
    attributes: list[Attribute] | msgspec.UnsetType = msgspec.UNSET
    """Only for tracks of which a classifier has said something."""


class Looked(msgspec.Struct, frozen=True):
    """Why the network looked at a frame, and how many it has not looked at."""

    why: str
    """motion, light, tracks, faint, hold, interval, learning or unreadable."""
    unlooked: int
    """Frames of the stream that it did not look at, since the process started: of a gap in `seq`, the difference from
    the message before is not lost."""


class DetectionsMessage(msgspec.Struct, frozen=True, omit_defaults=False):
    """One frame. A frame without detections is published, too."""

    schema: Literal[1]
    boot_id: str
    stream: str
    epoch: int
    seq: int
    pts_ns: int | None
    captured_at: float
    """Unix seconds, by `clock`."""
    clock: Clock
    """Clock of captured_at: the camera's (RTCP sender reports), or ours at the arrival of the packet."""
    published_at: float
    """Unix seconds."""
    width: int
    height: int
    model: Model
    latency_ms: Latency
    dropped: int
    """Frames of this stream lost since the previous message."""
    detections: list[Detection]
    counts: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    """Only for streams with zones or lines: their counters, which only grow, and since when they count."""
    source: str | msgspec.UnsetType = msgspec.UNSET
    """The input as given; only in the output of `streamd detect`."""
    look: Looked | msgspec.UnsetType = msgspec.UNSET
    """Only for streams with look.when: motion."""
    generation: int | msgspec.UnsetType = msgspec.UNSET
    """Only in a fleet: grows whenever the stream is given to a box. Drop what has a lower one than you have seen."""


class GlanceMessage(msgspec.Struct, frozen=True):
    """One frame that the network did not look at. It says nothing of what is in the picture: it has no detections."""

    schema: Literal[1]
    boot_id: str
    stream: str
    epoch: int
    seq: int
    pts_ns: int | None
    captured_at: float
    """Unix seconds, by `clock`."""
    clock: Clock
    published_at: float
    """Unix seconds."""
    width: int
    height: int
    why: Literal["still", "rate", "busy", "followed"]
    """still: nothing moves. rate: more frames with motion than look.max_fps. busy: others went first. followed: all
    that moves is tracked, and the frame before was looked at."""
    moving: float
    """Fraction of the picture that differs from its background, 0 to 1."""
    looked_seq: int | None
    """The last frame that the network looked at; null where there was none."""
    looked_at: float | None
    """When that frame was captured, Unix seconds."""
    unlooked: int
    """Frames since then that it did not look at, this one included."""
    counts: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    """Only for streams with zones or lines: their counters as of looked_at."""
    generation: int | msgspec.UnsetType = msgspec.UNSET
    """As in the detections."""


class StatusMessage(msgspec.Struct, frozen=True):
    """Status of one stream: sent on change, and as a heartbeat."""

    schema: Literal[1]
    boot_id: str
    stream: str
    state: Literal["CONNECTING", "LIVE", "BACKOFF", "ENDED", "FAILED"]
    reason: str
    detail: str
    epoch: int
    since: float
    """Unix seconds since when the stream has been live, down (CONNECTING, BACKOFF, FAILED) or ended."""
    published_at: float
    retry_in_s: float | None
    """From published_at on."""
    codec: str
    decoder: str
    width: int
    height: int
    fps: float
    received: int
    published: int
    dropped: dict[str, int]
    reconnects: int
    camera_health: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    """Only for streams with camera_health: covered, dark, overexposed, blurred, frozen, moved, no_signal_picture; empty
    while the camera can see."""
    generation: int | msgspec.UnsetType = msgspec.UNSET
    """As in the detections."""


class Gaps:
    """Frames lost before each message, from the gaps in `seq`. One per sink, as its own losses count, too."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}
        self._unlooked: dict[str, int] = {}
        """`Detections.unlooked` of the last message of streams that are not always looked at."""

    def before(self, stream: str, seq: int, unlooked: int = 0) -> int:
        """The number of frames of `stream` missing between the last message and this one.

        Args:
            stream: of the message.
            seq: of the message.
            unlooked: see `Detections.unlooked`: these frames are not missing.
        """
        missing = seq - self._next.get(stream, 0)
        self._next[stream] = seq + 1
        if unlooked:
            known = self._unlooked.get(stream, 0)
            # A smaller number is that of another process, which counts from the start.
            missing -= unlooked - known if unlooked >= known else unlooked
            self._unlooked[stream] = unlooked
        return max(0, missing)

    def take_back(self, stream: str, seq: int, missing: int) -> None:
        """The message of `seq`, preceded by `missing` frames, was not sent: the next one accounts for both."""
        self._next[stream] = seq - missing


_STEPS = np.array([[100.0, 100.0, 100.0, 100.0, 10_000.0]])
"""Precision of corners and score, as fractions of 1; (1, 5), so that NumPy need not broadcast for a single box."""


def _rounded(d: Detections) -> list[Detection]:
    """Rounds all boxes of a frame at once: one by one, it was the largest part of a frame's cost in Python.

    The product of a float32 and a step is exact in float64, so these are the very floats that round() gives.
    """
    if not len(d.score):
        return []
    rows = np.empty((len(d.score), 5))
    rows[:, :4], rows[:, 4] = d.xyxy, d.score
    rows *= _STEPS
    np.rint(rows, rows)
    rows /= _STEPS
    labels = d.model.labels
    if d.details is not None or d.attributes is not None:
        return _detailed(d, d.details or Details(), rows)
    if d.tracks is not None:
        tracks = _tracks(d.tracks)
        return [
            Detection(class_id, labels[class_id], score, (x1, y1, x2, y2), track)
            for class_id, (x1, y1, x2, y2, score), track in zip(d.class_id.tolist(), rows.tolist(), tracks, strict=True)
        ]
    return [
        Detection(class_id, labels[class_id], score, (x1, y1, x2, y2))
        for class_id, (x1, y1, x2, y2, score) in zip(d.class_id.tolist(), rows.tolist(), strict=True)
    ]


def _detailed(d: Detections, details: Details, rows: npt.NDArray[np.float64]) -> list[Detection]:
    """The boxes with what a model says of them besides; `rows` (N, 5) are rounded corners and scores."""
    nothing = [msgspec.UNSET] * len(rows)
    tracks: Any = nothing if d.tracks is None else _tracks(d.tracks)
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
            d.class_id.tolist(), rows.tolist(), tracks, keypoints, oriented, polygons, attributes, strict=True
        )
    ]


def _points(xy: Float32Array) -> Any:
    """Nested lists of points (…, 2), rounded to a tenth of a pixel."""
    return (np.rint(xy.astype(np.float64) * 10) / 10).tolist()


def _tracks(t: Tracks) -> list[Track | None]:
    """Of each box. Ages and velocities are rounded to a thousandth and a tenth."""
    ages, speeds = np.round(t.age_s, 3).tolist(), np.round(t.velocity, 1).tolist()
    return [
        Track(number, age, True, (vx, vy)) if number else None
        for number, age, (vx, vy) in zip(t.number.tolist(), ages, speeds, strict=True)
    ]


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
_KEY = {"json": b',"dropped":', "msgpack": _ENCODERS["msgpack"]("dropped")}
_MAP_16 = 0xDE


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
    encode = _ENCODERS[encoding]
    before = encode(_Before(*_fields(d, boot_id)))
    after = encode(_After(_rounded(d), _counts(d), _look(d), generation or msgspec.UNSET))
    if encoding == "json":
        return before[:-1] + _KEY["json"], b"," + after[1:]
    # Both are maps of fewer than 16 fields, whose first byte contains their number.
    fields = (before[0] & 0x0F) + 1 + (after[0] & 0x0F)
    return bytes((_MAP_16, 0, fields)) + before[1:] + _KEY["msgpack"], after[1:]


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
    )  # fmt: skip


def encoder(encoding: Literal["json", "msgpack"]) -> Callable[[Any], bytes]:
    """The function that turns a message into bytes."""
    return _ENCODERS[encoding]


_NOW, _MORE_NOW = 1, 3
"""ZMQ_DONTWAIT, alone and with ZMQ_SNDMORE."""


def send_now(socket: Any, name: bytes, payload: bytes) -> None:
    """Sends a message on a ZeroMQ socket; raises zmq.Again and sends nothing if the socket is full.

    pyzmq's send_multipart checks the parts and combines enum flags for each message: 1.4 µs more.
    """
    socket.send(name, _MORE_NOW)
    socket.send(payload, _NOW)


_DETECTIONS: dict[str, Any] = {
    "json": msgspec.json.Decoder(DetectionsMessage),
    "msgpack": msgspec.msgpack.Decoder(DetectionsMessage),
}
_STATUS: dict[str, Any] = {
    "json": msgspec.json.Decoder(StatusMessage),
    "msgpack": msgspec.msgpack.Decoder(StatusMessage),
}
_GLANCE: dict[str, Any] = {
    "json": msgspec.json.Decoder(GlanceMessage),
    "msgpack": msgspec.msgpack.Decoder(GlanceMessage),
}


_CLASSIFIED: dict[str, Any] = {
    "json": msgspec.json.Decoder(ClassifiedMessage),
    "msgpack": msgspec.msgpack.Decoder(ClassifiedMessage),
}


def decode(parts: list[bytes]) -> DetectionsMessage | StatusMessage | ClassifiedMessage | GlanceMessage:
    """Decodes a received multipart message, whichever its encoding.

    Raises:
        SinkError: not a streamd message of this version; says what was received.
    """
    if len(parts) != 2 or len(parts[1]) > MAX_MESSAGE_BYTES or not parts[1]:
        raise SinkError(
            f"message: expected [topic, payload of at most {MAX_MESSAGE_BYTES} bytes], received {len(parts)} parts"
        )
    name = parts[0].decode("utf-8", "replace")
    encoding = "json" if parts[1][:1] == b"{" else "msgpack"
    decoders = _STATUS if name.endswith("/status") else _DETECTIONS
    if name.startswith(CLASSIFIED_PREFIX):
        decoders = _CLASSIFIED
    elif name.startswith(GLANCE_PREFIX):
        decoders = _GLANCE
    elif not name.startswith(TOPIC_PREFIX):
        raise SinkError(f"message: topic {name[:80]!r} is not of schema {SCHEMA}; expected {TOPIC_PREFIX}…")
    try:
        message: DetectionsMessage | StatusMessage | ClassifiedMessage | GlanceMessage = decoders[encoding].decode(
            parts[1]
        )
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SinkError(f"message: {name[:80]}: {error}") from error
    return message


def json_schema() -> dict[str, Any]:
    """JSON Schema of all messages."""
    schemas, components = msgspec.json.schema_components(
        [DetectionsMessage, StatusMessage, ClassifiedMessage, GlanceMessage], ref_template="#/$defs/{name}"
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"streamd message version {SCHEMA}",
        "anyOf": list(schemas),
        "$defs": components,
    }
