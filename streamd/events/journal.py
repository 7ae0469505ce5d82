"""The journal: accepts events from any thread, commits them in one, and releases none before its commit."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from streamd.errors import ConfigError, SinkError
from streamd.events import query, rulestates, upkeep
from streamd.events.cursors import Cursor
from streamd.events.losses import Lost
from streamd.events.place import StateDir
from streamd.events.record import Event, Media, OpenEvent, Record, RuleStates
from streamd.events.store import CounterValue, Store
from streamd.events.upkeep import Deletion, Limits
from streamd.events.writer import Listener, Writer

T = TypeVar("T")
BOUND = 10_000
"""Largest number of events that wait in memory while the journal cannot be written."""
RETENTION = Limits(max_age_s=30 * 86_400, max_events=500_000)


MediaListener = Callable[[str, str, Media], None]
"""Called with stream, role and file."""


class JournalStatus(NamedTuple):
    """The journal's state. Counts are since the start of this process."""

    problem: str
    """Why it cannot be written; empty if it can."""
    since: float
    """Unix seconds at which the problem began or ended."""
    log_id: str
    """Empty until it could be opened."""
    waiting: int
    """Events in memory, not committed yet."""
    committed: int
    lost: int
    """Lost for lack of memory."""
    duplicates: int
    """Received again and dropped."""
    orphans: int
    """Updates and ends without a begin."""
    refused: int
    """Invalid events; the log names them."""
    open: int
    """Events that have begun and not ended."""


class Standing(NamedTuple):
    """How far a journal is with one stream."""

    event_seq: int
    counters: Mapping[str, int]
    open: list[OpenEvent]


