"""The frames of each stream over all its boxes: where a successor continues, and what was lost with a box."""

from __future__ import annotations

from dataclasses import dataclass, field

from streamd.events.record import OpenEvent
from streamd.fleet.records import Account, Handover, Parting, StreamReport, dropped_of

NODE_LOST = "node_lost"
"""Reason for which frames are dropped that were lost with their box, and open events end."""
MOST_CLOSED = 16
"""Lost generations of a stream that are remembered until their box comes back."""


@dataclass
class StreamBook:
    """One stream's totals. Counts of reports include those of all earlier boxes."""

    handover: Handover | None = None
    """Where the next box continues; None before the first report."""
    superseded: int = 0
    unknown: int = 0
    """Lost boxes that have not come back: they may have captured more than they reported."""
    _closed: dict[int, int] = field(default_factory=dict)
    """By lost generation: frames captured, as far as they were reported."""

    def take(self, report: StreamReport) -> None:
        """The box that has the stream reports about it."""
        known = self.handover
        if known is not None and report.received < known.received:
            return  # it has not started from the handover yet
        self.handover = Handover(
            max(report.epoch, known.epoch if known is not None else -1), report.received, report.published,
            report.dropped, report.reconnects,
            max(report.event_seq, known.event_seq if known is not None else 0),
            report.counters or (known.counters if known is not None else {}),
            known.rules if known is not None else None, report.open,
        )  # fmt: skip

    def part(self, parting: Parting) -> None:
        """The box has ended the stream by order: nothing is in flight any more."""
        self.handover = parting.handover

    def lose(self, generation: int, *, orphans: bool = True) -> None:
        """The box of this generation is lost.

        Args:
            generation: the one it had.
            orphans: False if its journal is back, which ends open events itself.
        """
        known = self.handover
        self.unknown += 1
        while len(self._closed) >= MOST_CLOSED:
            self._closed.pop(min(self._closed))
        self._closed[generation] = known.received if known is not None else 0
        if known is None:
            return
        lost = known.received - known.published - dropped_of(known.dropped)
        dropped = known.dropped
        if lost > 0:
            dropped = {**dropped, NODE_LOST: dropped.get(NODE_LOST, 0) + lost}
        opened: list[OpenEvent] = known.orphans if orphans else []
        self.handover = Handover(
            known.epoch, known.received, known.published, dropped, known.reconnects, known.event_seq, known.counters,
            known.rules, opened,
        )  # fmt: skip

    def returned(self, generation: int) -> None:
        """A box that was believed lost goes on, and nobody had its stream meanwhile: nothing was lost."""
        if self._closed.pop(generation, None) is not None:
            self.unknown -= 1

    def outdated(self, generation: int, received: int) -> None:
        """A box that has lost the stream reports its last total of that generation."""
        known = self._closed.pop(generation, None)
        if known is not None:
            self.unknown -= 1
            self.superseded += max(0, received - known)

    def account(self) -> Account:
        """The totals."""
        known = self.handover
        if known is None:
            return Account(received=self.superseded, superseded=self.superseded, exact=self.unknown == 0)
        lost, dropped = known.dropped.get(NODE_LOST, 0), dropped_of(known.dropped)
        return Account(
            known.received + self.superseded, known.published, dropped - lost, lost, self.superseded,
            known.received - known.published - dropped, self.unknown == 0,
        )  # fmt: skip
