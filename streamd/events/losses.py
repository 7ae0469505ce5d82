"""Events that found no room: what is remembered of them, so that counters stay true and nothing stays open for ever."""

from __future__ import annotations

from collections import Counter

import msgspec

from streamd.events.record import Event


class Lost(msgspec.Struct, frozen=True, array_like=True):
    """What was lost at one place among the events."""

    events: dict[str, int]
    """How many, by stream."""
    counts: dict[str, dict[str, int]]
    """By how much they would have raised each stream's counters."""
    ends: dict[str, int]
    """Ends among them whose begins were kept: id, and Unix nanoseconds."""


class Losses:
    """Adds up what is lost until somebody takes it. The owner's lock guards it."""

    def __init__(self) -> None:
        self.total = 0
        """Events, since the start."""
        self._events: Counter[str] = Counter()
        self._counts: dict[str, Counter[str]] = {}
        self._ends: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._events)

    def add(self, event: Event, *, open_: bool) -> None:
        """Notes a lost event.

        Args:
            event: the event.
            open_: its begin was kept: the journal is to end it. Only as many are remembered as have begun.
        """
        self.total += 1
        self._events[event.stream] += 1
        if event.counts:
            self._counts.setdefault(event.stream, Counter()).update(event.counts)
        if event.kind == "end" and open_:
            self._ends[event.id] = event.at_ns

    def take(self) -> Lost | None:
        """Hands over what was added since the last time; None where that is nothing."""
        if not self._events:
            return None
        counts = {stream: dict(by) for stream, by in self._counts.items()}
        lost = Lost(dict(self._events), counts, self._ends)
        self._events, self._counts, self._ends = Counter(), {}, {}
        return lost
