"""Message version 1 as clients of 0.1.0 decode it. Frozen: later daemons are held against it.

Topic `streamd/1/<stream>/detections` or `/status`; payload JSON or MessagePack of the structures below.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Clock = Literal["arrival", "camera"]


class SinkError(Exception):
    """Not a message of version 1."""


SCHEMA: Literal[1] = 1
TOPIC_PREFIX = f"streamd/{SCHEMA}/"
STATUS_SUFFIX = b"/status"
MAX_MESSAGE_BYTES = 16 << 20


class Model(msgspec.Struct, frozen=True):
    """Who made the detections."""

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


class Detection(msgspec.Struct, frozen=True):
    """One box: corners x1, y1, x2, y2 in pixels of the upright picture."""

    class_id: int
    label: str
    score: float
    box: tuple[float, float, float, float]


class DetectionsMessage(msgspec.Struct, frozen=True, omit_defaults=False):
    """One frame. A frame with nothing in it is published too."""

    schema: Literal[1]
    boot_id: str
    stream: str
    epoch: int
    seq: int
    pts_ns: int | None
    captured_at: float
    """Unix seconds, by `clock`."""
    clock: Clock
    """Whose clock captured_at is: the camera's (RTCP sender reports), or ours when the packet arrived."""
    published_at: float
    """Unix seconds."""
    width: int
    height: int
    model: Model
    latency_ms: Latency
    dropped: int
    """Frames of this stream lost since the message before it."""
    detections: list[Detection]
    source: str | msgspec.UnsetType = msgspec.UNSET
    """The input as given; only in what `streamd detect` writes."""


class StatusMessage(msgspec.Struct, frozen=True):
    """How one stream is: on change, and as a heartbeat."""

    schema: Literal[1]
    boot_id: str
    stream: str
    state: Literal["CONNECTING", "LIVE", "BACKOFF", "ENDED", "FAILED"]
    reason: str
    detail: str
    epoch: int
    since: float
    """Unix seconds at which the stream entered its state."""
    published_at: float
    retry_in_s: float | None
    codec: str
    decoder: str
    width: int
    height: int
    fps: float
    received: int
    published: int
    dropped: dict[str, int]
    reconnects: int


_DETECTIONS: dict[str, Any] = {
    "json": msgspec.json.Decoder(DetectionsMessage),
    "msgpack": msgspec.msgpack.Decoder(DetectionsMessage),
}
_STATUS: dict[str, Any] = {
    "json": msgspec.json.Decoder(StatusMessage),
    "msgpack": msgspec.msgpack.Decoder(StatusMessage),
}


def decode(parts: list[bytes]) -> DetectionsMessage | StatusMessage:
    """Decodes a received multipart message, whichever its encoding.

    Raises:
        SinkError: not a streamd message of this version; says what was found.
    """
    if len(parts) != 2 or len(parts[1]) > MAX_MESSAGE_BYTES or not parts[1]:
        raise SinkError(
            f"message: expected [topic, payload of at most {MAX_MESSAGE_BYTES} bytes], got {len(parts)} parts"
        )
    name = parts[0].decode("utf-8", "replace")
    encoding = "json" if parts[1][:1] == b"{" else "msgpack"
    decoders = _STATUS if name.endswith("/status") else _DETECTIONS
    if not name.startswith(TOPIC_PREFIX):
        raise SinkError(f"message: topic {name[:80]!r} is not of schema {SCHEMA}; expected {TOPIC_PREFIX}…")
    try:
        message: DetectionsMessage | StatusMessage = decoders[encoding].decode(parts[1])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SinkError(f"message: {name[:80]}: {error}") from error
    return message
