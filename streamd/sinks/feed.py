"""What a sink's thread feeds it with besides detections and statuses: events and counts."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from streamd.events.journal import Journal
from streamd.events.record import Media
from streamd.events.upkeep import Limits
from streamd.sinks import Sink
from streamd.sinks.envelope import MessageBuilder, OutgoingEvent
from streamd.sinks.events import CursorFeed, EventSink
from streamd.sinks.guard import GuardedSink
from streamd.telemetry.metrics import Metrics

REST_S = 0.05
"""From one look into the journal to the next, where the last one found nothing to do."""
MOST_EVENTS = 10_000
"""That wait for a sink which does not take them."""


class EventQueue:
    """Events that wait for one sink. No frame ever takes their place; one that could not be sent is sent again.

    Args:
        name: of the sink.
        metrics: counts what found no room.
    """

    def __init__(self, name: str, metrics: Metrics) -> None:
        self._lost = metrics.sink_dropped.labels(sink=name, reason="events_full")
        self.waiting: deque[OutgoingEvent] = deque()
        """The oldest first."""

    def put(self, event: OutgoingEvent) -> None:
        """Queues an event. Any thread."""
        if len(self.waiting) >= MOST_EVENTS:
            self._lost.inc()
            return
        self.waiting.append(event)

    def send(self, sink: GuardedSink, builder: MessageBuilder) -> None:
        """Sends what waits, in order, until the sink does not take one. One thread."""
        while self.waiting and sink.send(builder.event(self.waiting[0]), counted=False):
            self.waiting.popleft()


class EventFeed:
    """The events of one sink, from the journal's cursor or from memory, by the kind of sink.

    Args:
        name: of the sink.
        sink: takes the events.
        owed: see `SinkSettings.owed`.
        metrics: counts.
    """

    def __init__(self, name: str, sink: Sink, owed: Limits | None, metrics: Metrics) -> None:
        self._queue = EventQueue(name, metrics)
        self._media: dict[tuple[str, str], Media] = {}
        """The latest file of each stream and role that the sink has not been told of."""
        self._rest_until = 0.0
        """Monotonic seconds. A busy sink's thread comes by with every frame, more often than is of use."""
        self._feed = (
            CursorFeed(name, owed, metrics.deliveries) if owed is not None and isinstance(sink, EventSink) else None
        )

    def attach(self, journal: Journal, instance: str) -> None:
        """The journal is open. Any thread."""
        if self._feed is not None:
            self._feed.attach(journal, instance)

    def put(self, event: OutgoingEvent) -> None:
        """A committed event; queued if the sink does not read the journal. Any thread."""
        if self._feed is None:
            self._queue.put(event)

    def put_media(self, stream: str, role: str, media: Media) -> None:
        """A file of an event, for sinks that read the journal. Any thread."""
        if self._feed is not None:
            self._media[stream, role] = media

    def send(self, sink: GuardedSink, builder: MessageBuilder) -> bool:
        """Passes on what waits; True if there is more to do at once."""
        if self._feed is not None:
            now = time.monotonic()
            if now < self._rest_until:
                return False
            while self._media:
                (stream, role), media = self._media.popitem()
                sink.media(stream, role, media)
            more = self._feed.pump(sink)
            if not more:
                self._rest_until = now + REST_S
            return more
        if self._queue.waiting:
            self._queue.send(sink, builder)
        return False

    def finish(self, sink: GuardedSink, builder: MessageBuilder, deadline: float) -> None:
        """Passes on what waits before the sink closes, until `deadline`, monotonic seconds."""
        if self._feed is not None:
            self._feed.finish(sink, deadline)
        else:
            self._queue.send(sink, builder)


class TakesEvents:
    """What a sink's thread has for those that bring events."""

    _events: EventFeed

    def put_event(self, event: OutgoingEvent) -> None:
        """Queues one event; never waits. Any thread."""
        self._events.put(event)

    def put_media(self, stream: str, role: str, media: Media) -> None:
        """Tells the sink of a file of an event of the stream; never waits. Any thread."""
        self._events.put_media(stream, role, media)

    def attach(self, journal: Journal, instance: str) -> None:
        """The journal is open: the sink's cursor begins. Any thread."""
        self._events.attach(journal, instance)


class CountsBoard:
    """The last counts of each stream. For one thread."""

    def __init__(self) -> None:
        self._last: dict[str, Mapping[str, Any]] = {}

    def changed(self, stream: str, counts: Mapping[str, Any]) -> bool:
        """Notes a stream's counts; False if they are the same object as before, which means that nothing changed."""
        if self._last.get(stream) is counts:
            return False
        self._last[stream] = counts
        return True

    def keep(self, streams: set[str]) -> None:
        """Forgets all other streams."""
        self._last = {stream: counts for stream, counts in self._last.items() if stream in streams}

    def all(self) -> list[tuple[str, Mapping[str, Any]]]:
        """What is known."""
        return list(self._last.items())
