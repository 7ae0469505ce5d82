"""A sink's position in the journal."""

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
    """Exceeded the age or number of events that are kept for the sink."""
    deleted: int
    """Deleted on request before they were delivered."""


class Cursor:
    """Created by `Journal.cursor`. One thread reads and advances; any thread may read the counts.

    Events come in commit order, so each stream's are in its own order. Events that were read but not advanced past come
    again, also after a crash: each is delivered at least once, with the same `log_id` and `event_seq`."""

    def __init__(self, writer: Writer, name: str, owed: Limits, *, oldest: bool) -> None:
        self._writer = writer
        self.name, self.owed = name, owed
        self._oldest = oldest
        self._log_id = ""
        self._position = 0
        self._moves: list[tuple[str, int, Outcome]] = []
        """Outcomes not known to be committed; replaced, never changed."""
        self._scheduled = False
        self._lock = threading.Lock()
        self._troubled = False

    def make(self, store: Store) -> None:
        """In the writer's transaction: creates the row if there is none. In a new journal, before all events."""
        upkeep.make_cursor(store, self.name, oldest=self._oldest or bool(self._log_id))

    def _known(self, store: Store) -> int | None:
        """The sink's position, or the journal's if that is further (events expired); None before `make`."""
        state = store.cursors.committed.get(self.name)
        if state is None:
            return None
        if store.log_id != self._log_id:
            self._log_id, self._position = store.log_id, state.position
        self._position = max(self._position, state.position)
        return self._position

    def read(self, limit: int = 100) -> list[Record]:
        """The next events; the same ones until `advance`. Empty if there are none, or they cannot be read now."""
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
        # The file may have been replaced between the two reads.
        return [] if records and records[0].log_id != self._log_id else records

    def advance(self, record: Record, outcome: Outcome = "delivered") -> None:
        """The sink is done with every event up to this one. Never waits; persisted within a second.

        Args:
            record: the last of them, as read.
            outcome: refused if the target will never accept them.
        """
        if record.log_id != self._log_id or record.position <= self._position:
            return
        self._position = record.position
        store = self._writer.store
        state = store.cursors.committed.get(self.name) if store is not None else None
        with self._lock:
            # Committed outcomes need not be repeated.
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
        # May be called again if the transaction failed; a cursor only moves forward, so repeating it is harmless.
        with self._lock:
            self._scheduled = False
            moves = self._moves
        for log_id, position, outcome in moves:
            if log_id == store.log_id:
                upkeep.move_cursor(store, self.name, position, outcome)

    def wait(self, timeout: float) -> bool:
        """Waits for an event after the cursor; False if there is none within `timeout` seconds."""
        writer = self._writer

        def more() -> bool:
            store = writer.store
            position = self._known(store) if store is not None else None
            return store is not None and position is not None and store.position > position

        with writer.committed:
            return writer.committed.wait_for(more, timeout)

    def counts(self) -> CursorCounts:
        """The committed counts: events advanced past in the last second may still be among `queued`."""
        store = self._writer.store
        state = store.cursors.committed.get(self.name) if store is not None else None
        if store is None or state is None:
            return CursorCounts(0, 0, 0, 0, 0, 0)
        accepted = max(store.position, state.position) - state.start
        done = state.delivered + state.refused + state.expired + state.deleted
        return CursorCounts(accepted, accepted - done, state.delivered, state.refused, state.expired, state.deleted)
