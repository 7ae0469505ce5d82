"""The journal's only writer: its thread, its file, and what happens if the file cannot be written."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

import structlog

from streamd.errors import ConfigError
from streamd.events import requests, upkeep
from streamd.events.chores import Chores
from streamd.events.cursors import Cursor
from streamd.events.place import JOURNAL
from streamd.events.readers import Readers
from streamd.events.record import Record
from streamd.events.schema import is_corrupt, open_writer, set_aside
from streamd.events.store import Store
from streamd.events.upkeep import Deletion, Limits
from streamd.events.waiting import Call, Entry, Waiting
from streamd.flow.backoff import Backoff
from streamd.flow.threads import NamedThread

log = structlog.get_logger(__name__)

PACE_S = 0.025
"""Shortest time between commits. An event after a pause is committed immediately."""
BATCH = 1000
"""Largest number of entries in a transaction."""
TICK_S = 1.0
RETRY_INITIAL_S, RETRY_MAX_S = 0.1, 5.0

Listener = Callable[[Sequence[Record]], None]


class Writer:
    """Part of `Journal`, which documents its guarantees.

    Args:
        folder: the state folder, locked by this process.
        retention: how many events are kept that every cursor has passed.
        bound: largest number of events that wait in memory while it cannot be written.

    Raises:
        ConfigError: the journal is of a newer version, or another program's.
    """

    def __init__(self, folder: Path, retention: Limits, bound: int) -> None:
        self.folder, self.path = folder, folder / JOURNAL
        self.retention = retention
        self.cursors: dict[str, Cursor] = {}
        """Cursors in use, by name."""
        self.readers = Readers(self.path)
        self.store: Store | None = None
        """The committed state when it could last be read; None before the journal was first opened."""
        self.waiting = Waiting(bound)
        self.listeners: list[Listener] = []
        self.tally: Counter[str] = Counter()
        """Counts of stores that were closed since."""
        self.problem, self.since = "", time.time()
        """Why it cannot be written, and the Unix time of the last change in seconds."""
        self.committed = threading.Condition()
        """Notified after every commit."""
        self.chores = Chores(self)
        self._connected = False
        self._identity = (0, 0)
        self._batch: list[Entry] = []
        """Entries taken but not committed, which are tried again."""
        self._backoff = Backoff(RETRY_INITIAL_S, RETRY_MAX_S)
        self._stop = threading.Event()
        self._give_up_at = float("inf")
        requests.prepare(folder)
        try:
            self._open()
        except (sqlite3.Error, OSError) as error:
            self._fail(error)
        self._thread = NamedThread(self._run, "events")

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self, timeout: float) -> bool:
        """Commits waiting entries and ends; False if the thread hangs in a disk access and is abandoned."""
        self._give_up_at = time.monotonic() + timeout
        self._stop.set()
        self.waiting.wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout + 1.0)
        if self.waiting.events:
            log.error("events lost at exit", count=self.waiting.events, problem=self.problem)
        with self.committed:
            self.committed.notify_all()
        if self._thread.is_alive():
            return False
        self._disconnect()
        return True

    def do(self, function: Callable[[Store], object], *, wake: bool = True) -> None:
        """Queues a function to call in a transaction, after everything submitted before. Any thread."""
        self.waiting.call(function, wake=wake)

    def suspect(self, error: sqlite3.Error) -> None:
        """Reports an error that a reader met: if it means damage, the whole file is checked. Any thread."""
        if is_corrupt(error):
            self.chores.suspicious = True
            self.waiting.wake.set()

    def ask_to_delete(self, stream: str | None, since_ns: int, until_ns: int) -> Future[Deletion]:
        """See `upkeep.delete`. Any thread."""

        def delete(store: Store) -> Deletion:
            self.chores.wipe = self.chores.sweep = True
            self.waiting.forget_memory(stream)
            return upkeep.delete(store, stream, since_ns, until_ns)

        return self.waiting.call(delete)

    # ------------------------------------------------------------------------------------------------------ writer

    def _run(self) -> None:
        waiting = self.waiting
        last = next_tick = 0.0
        while True:
            stopping = self._stop.is_set()
            if stopping and (not (self._batch or not waiting.empty()) or time.monotonic() > self._give_up_at):
                return
            if not stopping:
                waiting.wake.wait(max(0.0, next_tick - time.monotonic()))
                self._stop.wait(max(0.0, last + PACE_S - time.monotonic()))
            waiting.wake.clear()
            now = time.monotonic()
            if now >= next_tick:
                next_tick = now + TICK_S
                self.chores.tick(now)
            try:
                self._write()
            except (ConfigError, sqlite3.Error, OSError) as error:
                self._fail(error)
                wait = self._backoff.next()
                self._stop.wait(wait) if not stopping else time.sleep(min(wait, 0.2))
                waiting.wake.set()
            last = time.monotonic()

    def _write(self) -> None:
        """Commits waiting entries, one transaction after the other."""
        store = self._ready()
        while True:
            if not self._batch:
                self._batch = self.waiting.take(BATCH)
            if not self._batch and self.problem:
                self._batch = [Call(_probe)]
            if not self._batch:
                break
            try:
                records = self._commit(store, self._batch)
            except sqlite3.DatabaseError as error:
                if isinstance(error, (sqlite3.OperationalError, sqlite3.InternalError)) or is_corrupt(error):
                    raise
                records = self._one_by_one(error)
                store = self._ready()
            except (ArithmeticError, LookupError, TypeError, ValueError, AssertionError, AttributeError) as error:
                records = self._one_by_one(error)
                store = self._ready()
            done, self._batch = self._batch, []
            self.waiting.finish(done)
            self._publish(records)
            for entry in done:
                entry.done()
            self._recovered()
        self.chores.after_commit(store)

    def _commit(self, store: Store, entries: Sequence[Entry]) -> list[Record]:
        try:
            store.begin()
            for entry in entries:
                entry.apply(store)
            return store.commit()
        except BaseException:
            store.rollback()
            raise

    def _one_by_one(self, first: Exception) -> list[Record]:
        """An entry that can never be committed is found, logged and left out."""
        log.error("event journal: a transaction failed", why=repr(first))
        records: list[Record] = []
        for entry in list(self._batch):
            self._disconnect()  # if memory and tables differ, the tables are right
            try:
                records += self._commit(self._ready(), [entry])
            except (sqlite3.OperationalError, sqlite3.InternalError):
                self._publish(records)
                raise
            except Exception as error:
                log.exception("event journal: left out")
                self.tally["refused"] += 1
                entry.failed(error)
            else:
                entry.done()
            self._batch.remove(entry)
            self.waiting.finish([entry])
        return records

    def _publish(self, records: list[Record]) -> None:
        if records:
            for listener in self.listeners:
                try:
                    listener(records)
                except Exception:
                    log.exception("event listener failed")
        with self.committed:
            self.committed.notify_all()

    # -------------------------------------------------------------------------------------------------------- file

    def _open(self) -> Store:
        """Opens the file; a damaged one is set aside, and a new one created."""
        try:
            connection = open_writer(self.path)
            try:
                store = Store(connection)
            except BaseException:
                connection.close()
                raise
        except sqlite3.DatabaseError as error:
            if not is_corrupt(error):
                raise
            self._set_aside(str(error))
            return self._open()
        found = os.stat(self.path)
        self._identity = (found.st_dev, found.st_ino)
        if self.store is None:
            self.chores.opened(store)
        else:
            self.tally += self.store.tally
            if self.store.log_id != store.log_id:
                for cursor in list(self.cursors.values()):
                    self.do(cursor.make)
        self.store, self._connected = store, True
        return store

    def _ready(self) -> Store:
        """The open store of the file that is currently at the path."""
        if self.store is not None and self._connected:
            try:
                found = os.stat(self.path)
                if (found.st_dev, found.st_ino) == self._identity:
                    return self.store
            except FileNotFoundError:
                pass
            log.error("event journal is gone: begins anew", path=str(self.path))
            self._disconnect()
        return self._open()

    def _disconnect(self) -> None:
        self._connected = False
        self.readers.close()
        if self.store is not None:
            with contextlib.suppress(sqlite3.Error):
                self.store.connection.close()

    def _set_aside(self, why: str) -> None:
        self._disconnect()
        aside = set_aside(self.path)
        log.error("event journal is damaged: set aside, begins anew", why=why, kept_as=str(aside))

    def check_file(self) -> None:
        """Checks the whole file, and sets it aside if it is damaged. Only for the writer's thread."""
        if self.store is None or not self._connected:
            return
        try:
            (found,) = self.store.connection.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.DatabaseError as error:
            if not is_corrupt(error):
                raise
            found = str(error)
        if found != "ok":
            self._set_aside(found)

    def _fail(self, error: Exception) -> None:
        problem = str(error) if isinstance(error, ConfigError) else f"{self.path}: {error}"
        if is_corrupt(error):
            with contextlib.suppress(OSError):
                self._set_aside(str(error))
        elif not _busy(error):
            # A connection that has met an I/O error or a full disk may hold outdated state.
            self._disconnect()
        if not self.problem:
            log.error("event journal cannot be written", problem=problem)
            self.since = time.time()
        self.problem = problem

    def _recovered(self) -> None:
        if self.problem:
            log.info("event journal can be written again", was=self.problem, waiting=self.waiting.events)
            self.problem, self.since = "", time.time()
        self._backoff.reset()

    def answer_requests(self) -> None:
        """Carries out requests of the command line. Only for the writer's thread."""
        requests.answer(self)


def _probe(store: Store) -> None:
    """Writes without changing anything, to test whether the journal can be written."""
    store.connection.execute("UPDATE meta SET value = value WHERE name = 'position'")


def _busy(error: Exception) -> bool:
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)
