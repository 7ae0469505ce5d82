"""The journal's transaction: what an event changes in the tables and in their copy in memory.

This module has no threads, waits or retries: `journal` has those. A transaction is `begin`, any number of `add` and the
functions of `upkeep`, then `commit` or `rollback`; memory changes with the commit, never before.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import msgspec
import structlog
from msgspec.structs import astuple, replace

from streamd.events import rulestates
from streamd.events.layered import Layered
from streamd.events.losses import Lost
from streamd.events.record import MAX_DETAILS_BYTES, Event, Kind, OpenEvent, Record

log = structlog.get_logger(__name__)

EVENTS_LOST = "events_lost"
"""Reason in the details of an end that the journal wrote because the original end was lost."""
_INT64 = 1 << 63
KINDS = get_args(Kind)
_OPEN = ", ".join(OpenEvent.__struct_fields__)
"""Columns of the table `open`, in the order of the record's fields."""


class CursorState(NamedTuple):
    """A sink's progress. queued = accepted - delivered - refused - expired - deleted, exactly."""

    start: int
    """The journal's position when the cursor was created."""
    position: int
    delivered: int = 0
    refused: int = 0
    """Given up by the sink: the target will never accept them."""
    expired: int = 0
    """Past the cursor's limit before they could be delivered."""
    deleted: int = 0
    """Deleted on request before they could be delivered."""


class CounterValue(NamedTuple):
    """A counter of a stream: monotone for as long as `since_ns` stays."""

    value: int
    since_ns: int
    """Unix nanoseconds at which this journal began to count."""


