"""A sink's place in the writer."""

from __future__ import annotations

import sqlite3
import threading
from typing import TYPE_CHECKING, NamedTuple

import structlog

from streamd.errors import ConfigError
from streamd.events import query, upkeep
from streamd.events.record import Record
from streamd.events.store import Store
from streamd.events.upkeep import Limits, Outcome

if TYPE_CHECKING:
    from streamd.events.writer import Writer

log = structlog.get_logger(__name__)


class CursorCounts(NamedTuple):
    """accepted = queued + delivered + refused + expired + deleted, exactly."""

    accepted: int
    """Events that were committed since the cursor was made."""
    queued: int
    delivered: int
    refused: int
    """Given up by the sink."""
    expired: int
    """Waited for longer, or with more others, than the sink is owed."""
    deleted: int
    """By request, while they waited."""


class Cursor:
    """Made by `Journal.cursor`. One thread reads and advances; any thread asks for counts.

    Events come in the order of their commits, so each stream's in its own order. What was read and not advanced past
    comes again, also after a crash: at least once, with the same `log_id` and `event_seq`.
    """

    def __init__(self, writer: Writer, name: str, owed: Limits, *, oldest: bool) -> None:
        self._writer = writer
        self.name, self.owed = name, owed
        self._oldest = oldest
        self._log_id = ""
        self._position = 0
        self._moves: list[tuple[str, int, Outcome]] = []
        """Those that are not known to be committed; replaced, never changed."""
        self._scheduled = False
        self._lock = threading.Lock()
        self._troubled = False

    def make(self, store: Store) -> None:
        """In the writer's transaction: the row, where there is none. In a new journal, before everything."""
        upkeep.make_cursor(store, self.name, oldest=self._oldest or bool(self._log_id))

    def _known(self, store: Store) -> int | None:
        """The position, by the sink or, where that is further (events expired), by the journal; None before `make`."""
        state = store.cursors.committed.get(self.name)
        if state is None:
            return None
        if store.log_id != self._log_id:
            self._log_id, self._position = store.log_id, state.position
        self._position = max(self._position, state.position)
        return self._position

    def read(self, limit: int = 100) -> list[Record]:
        """The next events; the same ones until `advance`. Empty where there are none, or they cannot be read now."""
        store = self._writer.store
        position = self._known(store) if store is not None else None
        if position is None:
            return []
        try:
            records = self._writer.readers.use(lambda connection: query.after(connection, position, limit))
        except (sqlite3.Error, ConfigError) as error:
            if not self._troubled:
                log.error("event journal cannot be read", sink=self.name, error=str(error))
            self._troubled = True
            if isinstance(error, sqlite3.Error):
                self._writer.suspect(error)
            return []
        self._troubled = False
        # Between the two looks a new file may have taken the place of the old one.
        return [] if records and records[0].log_id != self._log_id else records

    def advance(self, record: Record, outcome: Outcome = "delivered") -> None:
        """The sink is done with every event up to this one. Never waits; persisted within a second.

        Args:
            record: the last of them, as it was read.
            outcome: refused where the target will never take them.
        """
        if record.log_id != self._log_id or record.position <= self._position:
            return
        self._position = record.position
        store = self._writer.store
        state = store.cursors.committed.get(self.name) if store is not None else None
        with self._lock:
            # What is committed need not be said again.
            done = state.position if state is not None else 0
            moves = [move for move in self._moves if move[0] == record.log_id and move[1] > done]
            if moves and moves[-1][2] == outcome:
                moves.pop()
            moves.append((record.log_id, record.position, outcome))
            self._moves = moves
            scheduled, self._scheduled = self._scheduled, True
        if not scheduled:
            self._writer.do(self._move, wake=False)

    def _move(self, store: Store) -> None:
        # May be called again where the transaction failed; a cursor only moves forward, so twice is as good as once.
        with self._lock:
            self._scheduled = False
            moves = self._moves
        for log_id, position, outcome in moves:
            if log_id == store.log_id:
                upkeep.move_cursor(store, self.name, position, outcome)

    def wait(self, timeout: float) -> bool:
        """Waits for an event behind the cursor; False where there is none within `timeout` seconds."""
        writer = self._writer

        def more() -> bool:
            store = writer.store
            position = self._known(store) if store is not None else None
            return store is not None and position is not None and store.position > position

        with writer.committed:
            return writer.committed.wait_for(more, timeout)

    def counts(self) -> CursorCounts:
        """As committed: what was advanced past in the last second may still be among `queued`."""
        store = self._writer.store
        state = store.cursors.committed.get(self.name) if store is not None else None
        if store is None or state is None:
            return CursorCounts(0, 0, 0, 0, 0, 0)
        accepted = max(store.position, state.position) - state.start
        done = state.delivered + state.refused + state.expired + state.deleted
        return CursorCounts(accepted, accepted - done, state.delivered, state.refused, state.expired, state.deleted)
