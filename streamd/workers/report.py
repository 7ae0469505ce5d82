"""Messages between parent and child: orders through a pipe, reports through a socket."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from streamd.telemetry.tail import Line
from streamd.types import StreamCounts, StreamPast, StreamStatus
from streamd.web.tap import Wish

_AT_ONCE = 256
"""Largest number of reports that one call of `ReportReceiver.receive` reads."""
REPORT_S = 1.0
"""Seconds between a child's reports while nothing changes."""


class Relay(msgspec.Struct, frozen=True):
    """Where the messages of one sink go."""

    name: str
    endpoint: str


class Order(msgspec.Struct, frozen=True, tag="order"):
    """One line on the child's standard input: the streams that it has to run now."""

    number: int
    """Increases with every order to any child."""
    life: int
    """Serial number of this process among all that were started."""
    parent: int
    """The pid of the parent, which may have ended before the child checks."""
    boot_id: str
    config: dict[str, Any]
    """A complete configuration with this child's streams only. It may contain secrets: never write it to a file."""
    secrets: list[str]
    """Substituted values, for the log's redaction."""
    relays: list[Relay]
    reports: str
    """Endpoint for reports."""
    pictures: str
    """Endpoint for the page's pictures."""
    record_as: str
    """Name of the recorder's bundles."""
    past: dict[str, StreamPast]
    """Streams that ran in other processes before."""
    events: str
    """Endpoint for events."""


def origin_of(boot_id: str, life: int) -> str:
    """Identity of a process's events."""
    return f"{boot_id}/{life}"


class Look(msgspec.Struct, frozen=True, tag="look"):
    """Another kind of line: which pictures the page's viewers want."""

    wishes: dict[str, Wish]
    """By stream."""


class Family(msgspec.Struct, frozen=True, array_like=True):
    """One metric family as the registry collects it."""

    name: str
    documentation: str
    type: str
    samples: list[tuple[str, dict[str, str], float]]


class Report(msgspec.Struct, frozen=True, array_like=True):
    """State of a child."""

    worker: int
    life: int
    order: int
    """Number of the latest order that was carried out or refused."""
    problem: str | None
    """Why it is unhealthy; empty if it is not."""
    statuses: list[StreamStatus]
    counts: dict[str, StreamCounts]
    families: list[Family]
    code: int | None = None
    """Only in the last report: everything has been published. Freeing the device's memory may take a few more
    seconds."""
    refused: int = 0
    """Number of the latest order that was refused; 0 if none was."""
    seen: dict[str, int] = {}
    """By stream with rules: Unix time of the last frame in nanoseconds. Its open events are open until then."""
    media: str | None = None
    """Why clips or snapshots cannot be written now."""
    log: list[Line] = []
    """Log lines of the last seconds, also those of earlier reports, which may have been skipped."""


def collect(registry: CollectorRegistry) -> list[Family]:
    """The current samples of `registry`."""
    return [
        Family(m.name, m.documentation, m.type, [(s.name, s.labels, float(s.value)) for s in m.samples])
        for m in registry.collect()
    ]


def parts_of(report: Report) -> tuple[bytes, bytes]:
    """A report as it is sent: the number of the process, and the report itself."""
    return str(report.life).encode(), msgspec.msgpack.encode(report)


class ReportReceiver:
    """The parent's end of the socket.

    Args:
        endpoint: ipc:// address to bind.
    """

    def __init__(self, endpoint: str) -> None:
        import zmq

        self._context: Any = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        try:
            self._socket.bind(endpoint)
        except BaseException:
            self.close()
            raise

    def receive(self, timeout_ms: int) -> Iterator[Report]:
        """Waits for a report, at most for the given milliseconds; yields the newest of each process.

        Reports of hundreds of streams may come faster than they can be read: older ones are skipped unread, and those
        that arrive meanwhile are left for the next call."""
        import zmq

        self._socket.poll(timeout_ms)
        newest: dict[bytes, bytes] = {}
        with contextlib.suppress(zmq.Again):
            for _ in range(_AT_ONCE):
                life, report = self._socket.recv_multipart(zmq.DONTWAIT)
                newest[life] = report
        for report in newest.values():
            yield msgspec.msgpack.decode(report, type=Report)

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close(0)
        self._context.term()