class Store:
    """The tables, through the one connection that writes. One thread.

    Args:
        connection: of `schema.open_writer`.

    Raises:
        sqlite3.Error: the tables cannot be read.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        rows = connection.execute
        meta = dict(rows("SELECT name, value FROM meta").fetchall())
        self.log_id: str = meta["log_id"]
        self.position: int = meta["position"]
        """Position of the last committed event; any thread may read it."""
        self.streams: Layered[str, tuple[int, int]] = Layered(
            {stream: (seq, lost) for stream, seq, lost in rows("SELECT stream, event_seq, lost FROM streams")}
        )
        """(last event_seq, events lost since)."""
        self.counters: Layered[tuple[str, str], CounterValue] = Layered(
            {(s, name): CounterValue(v, since) for s, name, v, since in rows("SELECT * FROM counters")}
        )
        self.by_stream: dict[str, dict[str, CounterValue]] = {}
        """Committed counters; each dictionary is replaced, never modified, so any thread may keep one."""
        for (stream, name), value in self.counters.committed.items():
            self.by_stream.setdefault(stream, {})[name] = value
        self.open: Layered[str, OpenEvent] = Layered({
            row[0]: OpenEvent(*row) for row in rows(f"SELECT {_OPEN} FROM open")  # noqa: S608
        })  # fmt: skip
        """By id."""
        self.origins: Layered[str, int] = Layered(dict(rows("SELECT origin, n FROM origins")))
        self.cursors: Layered[str, CursorState] = Layered(
            {row[0]: CursorState(*row[1:]) for row in rows("SELECT * FROM cursors")}
        )
        self.rules: Layered[tuple[str, str], dict[str, Any]] = Layered(
            {(s, rule): msgspec.json.decode(state) for s, rule, state in rows("SELECT * FROM rules")}
        )
        """By stream and rule: see `rulestates`."""
        self.tally: Counter[str] = Counter()
        """Committed since this object was made: events, duplicates, orphans, refused, deleted."""
        self._pending_tally: Counter[str] = Counter()
        self.last = self.position
        """Position of the last event of this transaction."""
        self._now_ns = 0
        self._rows: list[tuple[Any, ...]] = []
        """Events that are not inserted yet."""
        self.records: list[Record] = []
        """Records of this transaction."""
        self.unwanted: dict[str, None] = {}
        """The newest files that were deleted on request: other events may still name them."""

    def newest_ns(self) -> int:
        """When the newest event was committed, Unix nanoseconds; 0 if there is none."""
        row = self.connection.execute("SELECT committed_ns FROM events ORDER BY position DESC LIMIT 1").fetchone()
        return int(row[0]) if row is not None else 0

    # ------------------------------------------------------------------------------------------------- transaction

    def begin(self) -> None:
        """Starts a transaction.

        Raises:
            sqlite3.Error: another process holds a lock, or the disk fails.
        """
        self.connection.execute("BEGIN IMMEDIATE")
        self._now_ns = time.time_ns()

    def flush(self) -> None:
        """Inserts what was added, so that statements see it."""
        if self._rows:
            marks = ",".join("?" * len(self._rows[0]))
            self.connection.executemany(f"INSERT INTO events VALUES ({marks})", self._rows)  # noqa: S608
            self._rows = []

    def commit(self) -> list[Record]:
        """Commits, and returns what may be delivered from now on.

        Raises:
            sqlite3.Error: it failed; call `rollback`.
        """
        self.flush()
        execute, many = self.connection.execute, self.connection.executemany
        changed = [(s, *v) for s, v in self.streams.changes() if v is not None]
        if changed:
            many("INSERT OR REPLACE INTO streams VALUES (?, ?, ?)", changed)
        counted = [(*key, *v) for key, v in self.counters.changes() if v is not None]
        if counted:
            many("INSERT OR REPLACE INTO counters VALUES (?, ?, ?, ?)", counted)
        numbers = [(origin, n, self._now_ns) for origin, n in self.origins.changes() if n is not None]
        if numbers:
            many("INSERT OR REPLACE INTO origins VALUES (?, ?, ?)", numbers)
        counted_by = [(*key, msgspec.json.encode(state).decode()) for key, state in self.rules.changes()]
        if counted_by:
            many("INSERT OR REPLACE INTO rules VALUES (?, ?, ?)", counted_by)
        opened = self.open.changes()
        self._write("open", "id", _OPEN, opened, [astuple(o) for _, o in opened if o is not None])
        moved = self.cursors.changes()
        columns = ", ".join(("name", *CursorState._fields))
        self._write("cursors", "name", columns, moved, [(name, *c) for name, c in moved if c is not None])
        if self.last != self.position:
            execute("UPDATE meta SET value = ? WHERE name = 'position'", (self.last,))
        execute("COMMIT")
        self.position = self.last
        for key, value in self.counters.changes():
            assert value is not None
            self.by_stream[key[0]] = {**self.by_stream.get(key[0], {}), key[1]: value}
        for each in (self.streams, self.counters, self.open, self.origins, self.cursors, self.rules):
            each.keep()
        self.tally += self._pending_tally
        self._pending_tally.clear()
        records, self.records = self.records, []
        return records

    def _write(
        self, table: str, key: str, columns: str, changes: Sequence[tuple[str, Any]], kept: Sequence[tuple[Any, ...]]
    ) -> None:
        gone = [(each,) for each, value in changes if value is None]
        if gone:
            self.connection.executemany(f"DELETE FROM {table} WHERE {key} = ?", gone)  # noqa: S608
        if kept:
            marks = ",".join("?" * len(kept[0]))
            self.connection.executemany(f"INSERT OR REPLACE INTO {table} ({columns}) VALUES ({marks})", kept)  # noqa: S608

    def rollback(self) -> None:
        """Forgets the transaction, if there is one."""
        with contextlib.suppress(sqlite3.Error):
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
        for each in (self.streams, self.counters, self.open, self.origins, self.cursors, self.rules):
            each.drop()
        self._pending_tally.clear()
        self.last = self.position
        self._rows, self.records = [], []

    # ------------------------------------------------------------------------------------------------------ events

    def add(self, event: Event | None, origin: str = "", n: int = 0, lost: Lost | None = None) -> None:
        """Adds one event.

        Args:
            event: an event of this process or of a worker; None if there is only a loss to report.
            origin: the process that numbered it.
            n: its number there, from 1; at or below the last one it is a duplicate and dropped. 0: not numbered.
            lost: events before it that the sender had no room for.
        """
        if n:
            if n <= (self.origins.get(origin) or 0):
                self._pending_tally["duplicates"] += 1
                return
            self.origins.put(origin, n)
        if lost is not None:
            self._settle(lost)
        if event is None:
            return
        if event.state:
            rulestates.put(self.rules, event.stream, event.state)
        try:
            details = _checked(event)
        except (ValueError, TypeError, OverflowError, AttributeError, RecursionError) as error:
            log.error("event refused", stream=event.stream, rule=event.rule, why=str(error))
            self._lose(event.stream, "refused")
            return
        counters = self.raise_counters(event.stream, event.counts)
        kind, known = event.kind, self.open.get(event.id)
        began_ns = event.at_ns
        if kind == "begin":
            if known is not None:
                self._lose(event.stream, "refused")
                log.error("event refused", stream=event.stream, rule=event.rule, why=f"{event.id} has begun already")
                return
            self.open.put(event.id, OpenEvent(
                event.id, event.type, event.rule, event.label, event.track, event.epoch, event.seq, event.at_ns,
                event.at_ns, event.stream, origin, 0, event.generation,
            ))  # fmt: skip
        elif kind != "instant":
            if known is None:
                # Its begin was lost, or is in an earlier journal: half an event would never be completed.
                self._lose(event.stream, "orphans")
                return
            if kind == "end":
                self.open.remove(event.id)
            else:
                self.open.put(event.id, replace(known, last_ns=event.at_ns))
            if known.deleted:
                self._pending_tally["deleted"] += 1
                return
            began_ns = known.began_ns
        self._append(event, details, began_ns, counters)

    def _append(self, e: Event, details: str, began_ns: int, counters: dict[str, int]) -> None:
        event_seq, lost = self.streams.get(e.stream) or (0, 0)
        event_seq += 1
        self.last += 1
        self.streams.put(e.stream, (event_seq, 0))
        self._pending_tally["events"] += 1
        self._rows.append((
            self.last, e.stream, event_seq, e.id, e.kind, e.type, e.rule, e.label, e.track, e.epoch, e.seq, e.at_ns,
            began_ns, self._now_ns, lost, details, msgspec.json.encode(counters).decode(), e.generation,
        ))  # fmt: skip
        self.records.append(Record(
            position=self.last, log_id=self.log_id, event_seq=event_seq, began_ns=began_ns,
            committed_ns=self._now_ns, events_lost=lost, counters=counters, id=e.id, stream=e.stream, kind=e.kind,
            type=e.type, rule=e.rule, label=e.label, track=e.track, epoch=e.epoch, seq=e.seq, at_ns=e.at_ns,
            details=e.details, generation=e.generation,
        ))  # fmt: skip

    def raise_counters(self, stream: str, by: Mapping[str, int]) -> dict[str, int]:
        """Increases counters of a stream, and returns their new values."""
        values = {}
        for name, amount in by.items():
            old = self.counters.get((stream, name)) or CounterValue(0, self._now_ns)
            self.counters.put((stream, name), CounterValue(old.value + amount, old.since_ns))
            values[name] = old.value + amount
        return values

    def _settle(self, lost: Lost) -> None:
        for stream, count in lost.events.items():
            self.add_lost(stream, count)
        for stream, counts in lost.counts.items():
            self.raise_counters(stream, counts)
        self.end_open(EVENTS_LOST, lambda o: o.id in lost.ends, lost.ends)

    def _lose(self, stream: str, why: str) -> None:
        self._pending_tally[why] += 1
        self.add_lost(stream, 1)

    def add_lost(self, stream: str, count: int) -> None:
        """Adds to the number of lost events that the stream's next event reports."""
        event_seq, lost = self.streams.get(stream) or (0, 0)
        self.streams.put(stream, (event_seq, lost + count))

    def touch(self, at_ns: Mapping[str, int]) -> None:
        """By stream: the time at which its open events were still open."""
        for each, known in list(self.open.items()):
            when = at_ns.get(known.stream)
            if when is not None and when > known.last_ns:
                self.open.put(each, replace(known, last_ns=when))

    def adopt(
        self,
        stream: str,
        event_seq: int,
        counters: Mapping[str, int],
        orphans: Iterable[OpenEvent] = (),
        reason: str = "",
    ) -> None:
        """A stream continues here that was in another journal.

        Args:
            stream: its id.
            event_seq: its last number there: its next event here has a higher one.
            counters: their values there.
            orphans: events that are open there and that nobody else will end: they end now.
            reason: stored in the details of these ends.
        """
        own, lost = self.streams.get(stream) or (0, 0)
        self.streams.put(stream, (max(own, event_seq), lost))
        for name, value in counters.items():
            old = self.counters.get((stream, name)) or CounterValue(0, self._now_ns)
            if value > old.value:
                self.counters.put((stream, name), CounterValue(value, old.since_ns))
        for orphan in orphans:
            known = self.connection.execute("SELECT 1 FROM events WHERE id = ? LIMIT 1", (orphan.id,)).fetchone()
            if known is None and self.open.get(orphan.id) is None:
                self.open.put(orphan.id, orphan)
                self.end_open(reason, lambda o, id_=orphan.id: o.id == id_)  # type: ignore[misc]

    def end_open(self, reason: str, which: Callable[[OpenEvent], bool], at_ns: Mapping[str, int] | None = None) -> int:
        """Ends open events in place of the process that began them.

        Args:
            reason: stored in their details.
            which: whether to end an event.
            at_ns: time of the end by id; otherwise the last time known for the event.

        Returns:
            The number of ended events.
        """
        chosen = [o for _, o in self.open.items() if which(o)]
        for o in chosen:
            when = (at_ns or {}).get(o.id, o.last_ns)
            self.add(Event(
                id=o.id, stream=o.stream, kind="end", type=o.type, rule=o.rule, label=o.label, track=o.track,
                epoch=o.epoch, seq=o.seq, at_ns=when, details={"reason": reason}, generation=o.generation,
            ))  # fmt: skip
        return len(chosen)


def _checked(event: Event) -> str:
    """The event's details as JSON, after checking that the event fits into the tables."""
    details = msgspec.json.encode(event.details)
    if len(details) > MAX_DETAILS_BYTES:
        raise ValueError(f"details of {len(details)} bytes; expected at most {MAX_DETAILS_BYTES}")
    numbers = (event.epoch, event.seq, event.at_ns, *event.counts.values())
    if isinstance(event.track, int):
        numbers += (event.track,)
    if not all(isinstance(number, int) and -_INT64 <= number < _INT64 for number in numbers):
        raise ValueError("epoch, seq, at_ns, track and counts are to be Python's integers of at most 64 bits")
    if event.kind not in KINDS:
        raise ValueError(f"kind {event.kind!r}; expected one of {', '.join(KINDS)}")
    if any(amount < 0 for amount in event.counts.values()):
        raise ValueError("a counter that falls; counters only rise")
    texts = (event.id, event.stream, event.type, event.rule, event.label, *event.counts)
    for text in texts if not isinstance(event.track, str) else (*texts, event.track):
        if text is not None:
            text.encode()  # a lone surrogate is not text
    return details.decode()
