"""The parent's view of each stream, whichever worker runs it and whether that worker is alive."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from streamd.flow.reporter import DOWN
from streamd.types import StreamCounts, StreamPast, StreamStatus
from streamd.workers.forward import Forwarder
from streamd.workers.report import Report

WORKER_DIED = "worker_died"
"""Reason for a stream's state, and for dropping the frames lost with the worker."""


class Ledger:
    """One thread writes, any thread reads.

    Args:
        forwarders: one per sink.
    """

    def __init__(self, forwarders: Sequence[Forwarder]) -> None:
        self._forwarders = forwarders
        self._statuses: dict[str, StreamStatus] = {}
        self._counts: dict[str, StreamCounts] = {}
        self.live_seen: set[str] = set()
        """Streams that have been live."""

    def take(self, report: Report, mine: Callable[[str], bool]) -> None:
        """Processes a worker's report about its own streams."""
        for status in report.statuses:
            if mine(status.stream):
                self._statuses[status.stream] = status
                if status.state == "LIVE":
                    self.live_seen.add(status.stream)
        self._counts |= {stream: counts for stream, counts in report.counts.items() if mine(stream)}

    def over(self, stream: str) -> bool:
        """True if the stream has ended by itself, normally or not; False if it was stopped."""
        status = self._statuses.get(stream)
        return status is not None and (status.state == "FAILED" or (status.state == "ENDED" and status.reason == "eof"))

    def failed(self, stream: str) -> bool:
        """True if it failed."""
        status = self._statuses.get(stream)
        return status is not None and status.state == "FAILED"

    def statuses(self, streams: Iterable[str]) -> list[StreamStatus]:
        """The last status of each of `streams`, if it has one."""
        return [self._statuses[s] for s in streams if s in self._statuses]

    def published(self, streams: Iterable[str]) -> int:
        """Frames published of all `streams`."""
        return sum(self._counts[s].published for s in streams if s in self._counts)

    def lose(self, life: int, streams: Iterable[str], detail: str, retry_in_s: float) -> None:
        """Their worker has died: sets them to BACKOFF until it is back, and informs subscribers."""
        now = time.time_ns()
        lost = []
        for stream in streams:
            old = self._statuses.get(stream) or StreamStatus(stream, "CONNECTING", "", "", 0, now)
            since = old.since_wall_ns if old.state in DOWN else now
            new = replace(
                old, state="BACKOFF", reason=WORKER_DIED, detail=detail, since_wall_ns=since, retry_in_s=retry_in_s,
                attempts=old.attempts + 1, at_wall_ns=now,
            )  # fmt: skip
            self._statuses[stream] = new
            lost.append(new)
        self._hold(life, lost)

    def finish(self, life: int, streams: Iterable[str], reason: str = "eof") -> None:
        """The streams have ended: subscribers continue to receive their statuses."""
        streams = list(streams)
        for stream in streams:
            if not self.over(stream) and (status := self._statuses.get(stream)) is not None:
                # Its last status was lost or never sent.
                self._statuses[stream] = replace(
                    status, state="ENDED", reason=reason, detail="", since_wall_ns=time.time_ns(), retry_in_s=None
                )
        self._hold(life, self.statuses(streams))

    def remove(self, streams: Iterable[str]) -> None:
        """The streams were removed from the configuration while no worker had them: this is reported once."""
        streams = list(streams)
        self.finish(0, streams, "")
        for forwarder in self._forwarders:
            forwarder.release(streams)

    def _hold(self, life: int, statuses: list[StreamStatus]) -> None:
        told = [(status, self._counts.get(status.stream, StreamCounts())) for status in statuses]
        for forwarder in self._forwarders:
            forwarder.hold(life, told)

    def past(self, stream: str) -> StreamPast | None:
        """Where the stream continues in another process; None if it never had a frame.

        The old process's last report is up to a second old. The messages passed on are newer: each one shows that all
        frames up to its own were captured. Frames that were neither published nor dropped by then were lost with the
        process. Frames captured later are in no counter, and their numbers are used again."""
        counts = self._counts.get(stream, StreamCounts())
        status = self._statuses.get(stream)
        passed = [forwarder.passed(stream) for forwarder in self._forwarders]
        received = max([counts.received, *(told for _, _, told in passed)])
        if received == 0:
            return None
        epoch = max([status.epoch if status is not None else 0, *(epoch for _, epoch, _ in passed)])
        published = max([counts.published, *(count for count, _, _ in passed)])
        lost = received - published - sum(counts.dropped.values())
        dropped = dict(counts.dropped)
        if lost > 0:
            dropped[WORKER_DIED] = dropped.get(WORKER_DIED, 0) + lost
        return StreamPast(epoch, StreamCounts(received, published, dropped, counts.reconnects))
