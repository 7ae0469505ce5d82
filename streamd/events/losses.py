"""Events lost for lack of room: what is remembered of them, so that counters stay correct and no event stays open
forever."""

from __future__ import annotations

from collections import Counter

import msgspec

from streamd.events.record import Event


class Lost(msgspec.Struct, frozen=True, array_like=True):
    """What was lost at one position in the sequence of events."""

    events: dict[str, int]
    """Number of lost events by stream."""
    counts: dict[str, dict[str, int]]
    """How much they would have increased each stream's counters."""
    ends: dict[str, int]
    """Ends among them whose begins were kept: id, and Unix nanoseconds."""


class Losses:
    """Accumulates losses until they are taken. Guarded by the owner's lock."""

    def __init__(self) -> None:
        self.total = 0
        """Events lost since the start."""
        self._events: Counter[str] = Counter()
        self._counts: dict[str, Counter[str]] = {}
        self._ends: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._events)

    def add(self, event: Event, *, open_: bool) -> None:
        """Records a lost event.

        Args:
            event: the event.
            open_: its begin was kept, so the journal must end it. No more of these are remembered than have begun.
        """
        self.total += 1
        self._events[event.stream] += 1
        if event.counts:
            self._counts.setdefault(event.stream, Counter()).update(event.counts)
        if event.kind == "end" and open_:
            self._ends[event.id] = event.at_ns

    def take(self) -> Lost | None:
        """Returns the losses since the last call; None if there are none."""
        if not self._events:
            return None
        counts = {stream: dict(by) for stream, by in self._counts.items()}
        lost = Lost(dict(self._events), counts, self._ends)
        self._events, self._counts, self._ends = Counter(), {}, {}
        return lost
