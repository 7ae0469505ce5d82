"""The input of a sink: one encoded message with its kind and stream.

A message is encoded once per encoding, however many sinks need it. Only `dropped`, the number of frames that this
sink's subscribers have missed since the previous message, differs between sinks: its position is known, and the number
is inserted without parsing the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from streamd.sinks.attributes import classified_message
from streamd.sinks.encoding import encoded_number, encoder, glance_message, split_detections, status_message
from streamd.sinks.message import CLASSIFIED_PREFIX, GLANCE_PREFIX, TOPIC_PREFIX
from streamd.types import Attribute, Detections, Glanced, StreamCounts, StreamStatus

Encoding = Literal["json", "msgpack"]


class MessageKind(NamedTuple):
    """A kind of message. `streamd/1/` is a promise to subscribers: a new kind needs its own prefix."""

    name: str
    prefix: str
    """Start of its topics."""
    suffix: str = ""
    """End of its topics."""
    retained: bool = False
    """Whether a late subscriber is sent the last message of each stream."""
    numbered: bool = False
    """Whether `seq` counts frames, so that a gap means a loss."""

    def topic(self, stream: str) -> bytes:
        """The topic of a stream's messages."""
        return f"{self.prefix}{stream}{self.suffix}".encode()


DETECTIONS = MessageKind("detections", TOPIC_PREFIX, "/detections", numbered=True)
STATUS = MessageKind("status", TOPIC_PREFIX, "/status", retained=True)
EVENT = MessageKind("event", "streamd/event/1/")
COUNTS = MessageKind("counts", "streamd/counts/1/", retained=True)
"""Occupancy of a stream's zones and crossings of its lines; on change and as a heartbeat."""
CLASSIFIED = MessageKind("classified", CLASSIFIED_PREFIX)
"""What classifiers say of boxes without a track, some time after the frame."""
GLANCE = MessageKind("glance", GLANCE_PREFIX)
"""Frames that the network did not look at."""
FRAME_KINDS = frozenset({DETECTIONS, CLASSIFIED, GLANCE})
"""Kinds that tell of one frame: nothing tells it again if a message of them is lost."""
KINDS: Mapping[str, MessageKind] = {kind.name: kind for kind in (DETECTIONS, STATUS, EVENT, COUNTS, CLASSIFIED, GLANCE)}


class Message:
    """One encoded message of one stream. Not modified after it was passed to a sink.

    Args:
        kind: kind of the message.
        stream: id of the stream.
        before: the payload, or its part before the number of dropped frames.
        after: its part after that number; None if it has no such number.
        epoch: epoch of the frame.
        seq: sequence number of the frame.
        dropped: the number of dropped frames.
        encoding: encoding of the payload.
        unlooked: see `Detections.unlooked`.
    """

    __slots__ = ("after", "before", "dropped", "encoding", "epoch", "kind", "seq", "stream", "unlooked")

    def __init__(
        self,
        kind: MessageKind,
        stream: str,
        before: bytes,
        after: bytes | None = None,
        *,
        epoch: int = 0,
        seq: int = 0,
        dropped: int = 0,
        encoding: Encoding = "json",
        unlooked: int = 0,
    ) -> None:
        self.unlooked = unlooked
        self.kind, self.stream, self.before, self.after = kind, stream, before, after
        self.epoch, self.seq, self.dropped, self.encoding = epoch, seq, dropped, encoding

    @property
    def topic(self) -> bytes:
        """The topic frame."""
        return self.kind.topic(self.stream)

    @property
    def payload(self) -> bytes:
        """The payload as subscribers receive it."""
        if self.after is None:
            return self.before
        return b"".join((self.before, encoded_number(self.dropped, self.encoding), self.after))


class Outgoing:
    """One frame's detections on the way to the sinks; encoded by the first thread that needs them.

    Args:
        detections: detections of the frame.
        boot_id: identity of this process in every message.
        generation: of the stream's box; 0 outside a fleet.
    """

    __slots__ = ("_parts", "boot_id", "detections", "generation")

    def __init__(self, detections: Detections, boot_id: str, generation: int = 0) -> None:
        self.detections, self.boot_id, self.generation = detections, boot_id, generation
        self._parts: dict[str, tuple[bytes, bytes]] = {}

    def parts(self, encoding: Encoding) -> tuple[bytes, bytes]:
        """The payload before and after the number of dropped frames.

        Two threads may encode at the same time; either result can be used.
        """
        parts = self._parts.get(encoding)
        if parts is None:
            parts = self._parts[encoding] = split_detections(self.detections, self.boot_id, encoding, self.generation)
        return parts


class OutgoingGlance:
    """One frame that the network did not look at, on the way to the sinks; encoded by the first thread that needs it.

    Args:
        glanced: the frame.
        boot_id: identity of this process in every message.
    """

    __slots__ = ("_payloads", "boot_id", "generation", "glanced")

    def __init__(self, glanced: Glanced, boot_id: str, generation: int = 0) -> None:
        self.glanced, self.boot_id, self.generation = glanced, boot_id, generation
        self._payloads: dict[str, bytes] = {}

    def payload(self, encoding: Encoding) -> bytes:
        """The whole payload."""
        payload = self._payloads.get(encoding)
        if payload is None:
            payload = self._payloads[encoding] = encoder(encoding)(
                glance_message(self.glanced, self.boot_id, self.generation)
            )
        return payload


