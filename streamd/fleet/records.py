"""What travels between a box and the coordinator of a fleet, as plain records with a JSON form.

A box reports twice a second and receives its whole order as the answer, so a lost, repeated or late message does no
harm. Times are not part of it: each side uses its own monotonic clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from streamd.errors import ConfigError
from streamd.events.record import OpenEvent
from streamd.types import StreamState

PROTOCOL = 1
"""Version of these records. Fields with a default may be added without a new one."""
REPORT_S = 0.5
"""Seconds between the reports of a box."""
LEASE_S = 3.0
"""A box that has not reported for this long has lost its streams."""
MOST_OPEN = 256
"""Open events of a stream that a report names; the oldest come first."""
T = TypeVar("T")


class Handover(msgspec.Struct, frozen=True):
    """Where a stream continues on another box."""

    epoch: int
    """Of its last connection; -1 if there was none."""
    received: int
    """Also the seq of the next frame."""
    published: int
    dropped: dict[str, int]
    reconnects: int
    event_seq: int = 0
    """Of its last event."""
    counters: dict[str, int] = {}
    """Counters of its events."""
    rules: dict[str, Any] | None = None
    """State of its zones and lines, see `RuleEngine.state`; None where it has none or their state was lost."""
    orphans: list[OpenEvent] = []
    """Events that its last box left open when it was lost."""


class Assignment(msgspec.Struct, frozen=True):
    """One stream of a box."""

    generation: int
    """Grows with every assignment of any stream."""
    standby: bool = False
    """Connect and decode, but number nothing: the stream still runs on another box."""
    handover: Handover | None = None
    """None for a stream that never ran."""


class Order(msgspec.Struct, frozen=True):
    """Everything that a box has to run."""

    number: int
    """Grows with every order, over restarts of the coordinator as well."""
    box: str
    highest: int
    """Highest generation issued so far; boxes report it to the next coordinator."""
    streams: dict[str, Assignment]
    settled: dict[str, int] = {}
    """By stream: the generation whose parting has been taken, so that the box can forget it."""
    revision: str = ""
    """Of the configuration to run."""
    drained: bool = False
    """The box is being drained and has nothing left."""
    joining: bool = False
    """The box has come and is still to be given its share; it tells the next coordinator."""


class StreamReport(msgspec.Struct, frozen=True):
    """One stream of a box. Counts are those of all its boxes so far."""

    generation: int
    state: StreamState
    reason: str = ""
    epoch: int = 0
    received: int = 0
    published: int = 0
    dropped: dict[str, int] = {}
    reconnects: int = 0
    ready: bool = False
    """It is a standby and has pictures."""
    standby: bool = False
    late: int = 0
    """Published frames that missed the latency objective, since the daemon started."""
    event_seq: int = 0
    counters: dict[str, int] = {}
    open: list[OpenEvent] = []


class Parting(msgspec.Struct, frozen=True):
    """A stream that has ended on a box by order; reported until it is settled."""

    generation: int
    handover: Handover


class DaemonReport(msgspec.Struct, frozen=True):
    """What the daemon of a box says of itself."""

    protocol: int
    boot_id: str
    pid: int
    order: int = 0
    """Number of the latest order that it was given."""
    highest: int = 0
    problem: str | None = None
    streams: dict[str, StreamReport] = {}
    partings: dict[str, Parting] = {}
    refused: dict[str, str] = {}
    """By stream of the order: why it does not run."""
    metrics_port: int | None = None
    revision: str = ""
    published: int = 0
    """Frames of all streams since the daemon started."""
    late: int = 0
    """Those of them that missed their objective, and frames dropped for lack of capacity."""


class BoxReport(msgspec.Struct, frozen=True):
    """What a box says to the coordinator."""

    box: str
    node: str
    """The machine."""
    labels: list[str] = []
    daemon: DaemonReport | None = None
    """None while it starts."""
    fps: float | None = None
    """Stated capacity, frames per second; None: as in the configuration."""
    streams: int | None = None
    """Most streams; None: as in the configuration."""
    metrics: str | None = None
    """HOST:PORT of its metrics."""
    problem: str = ""
    """Why it has no daemon."""
    highest: int = 0
    """Highest generation that the box knows of, also from earlier daemons and earlier fleets."""
    joining: bool = False
    """As in its last order."""


class Account(msgspec.Struct, frozen=True):
    """The frames of one stream over all its boxes.

    received = published + dropped + lost + superseded + in_flight, always.
    """

    received: int = 0
    published: int = 0
    dropped: int = 0
    lost: int = 0
    """Captured and neither published nor dropped when their box was lost."""
    superseded: int = 0
    """Captured by a box after the stream was given to another one. Subscribers drop their messages."""
    in_flight: int = 0
    exact: bool = True
    """False while a box is lost that may have captured more than it reported."""


class FleetBox(msgspec.Struct, frozen=True):
    """One box, for display."""

    box: str
    node: str
    state: str
    reason: str
    streams: int
    load: float
    """Frames per second that its streams ask for."""
    capacity: float
    """Frames per second."""
    measured: bool
    """The capacity was measured, not stated."""
    age_s: float
    """Seconds since its last report."""
    metrics: str | None
    boot_id: str


class FleetStream(msgspec.Struct, frozen=True):
    """One stream, for display."""

    stream: str
    box: str | None
    generation: int
    state: str
    reason: str
    moving_to: str | None
    account: Account


class FleetStatus(msgspec.Struct, frozen=True):
    """A fleet, for display."""

    boxes: list[FleetBox]
    streams: list[FleetStream]
    moves: dict[str, int]
    """Since the coordinator started, by reason."""
    capacity_left: float
    """Frames per second."""
    without: dict[str, list[str]]
    """By box: the streams without a box if this one were lost."""
    rebuilding: bool
    together: dict[str, list[str]] = {}
    """By entry of `spread`: the streams that are not apart, see `plan.together`."""

    @property
    def spare(self) -> bool:
        """Whether every stream is served, whichever single box is lost (N+1).

        Not while a stream is on a box whose loss has not been worked out, such as one that is drained.
        """
        return not any(self.without.values()) and all(s.box in self.without for s in self.streams)


class Happening(msgspec.Struct, frozen=True):
    """Something for the coordinator's log."""

    kind: str
    box: str = ""
    stream: str = ""
    reason: str = ""
    detail: str = ""


def encode(record: msgspec.Struct) -> bytes:
    """A record as one line of JSON, without the line's end."""
    return msgspec.json.encode(record)


def decode(data: bytes, kind: type[T]) -> T:
    """The record in a line of JSON.

    Raises:
        ConfigError: it is none; says where and why.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(
            f"fleet: not a valid {kind.__name__}: {error}; is it of another version of streamd?"
        ) from error


def dropped_of(dropped: Mapping[str, int]) -> int:
    """The sum of all reasons."""
    return sum(dropped.values())
