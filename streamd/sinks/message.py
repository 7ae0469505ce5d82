"""Message version 1: what subscribers receive, and a strict decoder for clients. `encoding` makes the messages.

Topic `streamd/1/<stream>/detections` or `/status`, or `streamd/glance/1/<stream>`; payload JSON or MessagePack of the
structures below.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from streamd.errors import SinkError
from streamd.sinks.attributes import Attribute, ClassifiedMessage
from streamd.types import Clock

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


class Track(msgspec.Struct, frozen=True, gc=False):
    """The object that a box belongs to, confirmed by more than one look or by a sure one."""

    id: int
    """Unique together with `boot_id`; never given twice."""
    age_s: float
    """Observed seconds since the object was first seen."""
    confirmed: bool
    velocity: tuple[float, float]
    """To the right and down, in pixels a second."""


class Detection(msgspec.Struct, frozen=True, gc=False):
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
    why: Literal["still", "rate", "busy", "overload", "followed"]
    """still: nothing moves. rate: more frames with motion than look.max_fps. busy: others went first. overload:
    something moves, but the network cannot keep up. followed: all that moves is tracked, and the frame before was
    looked at."""
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
    behind_s: float | msgspec.UnsetType = msgspec.UNSET
    """Only with the reason behind: how many seconds later the stream was read than it could be."""


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
