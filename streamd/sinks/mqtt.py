"""MQTT: events at QoS 1 from the journal, retained state and counts, and detections at QoS 0 on request.

Everything happens on the sink's own thread; `mqttlink` has the connection. Each connection begins without a session:
what the broker has not acknowledged is published again from the journal, with the same id, so that nothing depends on
what either side keeps in memory. Events are published in order, and a broker forwards the messages of one topic and QoS
in order, so that the first arrivals of a stream's events are in order.

Topics, below PREFIX/NODE:

    availability                    online or offline (the last will); retained
    streams/STREAM/availability     online while the stream is LIVE; retained
    streams/STREAM/status           status message, version 1; retained
    streams/STREAM/counts           occupancy and crossings; retained
    streams/STREAM/snapshot         JPEG of the last event that has a snapshot; retained
    streams/STREAM/events           CloudEvents, QoS 1
    streams/STREAM/detections       detections message, version 1; QoS 0
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import structlog
from pydantic import Field

from streamd.errors import SinkError
from streamd.events.record import Media
from streamd.events.upkeep import Outcome
from streamd.flow.settings import StreamSettings
from streamd.settings import FieldPath, Name
from streamd.sinks import SINKS, Sink
from streamd.sinks.connection import Address, ClientLoginSettings, ServerSinkSettings, host_port, lacking, node_name
from streamd.sinks.envelope import DETECTIONS, FRAME_KINDS, STATUS, Message
from streamd.sinks.events import EventSink, JournalEvent
from streamd.sinks.homeassistant import (
    OFFLINE,
    ONLINE,
    Discovery,
    HomeAssistantSettings,
    Topic,
    transition,
)
from streamd.sinks.mqttlink import Link, vendor

log = structlog.get_logger(__name__)

ACK_WAIT_S = 0.05
"""Longest wait for acknowledgements of events that were just published."""
FOUND_S = 0.5
"""After subscribing: retained messages of an earlier run have arrived."""
BIRTH_S = 1.0
"""Longest random delay after Home Assistant's birth message, so that not all devices answer at once."""
CLOSE_S = 0.8
LOOK_S = 5.0
"""How often the files of snapshots are looked for."""
MAX_PICTURE_BYTES = 4 << 20


@SINKS.register
class MqttSettings(ServerSinkSettings):
    """MQTT client (`pip install streamd[mqtt]`): events, state and counts, and on request detections (QoS 0)."""

    kind: Literal["mqtt"] = "mqtt"
    broker: Address = Field(description="Broker, as HOST or HOST:PORT. Default port: 1883, or 8883 with TLS.")
    login: ClientLoginSettings | None = Field(None, description="User name and password for the broker.")
    protocol: Literal["5", "3.1.1"] = Field("5", description="Version of the MQTT protocol.")
    prefix: Topic = Field("streamd", description="Prefix of all topics.")
    node: Name | None = Field(
        None,
        description="Name of this daemon in topics, in its client id (`streamd-NODE`) and in Home Assistant. It must "
        "be unique at the broker. Default: the host name.",
    )
    home_assistant: HomeAssistantSettings | None = Field(None, description="Discovery by Home Assistant. Default: off.")
    keepalive_s: int = Field(
        15,
        ge=5,
        le=3600,
        description="Keep-alive interval, in seconds. A broker that is silent for twice as long counts as lost.",
    )

    @property
    def address(self) -> str:
        """See `SinkSettings.address`."""
        return f"mqtt://{self.broker}"

    def claims(self) -> Iterator[tuple[FieldPath, str, str]]:
        """See `SinkSettings.claims`."""
        yield ("node",), "node", f"streamd-{node_name(self.node)} at {self.broker}"

    def look(self) -> Iterator[tuple[FieldPath, str]]:
        """See `SinkSettings.look`."""
        yield from lacking(vendor)

    def open(self) -> Sink:
        """See `SinkSettings.open`."""
        return MqttSink(self)


class _State(msgspec.Struct):
    """The part of a status that decides about availability."""

    state: str


