"""Carries out the orders of a fleet on a running daemon, and tells how far it is."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import structlog
from msgspec.structs import replace

from streamd.config import Config
from streamd.errors import ConfigError
from streamd.events.record import OpenEvent
from streamd.fleet.accounts import NODE_LOST
from streamd.fleet.records import (
    MOST_OPEN,
    PROTOCOL,
    Assignment,
    DaemonReport,
    Handover,
    Order,
    Parting,
    StreamReport,
)
from streamd.runtime.daemon import Daemon
from streamd.runtime.reload import check, difference
from streamd.types import StreamCounts, StreamPast, StreamStatus

log = structlog.get_logger(__name__)

COMMIT_S = 2.0
"""Longest time that a parting waits for the journal to commit the last events."""


@dataclass
class _Leaving:
    generation: int
    committed: Future[None] | None = None
    since: float = 0.0


def without_streams(config: Config, streams: tuple[Any, ...] = ()) -> Config:
    """The configuration of a box that has only these streams."""
    # The tracker stays even while no stream has rules: boxes are decoded for it or not at all.
    return config.model_copy(update={"streams": streams, "tracking": config.tracker, "share": None, "fleet": None})


class Station:
    """The box side of a fleet. `look` is for the daemon's main loop, everything else for any thread.

    Args:
        daemon: runs the streams; began without any.
        config: the complete configuration, with the streams of all boxes.
        revision: of its file.
    """

    def __init__(self, daemon: Daemon, config: Config, revision: str) -> None:
        self._daemon = daemon
        self._lock = threading.Lock()
        self._config, self._revision = config, revision
        self._order = Order(0, "", 0, {})
        self._due = False
        """Whether `look` has something to do: most orders repeat the last one."""
        self._highest = 0
        self._running: dict[str, int] = {}
        self._begun: dict[str, Handover] = {}
        """Where each running stream began."""
        self._standbys: dict[str, int] = {}
        self._leaving: dict[str, _Leaving] = {}
        self._partings: dict[str, Parting] = {}
        self._refused: dict[str, str] = {}
        self._last: dict[str, tuple[int, int]] = {}
        """Published and missed frames of each stream at the last report: this box's totals are sums of differences."""
        self._published = self._missed = 0
        daemon.streams.endless = True
        if daemon.analytics is not None:
            daemon.analytics.keep_states = True
        daemon.companion = self.look

    # -------------------------------------------------------------------------------------------------- any thread

    def exchange(self, order: Order | None) -> DaemonReport:
        """Takes an order, which the main loop carries out, and reports.

        Raises:
            ConfigError: the order is for another box.
        """
        with self._lock:
            if order is not None and order.number > self._order.number:
                if self._order.box and order.box != self._order.box:
                    raise ConfigError(f"this is box {self._order.box}, and the order is for box {order.box}")
                changed, self._order = order.streams != self._order.streams, order
                self._highest = max(self._highest, order.highest)
                self._partings = {n: p for n, p in self._partings.items() if order.settled.get(n) != p.generation}
                if changed:
                    self._due = True
                    self._daemon.wake()
            return self._report()

    def configure(self, config: Config, revision: str) -> None:
        """Takes another configuration.

        Raises:
            ConfigError: something differs that cannot change while running; the old one stays.
        """
        check(difference(without_streams(self._config), without_streams(config)))
        with self._lock:
            self._config, self._revision = config, revision
            self._due = True
        self._daemon.wake()

    def _report(self) -> DaemonReport:
        daemon = self._daemon
        statuses = {s.stream: s for s in daemon.board.all()}
        told = {name: self._stream(name, gen, statuses.get(name)) for name, gen in self._running.items()}
        told |= {name: self._stream(name, each.generation, statuses.get(name)) for name, each in self._leaving.items()}
        warmed = daemon.streams.warmed()
        for name, generation in self._standbys.items():
            told[name] = StreamReport(generation, "CONNECTING", ready=warmed.get(name, False), standby=True)
        return DaemonReport(
            PROTOCOL, daemon.boot_id, os.getpid(), self._order.number, self._highest, daemon.problem, told,
            self._partings, self._refused, daemon.http.port if daemon.http is not None else None, self._revision,
            self._published, self._missed,
        )  # fmt: skip

    def _stream(self, name: str, generation: int, status: StreamStatus | None) -> StreamReport:
        metrics = self._daemon.metrics.stream(name)
        counts = metrics.counts()
        missed = metrics.objective()[1]
        published_before, missed_before = self._last.get(name, (counts.published, missed))
        self._published += max(0, counts.published - published_before)
        self._missed += max(0, missed - missed_before)
        self._last[name] = counts.published, missed
        begun = self._begun.get(name)
        epoch = status.epoch if status is not None else begun.epoch if begun is not None else 0
        event_seq, counters, opened = self._events(name)
        return StreamReport(
            generation, status.state if status is not None else "CONNECTING",
            status.reason if status is not None else "", epoch, counts.received, counts.published,
            dict(counts.dropped), counts.reconnects, late=metrics.late, event_seq=event_seq, counters=counters,
            open=opened,
        )  # fmt: skip

    def _events(self, name: str) -> tuple[int, dict[str, int], list[OpenEvent]]:
        journal = self._daemon.events.journal
        if journal is None:
            return 0, {}, []
        standing = journal.standing(name)
        seen = self._daemon.seen().get(name, 0)
        opened = [replace(o, last_ns=max(o.last_ns, seen)) for o in standing.open[:MOST_OPEN]]
        return standing.event_seq, dict(standing.counters), opened

    # --------------------------------------------------------------------------------------------------- main loop

    def look(self) -> None:
        """One step towards the order."""
        with self._lock:
            if self._due and self._order.number:
                self._due = self._step()

    def _step(self) -> bool:
        """Returns whether something is left to do."""
        self._part(time.monotonic())
        wanted = self._order.streams
        known = {s.id: s for s in self._config.streams}
        self._refused = {n: code for n in wanted if (code := self._refusal(known.get(n))) is not None}
        for name, generation in list(self._running.items()):
            each = wanted.get(name)
            if each is None or each.generation != generation or name not in known:
                self._leaving[name] = _Leaving(self._running.pop(name))
        for name, generation in list(self._standbys.items()):
            each = wanted.get(name)
            if each is None or each.generation != generation or name in self._refused:
                del self._standbys[name]
                self._daemon.streams.cool(name)
        for name, each in wanted.items():
            if name in self._refused or name in self._running or name in self._leaving:
                continue
            if not each.standby:
                self._begin(name, each)
            elif name not in self._standbys:
                self._standbys[name] = each.generation
                self._daemon.streams.warm(known[name])
        streams = tuple(known[name] for name in sorted(self._running))
        target = without_streams(self._config, streams)
        given = target.streams == self._given and target.logging == self._daemon.config.logging
        return not (given or self._give(target)) or bool(self._leaving)

    _given: tuple[Any, ...] = ()
    """The streams that the daemon was last told to run."""

    def _give(self, target: Config) -> bool:
        try:
            self._daemon.reload(target)
        except ConfigError as error:
            log.error("order cannot be carried out", error=str(error))
            for stream in set(target.streams) - set(self._given):
                self._refused[stream.id] = "failed_to_start"
            return False
        self._given = target.streams
        return True

    def _refusal(self, settings: Any) -> str | None:
        if settings is None:
            return "unknown_stream"
        ordinals = [each.ordinal for each in self._daemon.instances]
        if settings.device is not None and settings.device not in ordinals:
            return "failed_to_start"
        return None

    def _begin(self, name: str, each: Assignment) -> None:
        daemon, handover = self._daemon, each.handover
        self._standbys.pop(name, None)  # the daemon takes its connection
        self._running[name] = each.generation
        daemon.generations[name] = each.generation
        self._begun.pop(name, None)
        if handover is None:
            return
        self._begun[name] = handover
        counts = StreamCounts(handover.received, handover.published, handover.dropped, handover.reconnects)
        daemon.streams.remember({name: StreamPast(handover.epoch, counts)})
        self._last[name] = handover.published, daemon.metrics.stream(name).objective()[1]
        if daemon.analytics is not None:
            daemon.analytics.resume(name, handover.rules)
        if handover.event_seq or handover.orphans:
            daemon.events.ensure(without_streams(self._config, self._config.streams))
            if (journal := daemon.events.journal) is not None:
                orphans = [replace(o, stream=name, origin="", generation=each.generation) for o in handover.orphans]
                journal.adopt(name, handover.event_seq, handover.counters, orphans, NODE_LOST)

    def _part(self, now: float) -> None:
        for name, leaving in list(self._leaving.items()):
            if name in self._daemon.streams or name in {s.id for s in self._given}:
                continue
            journal = self._daemon.events.journal
            if journal is not None:
                # Its last events end with it: they belong to what the next box continues from.
                if leaving.committed is None:
                    leaving.committed, leaving.since = journal.settled(), now
                if not leaving.committed.done() and now - leaving.since < COMMIT_S:
                    continue
            del self._leaving[name]
            self._partings[name] = Parting(leaving.generation, self._handover(name))

    def _handover(self, name: str) -> Handover:
        daemon = self._daemon
        past, begun = daemon.streams.past(name), self._begun.pop(name, None)
        rules = daemon.analytics.state_of(name) if daemon.analytics is not None else None
        event_seq, counters, _ = self._events(name)
        if past is None:
            return begun if begun is not None else Handover(-1, 0, 0, {}, 0)
        counts = past.counts
        return Handover(
            past.epoch, counts.received, counts.published, dict(counts.dropped), counts.reconnects, event_seq, counters,
            dict(rules) if rules is not None else None,
        )  # fmt: skip