class OutgoingClasses:
    """What a classifier says of boxes of one frame, on its way to the sinks; encoded by the first thread that needs it.

    Args:
        detections: of the frame.
        boxes: numbers of the boxes.
        attributes: of each of them.
        boot_id: identity of this process in every message.
        generation: of the stream's box when the frame was published; 0 outside a fleet.
    """

    __slots__ = ("_attributes", "_boot_id", "_boxes", "_generation", "_payloads", "detections")

    def __init__(
        self, detections: Detections, boxes: Sequence[int], attributes: Sequence[Attribute], boot_id: str,
        generation: int = 0,
    ) -> None:  # fmt: skip
        self.detections, self._boxes, self._attributes, self._boot_id = detections, boxes, attributes, boot_id
        self._generation = generation
        self._payloads: dict[str, bytes] = {}

    def payload(self, encoding: Encoding) -> bytes:
        """The whole payload."""
        payload = self._payloads.get(encoding)
        if payload is None:
            message = classified_message(
                self.detections, self._boxes, self._attributes, self._boot_id, self._generation
            )
            payload = self._payloads[encoding] = encoder(encoding)(message)
        return payload


class OutgoingEvent:
    """One committed event on its way to every sink; encoded by the first thread that needs it.

    Args:
        stream: whose.
        epoch: of the frame that decided it.
        seq: likewise.
        body: the event as plain values.
    """

    __slots__ = ("_body", "_payloads", "epoch", "seq", "stream")

    def __init__(self, stream: str, epoch: int, seq: int, body: Mapping[str, Any]) -> None:
        self.stream, self.epoch, self.seq, self._body = stream, epoch, seq, body
        self._payloads: dict[str, bytes] = {}

    def payload(self, encoding: Encoding) -> bytes:
        """The whole payload."""
        payload = self._payloads.get(encoding)
        if payload is None:
            payload = self._payloads[encoding] = encoder(encoding)(self._body)
        return payload


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


class MessageBuilder:
    """Creates the messages of one sink: numbered and encoded. For one thread.

    Args:
        boot_id: identity of this process in every message.
        encoding: encoding of every message.
        generations: by stream, in a fleet; may change.
    """

    def __init__(self, boot_id: str, encoding: Encoding = "json", generations: Mapping[str, int] | None = None) -> None:
        self._boot_id, self._encoding = boot_id, encoding
        self._generations = generations if generations is not None else {}
        self._encode = encoder(encoding)
        self._gaps = Gaps()

    def detections(self, outgoing: Outgoing) -> Message:
        """The message of one frame."""
        d = outgoing.detections
        before, after = outgoing.parts(self._encoding)
        return self.number(
            Message(
                DETECTIONS, d.stream, before, after, epoch=d.epoch, seq=d.seq, encoding=self._encoding,
                unlooked=d.unlooked,
            )
        )  # fmt: skip

    def glance(self, glance: OutgoingGlance) -> Message:
        """The message of a frame that the network did not look at."""
        g, payload = glance.glanced, glance.payload(self._encoding)
        return Message(GLANCE, g.stream, payload, epoch=g.epoch, seq=g.seq, encoding=self._encoding)

    def number(self, message: Message) -> Message:
        """Sets the number of dropped frames in a detections message."""
        message.dropped = self._gaps.before(message.stream, message.seq, message.unlooked)
        return message

    def not_sent(self, message: Message) -> None:
        """Reports that a detections message was not sent: the next one of its stream accounts for it."""
        self._gaps.take_back(message.stream, message.seq, message.dropped)

    def event(self, event: OutgoingEvent) -> Message:
        """The message of one event."""
        payload = event.payload(self._encoding)
        return Message(EVENT, event.stream, payload, epoch=event.epoch, seq=event.seq, encoding=self._encoding)

    def classified(self, found: OutgoingClasses) -> Message:
        """The message of what a classifier said of one frame."""
        d = found.detections
        payload = found.payload(self._encoding)
        return Message(CLASSIFIED, d.stream, payload, epoch=d.epoch, seq=d.seq, encoding=self._encoding)

    def counts(self, stream: str, counts: Mapping[str, Any]) -> Message:
        """The message of one stream's counts, as in its detections."""
        body = {"schema": 1, "boot_id": self._boot_id, "stream": stream, **counts}
        if generation := self._generations.get(stream):
            body["generation"] = generation
        return Message(COUNTS, stream, self._encode(body), encoding=self._encoding)

    def status(self, status: StreamStatus, counts: StreamCounts) -> Message:
        """The message of one status."""
        payload = self._encode(status_message(status, counts, self._boot_id, self._generations.get(status.stream, 0)))
        return Message(STATUS, status.stream, payload, encoding=self._encoding)