class MqttSink(EventSink):
    """See `streamd.sinks.events.EventSink`.

    Args:
        settings: broker, topics, and what is published.
    """

    def __init__(self, settings: MqttSettings) -> None:
        self._settings = settings
        self._node = node_name(settings.node)
        self.base = f"{settings.prefix}/{self._node}"
        self._availability = f"{self.base}/availability"
        tls, login = settings.tls, settings.login
        self._link = Link(
            host_port(settings.broker, 1883 if tls is None else 8883), f"streamd-{self._node}", settings.protocol,
            (self._availability, OFFLINE.encode()), settings.keepalive_s, tls=tls,
            login=None if login is None else (login.username, login.password.get_secret_value()),
        )  # fmt: skip
        ha = settings.home_assistant
        self._discovery = Discovery(ha, self._node, self.base) if ha is not None else None
        self._birth = ha.status_topic if ha is not None else ""
        self._streams: Sequence[StreamSettings] | None = None
        """None until they are told."""
        self._retained: dict[str, bytes] = {}
        """What the broker is to hold, by topic; empty to be removed."""
        self._dirty: dict[str, None] = {}
        """Topics of `_retained` that the broker has not been sent yet."""
        self._pictures: dict[str, Path] = {}
        """Files of the last snapshots, by topic."""
        self._look_at = 0.0
        self._discovered: dict[str, dict[str, Any]] = {}
        """Discovery messages at the broker, by topic."""
        self._republish = False
        """Home Assistant has started: discovery is published again although it is unchanged."""
        self._tidy_at: float | None = None
        """When discovery is published and what earlier runs left is removed; monotonic seconds."""
        self._one_by_one = False
        """An answer was not understood: whose it is shows once there is one event under way at a time."""
        self._unanswerable: tuple[str, int] | None = None
        """The event whose answer it was."""
        self._under_way: dict[tuple[str, int], int] = {}
        """Events that were published and not settled: the numbers of their packets."""

    @property
    def unreachable(self) -> str | None:
        """See `EventSink.unreachable`."""
        return self._link.problem

    # ------------------------------------------------------------------------------------------------------ messages

    def open(self) -> None:
        """See `Sink.open`. A broker that is away is not an error; `poll` connects."""
        self._link.prepare()
        self._retained[self._availability] = ONLINE.encode()

    def send(self, message: Message) -> str | None:
        """See `Sink.send`."""
        stream, kind = message.stream, message.kind
        if kind in FRAME_KINDS:
            if not self._link.publish_now(f"{self.base}/streams/{stream}/{kind.name}", message.payload):
                why = self.unreachable or f"mqtt sink: {self._link.address} does not keep up"
                raise SinkError(f"{why}; {'detections are' if kind is DETECTIONS else 'a message is'} lost")
        elif self._streams is None or any(stream == each.id for each in self._streams):
            self._keep(f"streams/{stream}/{kind.name}", message.payload)
            if kind is STATUS:
                live = msgspec.json.decode(message.payload, type=_State).state == "LIVE"
                self._keep(f"streams/{stream}/availability", (ONLINE if live else OFFLINE).encode())
        return None

    def _keep(self, name: str, payload: bytes) -> None:
        topic = f"{self.base}/{name}"
        if self._retained.get(topic) != payload:
            self._retained[topic] = payload
            self._dirty[topic] = None

    def media(self, stream: str, role: str, media: Media) -> None:
        """See `EventSink.media`. Keeps the path: the picture is read when it is published."""
        if role == "snapshot" and media.state == "written":
            topic = f"{self.base}/streams/{stream}/snapshot"
            self._pictures[topic] = Path(media.path)
            self._dirty[topic] = None

    def _picture(self, topic: str) -> bytes:
        """The last snapshot of a stream; empty, which removes it from the broker, if it is gone or too large."""
        path = self._pictures[topic]
        try:
            with path.open("rb") as file:
                picture = file.read(MAX_PICTURE_BYTES + 1)
        except OSError:
            picture = b""
        if not picture or len(picture) > MAX_PICTURE_BYTES or self._link.too_large(topic, picture):
            del self._pictures[topic]
            return b""
        return picture

    def _look_for_removals(self) -> None:
        """A snapshot that was deleted, by request or retention, is not to stay at the broker."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_S
            for topic, path in self._pictures.items():
                if not path.exists():
                    self._dirty[topic] = None

    def set_streams(self, streams: Sequence[StreamSettings]) -> None:
        """See `Sink.set_streams`. Removes what is retained of streams that are gone."""
        self._streams = streams
        self._tidy_at = time.monotonic()

    def poll(self) -> None:
        """See `Sink.poll`. Connects, receives, and publishes what is retained."""
        if self._link.connect_if_due():
            self._begin()
        self._step(0.0)
        for topic, payload, retained in self._link.received():
            self._receive(topic, payload, retained)
        if not self._link.connected:
            return
        if self._tidy_at is not None and self._streams is not None and time.monotonic() >= self._tidy_at:
            self._tidy_at = None
            self._tidy(self._streams)
        self._look_for_removals()
        self._flush()

    def _step(self, timeout: float) -> None:
        try:
            self._link.step(timeout)
        except SinkError:
            if self._link.not_understood and self._under_way:
                if self._one_by_one:
                    (self._unanswerable,) = self._under_way
                self._one_by_one = not self._one_by_one
            raise

    def _begin(self) -> None:
        """A connection begins: the broker is told everything that it is to hold."""
        self._under_way.clear()
        self._retained[self._availability] = ONLINE.encode()
        self._dirty = dict.fromkeys((*self._retained, *self._pictures))
        filters = [f"{self.base}/streams/+/availability"]
        if self._discovery is not None:
            filters += [self._discovery.filter, self._birth]
        self._link.subscribe(filters)
        self._discovered.clear()
        self._republish = False
        self._tidy_at = time.monotonic() + FOUND_S

    def _flush(self) -> None:
        while self._dirty and not self._link.congested:
            topic = next(iter(self._dirty))
            del self._dirty[topic]
            payload = self._picture(topic) if topic in self._pictures else self._retained.get(topic, b"")
            self._link.publish(topic, payload, retain=True)
            if not payload:
                self._retained.pop(topic, None)

    # --------------------------------------------------------------------------------------------------- discovery

    def _receive(self, topic: str, payload: bytes, retained: bool) -> None:
        if topic == self._birth:
            if payload == ONLINE.encode():
                self._republish = True
                self._tidy_at = time.monotonic() + BIRTH_S * random.random()  # noqa: S311 - jitter, not a secret
        elif not retained:
            return  # the echo of what we have published ourselves
        elif self._discovery is not None and self._discovery.owns(topic):
            try:
                found = msgspec.json.decode(payload, type=dict[str, Any]) if payload else {}
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                found = {"components": {}}  # another client's: it is replaced or removed
            if found:
                self._discovered[topic] = found if isinstance(found.get("components"), dict) else {"components": {}}
                self._tidy_soon()
        elif payload and topic not in self._retained:
            # Of a stream that an earlier run had. `_tidy` decides, once the streams are known.
            self._retained[topic] = b"-"  # whatever it is: another client may have put a lot there
            self._tidy_soon()

    def _tidy_soon(self) -> None:
        """What an earlier run left has arrived, maybe late."""
        if self._tidy_at is None:
            self._tidy_at = time.monotonic() + FOUND_S

    def _tidy(self, streams: Sequence[StreamSettings]) -> None:
        ids = {stream.id for stream in streams}
        for topic in list(self._retained):
            parts = topic.removeprefix(f"{self.base}/").split("/")
            if parts[0] == "streams" and len(parts) == 3 and parts[1] not in ids:
                for name in ("availability", "status", "counts", "snapshot"):
                    self._pictures.pop(f"{self.base}/streams/{parts[1]}/{name}", None)
                    self._keep(f"streams/{parts[1]}/{name}", b"")
        if self._discovery is None:
            return
        wanted = self._discovery.messages(streams)
        republish, self._republish = self._republish, False
        for topic in self._discovered.keys() - wanted.keys():
            self._link.publish(topic, b"", retain=True)
            del self._discovered[topic]
        for topic, message in wanted.items():
            known = self._discovered.get(topic, {})
            if message == known and not republish:
                continue
            between = transition(known, message)
            for each in (message,) if between is None else (between, message):
                self._link.publish(topic, msgspec.json.encode(each), retain=True)
            self._discovered[topic] = message

    # ------------------------------------------------------------------------------------------------------ events

    def takes_events(self) -> bool:
        """See `EventSink.takes_events`."""
        return self._settings.events and self._link.connected and not self._link.congested and self._link.may_publish()

    def deliver(self, events: Sequence[JournalEvent]) -> list[Outcome]:
        """See `EventSink.deliver`. Waits a moment for acknowledgements of what was published in this call."""
        known, self._under_way = self._under_way, {}
        if events[0].key == self._unanswerable:
            return self._refuse(events[0], "the broker's answer to it is not understood")
        events = events[:1] if self._one_by_one else events
        fresh = False
        for i, event in enumerate(events):
            number = known.get(event.key)
            if number is None:
                topic = f"{self.base}/streams/{event.stream}/events"
                if self._link.too_large(topic, event.payload):
                    if i == 0:
                        return self._refuse(event, "Packet too large")
                    break  # once those before it are settled
                number = self._link.publish(topic, event.payload, acknowledge=True, event=True)
                fresh = True
            self._under_way[event.key] = number
        deadline = time.monotonic() + (ACK_WAIT_S if fresh else 0.0)
        numbers = list(self._under_way.values())
        while True:
            self._step(max(0.0, min(0.01, deadline - time.monotonic())))
            done = self._link.settled(numbers)
            if len(done) == len(numbers) or not self._link.connected or time.monotonic() >= deadline:
                break
        outcomes: list[Outcome] = []
        for event, problem in zip(events, done, strict=False):
            if problem is not None and not problem.permanent:
                self._under_way.clear()
                if not outcomes:
                    raise SinkError(self._link.delay_events(event.stream, problem.text))
                break
            outcomes.append("delivered" if problem is None else "refused")
            if problem is not None:
                self._refuse(event, problem.text)
            self._link.forget(self._under_way.pop(event.key))
        if outcomes:
            self._link.events_flow()
        return outcomes

    def _refuse(self, event: JournalEvent, why: str) -> list[Outcome]:
        log.error("mqtt broker refuses an event", broker=str(self._link.address), id=event.id, why=why)
        return ["refused"]

    def close(self) -> None:
        """See `Sink.close`. Says `offline` itself: a client that leaves in order has no last will."""
        if self._link.connected:
            self._flush()
            self._link.publish(self._availability, OFFLINE.encode(), retain=True)
        self._link.close(CLOSE_S)
        self._dirty = dict.fromkeys(self._retained)
