"""The boxes of a fleet as the coordinator sees them: leases, restarts, capacity."""

from __future__ import annotations

from typing import Literal

from streamd.fleet import FleetSettings
from streamd.fleet.capacity import CapacityMeter
from streamd.fleet.placement import Box
from streamd.fleet.records import LEASE_S, BoxReport, DaemonReport, FleetBox

BoxState = Literal["JOINING", "UP", "LATE", "LOST", "DRAINING", "DRAINED"]


DRAINED = "drained"
"""The problem of a box that has stopped its daemon because it was drained."""


class Member:
    """One box.

    Args:
        report: its first report.
        now: monotonic seconds.
        fleet: states its capacity and labels where the box does not.
    """

    def __init__(self, report: BoxReport, now: float, fleet: FleetSettings) -> None:
        self.name = report.box
        self.report = report
        self.heard = self.alive_at = now
        """When it last reported, and when it last reported a running daemon; monotonic seconds."""
        self.up = False
        """It has a daemon, and its lease runs."""
        self.draining = False
        self.hungry = False
        """It takes streams of others until it has its fair share."""
        self.load = 0.0
        self.told = ""
        """The problem of the box that was told last."""
        self.owes: set[tuple[str, int]] = set()
        """Streams and generations that it had when it was lost: it has yet to tell how far they came."""
        self.meter = CapacityMeter(1.0)
        self.state_capacity(fleet)

    def state_capacity(self, fleet: FleetSettings) -> None:
        """Takes the stated capacity and labels from the configuration or the box's report."""
        node = next((n for n in fleet.nodes if n.name == self.name), None)
        self.meter.stated = self.report.fps or (node.fps if node is not None else None) or fleet.box.fps
        self.most = self.report.streams or (node.streams if node is not None else None) or fleet.box.streams
        labels = frozenset(self.report.labels) | frozenset(node.labels if node is not None else ())
        self.labels = labels | {own_label(self.name)}

    @property
    def daemon(self) -> DaemonReport | None:
        """What its daemon last said."""
        return self.report.daemon

    def boot_id(self) -> str:
        """Of its daemon; empty while there is none."""
        return self.report.daemon.boot_id if self.report.daemon is not None else ""

    def box(self, *, strict: bool = False) -> Box:
        """As placement sees it.

        Args:
            strict: by its capacity alone. Otherwise a box that is above its measured capacity keeps what it has.
        """
        fps = self.meter.fps
        capacity = fps if strict else max(fps, min(self.load, self.meter.stated))
        return Box(self.name, capacity, self.most, self.labels, self.report.node)

    @property
    def takes(self) -> bool:
        """Whether it can be given streams."""
        return self.up and not self.draining

    def state(self, now: float) -> BoxState:
        """For display."""
        if self.draining and self.report.problem == DRAINED:
            return "DRAINED"
        if not self.up:
            return "JOINING" if now - self.heard <= LEASE_S else "LOST"
        if now - self.alive_at > LEASE_S / 2:
            return "LATE"
        if self.draining:
            return "DRAINING" if self.load else "DRAINED"
        return "UP"

    def shown(self, now: float, streams: int, reason: str) -> FleetBox:
        """For display."""
        return FleetBox(
            self.name, self.report.node, self.state(now), reason or self.report.problem, streams, self.load,
            self.meter.fps, self.meter.measured, round(now - self.heard, 3), self.report.metrics, self.boot_id(),
        )  # fmt: skip


def own_label(box: str) -> str:
    """A label that only this box has. No configured label can begin with a space."""
    return " " + box