class Journal:
    """One per daemon. All methods may be called from any thread.

    Args:
        folder: the state folder; created if needed, locked while the journal exists.
        retention: how many events are kept that every cursor has passed.
        bound: largest number of events that wait in memory while it cannot be written.

    Raises:
        ConfigError: the folder cannot be used or is in use, or the journal is of a newer version. Any other obstacle to
            writing is a `status().problem`, and is tried again.
    """

    def __init__(self, folder: Path, *, retention: Limits = RETENTION, bound: int = BOUND) -> None:
        self._media_listeners: list[MediaListener] = []
        self._place = StateDir(folder)
        self.folder = folder
        try:
            self._writer = Writer(folder, retention, bound)
        except ConfigError:
            self._place.close()
            raise

    def start(self) -> None:
        """Starts the writer."""
        self._writer.start()

    def close(self, timeout: float = 5.0) -> bool:
        """Commits waiting events and ends. The state folder is then free for another process.

        Returns:
            False if the journal could not be written within `timeout` seconds: waiting events are lost.
        """
        ended = self._writer.close(timeout)
        if ended:
            # If the writer hangs in a disk access, the lock is released with the process.
            self._place.close()
        return ended and not self._writer.waiting.events

    # -------------------------------------------------------------------------------------------------- submitting

    def submit(self, event: Event | None, origin: str = "", n: int = 0, lost: Lost | None = None) -> bool:
        """Submits an event. Never waits, not even for a disk.

        Args:
            event: usually committed within 50 ms.
            origin: the process that numbered it, for events that may be sent again; empty for this process's own.
            n: its number there, from 1 and ascending. A number that was accepted before is dropped as a duplicate.
            lost: events before it that its sender had no room for. The event may be None if there is only a loss to
                report.

        Returns:
            False if there is no room. A numbered event must then be sent again; any other is lost, counted, and
            reported by the next one of its stream.
        """
        return self._writer.waiting.submit(event, origin, n, lost, self._writer.store)

    def taken(self, origin: str) -> int:
        """The last number of `origin` that was accepted, committed or not."""
        return self._writer.waiting.last(origin, self._writer.store)

    def acknowledged(self, origin: str) -> int:
        """The last number of `origin` that is committed."""
        store = self._writer.store
        return store.origins.committed.get(origin, 0) if store is not None else 0

    def listen(self, listener: Listener) -> None:
        """Passes every committed event to `listener`, in order, in the writer's thread: it must not wait."""
        self._writer.listeners.append(listener)

    def listen_media(self, listener: MediaListener) -> None:
        """Calls `listener` for every file of an event that was recorded, on the writer's thread: it must not wait."""
        self._media_listeners.append(listener)

    def end_open(
        self,
        reason: str,
        *,
        streams: Collection[str] | None = None,
        rules: Collection[str | None] | None = None,
        origin: str | None = None,
    ) -> Future[int]:
        """Ends open events in place of the process that began them, at the last time known for each.

        Args:
            reason: stored in the details of each end, e.g. process_died.
            streams: only events of these streams.
            rules: only events of these rules.
            origin: only events that this process began.

        Returns:
            The number of ended events; known after the commit.
        """

        def which(o: OpenEvent) -> bool:
            return (
                (streams is None or o.stream in streams)
                and (rules is None or o.rule in rules)
                and (origin is None or o.origin == origin)
            )

        def end(store: Store) -> int:
            store.touch(self._writer.chores.alive)
            return store.end_open(reason, which)

        return self._writer.waiting.call(end)

    def adopt(
        self,
        stream: str,
        event_seq: int,
        counters: Mapping[str, int],
        orphans: Iterable[OpenEvent] = (),
        reason: str = "",
    ) -> Future[None]:
        """A stream continues here that was in the journal of another machine; see `Store.adopt`."""
        orphans = list(orphans)
        return self._writer.waiting.call(lambda store: store.adopt(stream, event_seq, counters, orphans, reason))

    def settled(self) -> Future[None]:
        """Done once everything submitted before is committed."""
        return self._writer.waiting.call(lambda _: None)

    def standing(self, stream: str) -> Standing:
        """How far the journal is with a stream, as committed."""
        store = self._writer.store
        if store is None:
            return Standing(0, {}, [])
        event_seq, _ = store.streams.committed.get(stream, (0, 0))
        opened = [o for o in list(store.open.committed.values()) if o.stream == stream and not o.deleted]
        return Standing(event_seq, {n: c.value for n, c in store.by_stream.get(stream, {}).items()}, opened)

    def alive(self, at_ns: Mapping[str, int]) -> None:
        """Declares until when the open events of streams are known to be open, for `end_open`.

        Cheap: kept in memory, and written every ten seconds for the case that this process dies. One thread.

        Args:
            at_ns: Unix time in nanoseconds, by stream.
        """
        self._writer.chores.alive = {**self._writer.chores.alive, **at_ns}

    def keep(self, told: RuleStates) -> None:
        """Keeps what rules have counted without an event, for the process that continues. Never waits."""
        self._writer.waiting.keep(told)

    def rules(self, stream: str) -> dict[str, Any] | None:
        """What the rules of a stream have counted, as of `RuleEngine.state`; None if nothing is known of them."""
        store, latest = self._writer.store, self._writer.waiting.rules
        committed = store.rules.committed if store is not None else {}
        return rulestates.assembled({**committed, **latest}, stream)

    def link(self, event_id: str, role: str, media: Media) -> None:
        """Records a file of an event; its role is clip, snapshot, or another."""

        def note(store: Store) -> str | None:
            stream = upkeep.link(store, event_id, role, media)
            if stream is None:
                self._writer.chores.sweep = True
            return stream

        def tell(done: Future[str | None]) -> None:
            if done.exception() is None and (stream := done.result()) is not None:
                for listener in self._media_listeners:
                    listener(stream, role, media)

        self._writer.waiting.call(note).add_done_callback(tell)

    def forget_media(self, paths: Sequence[str]) -> None:
        """Records that these files were removed by the retention of the media folder."""
        self._writer.do(lambda store: upkeep.forget_media(store, paths))

    def flush(self, timeout: float = 5.0) -> bool:
        """Waits until everything submitted before is committed; False if that takes longer than `timeout` seconds."""
        try:
            self._writer.waiting.call(lambda _: None).result(timeout)
        except FutureTimeout:
            return False
        return True

    # -------------------------------------------------------------------------------------------------- delivering

    def cursor(self, name: str, owed: Limits = RETENTION, *, oldest: bool = False) -> Cursor:
        """The persistent cursor of a sink.

        Args:
            name: name of the sink, by which the cursor is found again after a restart.
            owed: how many events are kept for the sink while it does not deliver; further ones expire and are counted.
            oldest: a new cursor starts before the oldest kept event instead of after the newest.
        """
        cursor = self._writer.cursors[name] = Cursor(self._writer, name, owed, oldest=oldest)
        self._writer.do(cursor.make)
        return cursor

    def drop_cursor(self, name: str) -> None:
        """Forgets the cursor of a removed sink."""
        self._writer.cursors.pop(name, None)
        self._writer.do(lambda store: upkeep.drop_cursor(store, name))

    def keep_cursors(self, names: Collection[str]) -> None:
        """Forgets every cursor of a sink that is not among `names`."""
        self._writer.do(lambda store: upkeep.keep_cursors(store, names))

    # ----------------------------------------------------------------------------------------------------- reading

    def find(self, wanted: query.Filter) -> list[Record]:
        """See `query.find`.

        Raises:
            SinkError: the journal cannot be read.
        """
        return self._read(lambda connection: query.find(connection, wanted))

    def open_events(self, streams: Sequence[str] | None = None) -> list[Record]:
        """See `query.open_events`.

        Raises:
            SinkError: the journal cannot be read.
        """
        return self._read(lambda connection: query.open_events(connection, streams))

    def pending_media(self) -> list[tuple[str, str, str, str]]:
        """See `query.pending_media`.

        Raises:
            SinkError: the journal cannot be read.
        """
        return self._read(query.pending_media)

    def _read(self, function: Callable[[sqlite3.Connection], list[T]]) -> list[T]:
        try:
            return self._writer.readers.use(function)
        except sqlite3.Error as error:
            self._writer.suspect(error)
            raise SinkError(f"event journal {self._writer.path}: cannot be read: {error}") from error

    def counters(self, stream: str) -> Mapping[str, CounterValue]:
        """The stream's committed counters; never modified, replaced at a commit."""
        store = self._writer.store
        return store.by_stream.get(stream, {}) if store is not None else {}

    def status(self) -> JournalStatus:
        """The journal's state."""
        writer = self._writer
        store, waiting = writer.store, writer.waiting
        tally = writer.tally + store.tally if store is not None else writer.tally
        return JournalStatus(
            writer.problem, writer.since, store.log_id if store is not None else "", waiting.events, tally["events"],
            waiting.lost, waiting.duplicates + tally["duplicates"], tally["orphans"], tally["refused"],
            sum(not o.deleted for o in list(store.open.committed.values())) if store is not None else 0,
        )  # fmt: skip

    def delete(self, stream: str | None, since_ns: int, until_ns: int, timeout: float = 30.0) -> Deletion:
        """Deletes every event that overlaps the time span: rows, pending deliveries, and files. See `upkeep.delete`.

        A separate thread removes the files soon after; after a crash, the next start does.

        Raises:
            SinkError: not done within `timeout` seconds; it will be done as soon as the journal can be written.
        """
        try:
            return self._writer.ask_to_delete(stream, since_ns, until_ns).result(timeout)
        except FutureTimeout:
            why = self._writer.problem or "the journal is busy"
            message = f"events are not deleted yet ({why}); they will be as soon as the journal can be written"
            raise SinkError(message) from None
