"""Sinks that deliver events from the journal: at least once, each from its own cursor.

Other sinks receive committed events in memory (`feed.EventQueue`). A sink derived from `EventSink` gets them from the
journal instead, so that a receiver that is away for hours, or a restart of the daemon, loses nothing within the limits
of `EventSinkSettings`. `CursorFeed` is the part of a sink's thread that moves events from its cursor to the sink.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

from pydantic import Field

from streamd.events.cursors import Cursor
from streamd.events.journal import Journal
from streamd.events.record import Media, Record, envelope, event_id
from streamd.events.upkeep import Limits, Outcome
from streamd.sinks import Sink, SinkSettings
from streamd.sinks.encoding import encoder
from streamd.telemetry.deliveries import Deliveries

WINDOW = 100
"""Events offered to a sink at a time."""
TURN_S = 0.05
"""Longest time that a sink's thread spends on events before it looks after detections and statuses again."""
CONTENT_TYPE = "application/cloudevents+json"
_ENCODE = encoder("json")


class EventSinkSettings(SinkSettings):
    """Settings common to sinks that deliver events from the journal."""

    expire_after_s: float = Field(
        604_800.0,
        gt=0,
        le=315_360_000,
        description="Age at which an undelivered event expires, in seconds. Default: 7 days.",
    )
    max_queued: int = Field(
        100_000,
        ge=1,
        le=100_000_000,
        description="Number of events that may wait for delivery. If there are more, the oldest expire.",
    )

    @property
    def owed(self) -> Limits:
        """What the journal keeps for the sink while its receiver is away."""
        return Limits(max_age_s=self.expire_after_s, max_events=self.max_queued)


class JournalEvent:
    """One committed event, as a sink delivers it.

    Args:
        record: what was committed.
        instance: name of this daemon in the CloudEvents `source`.
    """

    __slots__ = ("_instance", "_payload", "record")

    def __init__(self, record: Record, instance: str) -> None:
        self.record, self._instance = record, instance
        self._payload = b""

    @property
    def id(self) -> str:
        """The CloudEvents `id`: the same for every delivery of the event, by every sink."""
        return event_id(self.record)

    @property
    def key(self) -> tuple[str, int]:
        """What identifies the event in this process: journal and position."""
        return self.record.log_id, self.record.position

    @property
    def stream(self) -> str:
        """Id of the stream."""
        return self.record.stream

    @property
    def payload(self) -> bytes:
        """The CloudEvents envelope as JSON."""
        if not self._payload:
            self._payload = _ENCODE(envelope(self.record, self._instance))
        return self._payload


class EventSink(Sink):
    """A sink that takes events from the journal. Its methods, like those of `Sink`, are called by one thread."""

    @property
    @abstractmethod
    def unreachable(self) -> str | None:
        """Why the receiver does not take events now; None while it does, or where that is not known yet. Any thread."""

    @abstractmethod
    def takes_events(self) -> bool:
        """Whether `deliver` could do something now; False while the receiver is away or not to be tried again yet."""

    @abstractmethod
    def deliver(self, events: Sequence[JournalEvent]) -> list[Outcome]:
        """Delivers events in order. May return before the receiver has confirmed them.

        Called again and again with the oldest unsettled events: those of the last call that it did not settle, then
        further ones. An event that was deleted or has expired meanwhile is missing.

        Args:
            events: at most `WINDOW`.

        Returns:
            The outcome of each event that is settled, from the first one on without a gap: `delivered` once the
            receiver has confirmed it, `refused` if the receiver will never take it.

        Raises:
            SinkError: the receiver cannot be reached, or does not take the first event now. It is logged and counted;
                the sink decides by its `RetryPolicy` when `takes_events` is True again.
        """

    def media(self, stream: str, role: str, media: Media) -> None:
        """A file of one of the stream's events was recorded, see `Record.media`. Later ones replace it."""

    def interrupt(self) -> None:
        """Ends a wait for the receiver, because the sink has to close. Any thread."""


class Deliverer(Protocol):
    """The guarded sink, as far as events are concerned."""

    def takes_events(self) -> bool: ...

    def deliver(self, events: Sequence[JournalEvent]) -> list[Outcome]: ...


class CursorFeed:
    """Moves events from the journal's cursor to one sink. For the sink's thread, except `attach`.

    Args:
        name: of the sink and its cursor.
        owed: what the journal keeps for it.
        deliveries: shows the cursor's counts as metrics.
    """

    def __init__(self, name: str, owed: Limits, deliveries: Deliveries) -> None:
        self._name, self._owed, self._deliveries = name, owed, deliveries
        self._source: tuple[Cursor, str] | None = None

    def attach(self, journal: Journal, instance: str) -> None:
        """Takes events from this journal from now on. Any thread."""
        cursor = journal.cursor(self._name, self._owed)
        self._deliveries.show(self._name, cursor.counts)
        self._source = cursor, instance

    def pump(self, sink: Deliverer, turn_s: float = TURN_S) -> bool:
        """Delivers what waits, for a moment.

        Returns:
            True if there is more to do at once.
        """
        if self._source is None:
            return False
        cursor, instance = self._source
        deadline = time.monotonic() + turn_s
        while sink.takes_events() and cursor.wait(0):
            records = cursor.read(WINDOW)
            outcomes = sink.deliver([JournalEvent(record, instance) for record in records]) if records else []
            if not outcomes:
                return False
            self._advance(cursor, records, outcomes)
            if time.monotonic() >= deadline:
                return True
        return False

    @staticmethod
    def _advance(cursor: Cursor, records: Sequence[Record], outcomes: Sequence[Outcome]) -> None:
        """Advances once for each run of equal outcomes."""
        for i, outcome in enumerate(outcomes):
            if i + 1 == len(outcomes) or outcomes[i + 1] != outcome:
                cursor.advance(records[i], outcome)

    def finish(self, sink: Deliverer, deadline: float) -> None:
        """Delivers what waits, as far as the receiver takes it.

        Args:
            sink: still open.
            deadline: monotonic seconds.
        """
        while self._source is not None and time.monotonic() < deadline:
            if not sink.takes_events() or not self._source[0].wait(0):
                return
            if not self.pump(sink):
                time.sleep(0.01)  # unconfirmed; `deliver` has waited a little itself
