"""What the journal's writer does besides committing: retention, removing files, requests."""

from __future__ import annotations

import os
import stat
import time
from typing import TYPE_CHECKING

import structlog

from streamd.events import upkeep
from streamd.events.store import Store
from streamd.events.wallclock import Clock
from streamd.flow.threads import NamedThread

if TYPE_CHECKING:
    from streamd.events.writer import Writer

log = structlog.get_logger(__name__)

ALIVE_S = 10.0
RETAIN_S = 30.0
SWEEP_S = 60.0


class Chores:
    """Only the writer's thread uses it, except `alive`, `suspicious`, `wipe` and `sweep`.

    Args:
        writer: the writer.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.alive: dict[str, int] = {}
        """By stream: the latest time at which its open events were known to be open."""
        self._alive_noted: dict[str, int] = {}
        self.suspicious = False
        """A reader found damage."""
        self.wipe = False
        """Something was deleted on request: no copy may remain in the write-ahead log."""
        self.sweep = True
        """Files may still have to be removed: those of a deletion before a crash."""
        self._clock = Clock(time.monotonic(), time.time())
        self._ages = False
        self._alive_at = self._retain_at = self._sweep_at = time.monotonic()
        self._origins_forgotten = False
        self._sweeper: NamedThread | None = None

    def tick(self, now: float) -> None:
        """Called once a second, before a transaction: adds what is due to it."""
        writer = self._writer
        kept = (writer.retention, *(cursor.owed for cursor in list(writer.cursors.values())))
        self._ages = self._clock.look(now, time.time(), max(each.max_age_s for each in kept))
        writer.answer_requests()
        if now >= self._alive_at + ALIVE_S:
            self._alive_at = now
            self._note_alive()
        if now >= self._retain_at + RETAIN_S:
            self._retain_at = now
            writer.do(self._retain, wake=False)
        if now >= self._sweep_at + SWEEP_S:
            self.sweep = True

    def opened(self, store: Store) -> None:
        """The journal was opened for the first time."""
        self._clock.newest = store.newest_ns() / 1e9

    def _note_alive(self) -> None:
        store = self._writer.store
        concerned = {o.stream for o in list(store.open.committed.values())} if store is not None else set()
        told = {stream: self.alive[stream] for stream in concerned if stream in self.alive}
        if any(self._alive_noted.get(stream) != at_ns for stream, at_ns in told.items()):
            self._alive_noted = told
            self._writer.do(lambda store: store.touch(told), wake=False)

    def _retain(self, store: Store) -> None:
        now_ns = time.time_ns()
        owed = {name: cursor.owed for name, cursor in list(self._writer.cursors.items())}
        if upkeep.retain(store, self._writer.retention, owed, now_ns, ages=self._ages):
            self._retain_at -= RETAIN_S  # the next slice follows with the next tick
        if self._ages and not self._origins_forgotten:
            self._origins_forgotten = True
            upkeep.forget_origins(store, now_ns)

    def after_commit(self, store: Store) -> None:
        """Called outside a transaction.

        Raises:
            sqlite3.Error: the journal fails.
        """
        if self.suspicious:
            self.suspicious = False
            self._writer.check_file()
            return
        if self.wipe:
            (busy, *_) = store.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self.wipe = bool(busy)  # a reader is still active: tried again after the next commit or tick
        if self.sweep and (self._sweeper is None or not self._sweeper.is_alive()):
            self.sweep, self._sweep_at = False, time.monotonic()
            paths = upkeep.removals(store)
            if paths:
                # A folder that hangs must not delay events.
                self._sweeper = NamedThread(lambda: self._remove(paths), "events-sweep")
                self._sweeper.start()

    def _remove(self, paths: list[str]) -> None:
        gone = [path for path in paths if remove_file(path)]
        if gone:
            self._writer.do(lambda store: upkeep.removed(store, gone))


def remove_file(path: str) -> bool:
    """Removes a file; True if it no longer exists, for whatever reason. Anything but a regular file is left and
    forgotten."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            log.warning("not removed: no plain file", path=path)
            return True
        os.unlink(path)
    except FileNotFoundError:
        return True
    except (OSError, ValueError) as error:
        log.warning("cannot be removed now", path=path, error=str(error))
        return False
    log.info("removed on request", path=path)
    return True
