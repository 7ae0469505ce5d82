"""The bounded queue in front of the journal's writer, and what is remembered of events lost for lack of room."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any, Generic, TypeVar

from streamd.events.losses import Losses, Lost
from streamd.events.record import Event, RuleStates
from streamd.events.rulestates import Latest, forget_memory, put, put_all
from streamd.events.store import Store

T = TypeVar("T")


class Submission:
    """An event, what was lost before it, or both."""

    __slots__ = ("event", "lost", "n", "origin")

    def __init__(self, event: Event | None, origin: str, n: int, lost: Lost | None) -> None:
        self.event, self.origin, self.n, self.lost = event, origin, n, lost

    def apply(self, store: Store) -> None:
        """In the transaction."""
        store.add(self.event, self.origin, self.n, self.lost)

    def done(self) -> None:
        """After the commit."""

    def failed(self, error: BaseException) -> None:
        """It cannot be done, ever."""


class Call(Generic[T]):
    """A function to call in a transaction, in order with the events.

    Args:
        function: called again if the transaction failed.
    """

    __slots__ = ("_function", "_result", "future")

    def __init__(self, function: Callable[[Store], T]) -> None:
        self._function = function
        self._result: T
        self.future: Future[T] = Future()
        """Its result, after the commit."""

    def apply(self, store: Store) -> None:
        """In the transaction."""
        self._result = self._function(store)

    def done(self) -> None:
        """After the commit."""
        with contextlib.suppress(InvalidStateError):  # nothing waits for it any more
            self.future.set_result(self._result)

    def failed(self, error: BaseException) -> None:
        """It cannot be done, ever."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)


Entry = Submission | Call[Any]


class Waiting:
    """The queue between submitters and the writer. Its lock is held for microseconds, never over work.

    Args:
        bound: largest number of events, including those that the writer has taken but not committed.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._lock = threading.Lock()
        self._entries: deque[Entry] = deque()
        self._events = 0
        self._begun: set[str] = set()
        """Ids of begins that are not committed yet."""
        self._losses = Losses()
        self._taken: dict[str, int] = {}
        """By origin: the last number that was accepted."""
        self.wake = threading.Event()
        """Set when the writer has something to do."""
        self.duplicates = 0
        self.rules = Latest()
        """What rules have counted, as submitted: the newest, committed or not."""

    @property
    def events(self) -> int:
        """Events that are not committed yet."""
        return self._events

    @property
    def lost(self) -> int:
        """Events that found no room, since the start."""
        return self._losses.total

    def submit(self, event: Event | None, origin: str, n: int, lost: Lost | None, store: Store | None) -> bool:
        """See `Journal.submit`."""
        with self._lock:
            full = self._events >= self._bound
            if n:
                if n <= self._last(origin, store):
                    self.duplicates += 1
                    return True
                if full:
                    return False  # its sender still has it
                self._taken[origin] = n
            elif event is not None and full:
                self._losses.add(event, open_=self._is_open(event.id, store))
                if event.state:
                    put(self.rules, event.stream, event.state)
                return False
            if self._losses and not n:
                lost = self._losses.take()
            if event is not None and event.kind == "begin":
                self._begun.add(event.id)
            if event is not None and event.state:
                put(self.rules, event.stream, event.state)
            self._entries.append(Submission(event, origin, n, lost))
            self._events += 1
        if not self.wake.is_set():
            self.wake.set()
        return True

    def last(self, origin: str, store: Store | None) -> int:
        """The last number accepted from a sender, by this process or an earlier one; 0 for none."""
        with self._lock:
            return self._last(origin, store)

    def _last(self, origin: str, store: Store | None) -> int:
        taken = self._taken.get(origin)
        if taken is None:
            taken = store.origins.committed.get(origin, 0) if store is not None else 0
        return taken

    def call(self, function: Callable[[Store], T], *, wake: bool = True) -> Future[T]:
        """Queues a function for the writer, after everything submitted before."""
        entry = Call(function)
        with self._lock:
            self._entries.append(entry)
        if wake:
            self.wake.set()
        return entry.future

    def keep(self, told: RuleStates) -> None:
        """See `Journal.keep`."""
        with self._lock:
            put_all(self.rules, told)
            self._entries.append(Call(lambda store: put_all(store.rules, told)))
        self.wake.set()

    def forget_memory(self, stream: str | None) -> None:
        """See `rulestates.forget_memory`."""
        with self._lock:
            forget_memory(self.rules, stream)

    def take(self, most: int) -> list[Entry]:
        """The next entries, for one transaction. To be followed by `committed` or `refused`."""
        with self._lock:
            if self._losses and not self._entries:
                self._entries.append(Submission(None, "", 0, self._losses.take()))
                self._events += 1
            entries = self._entries
            return [entries.popleft() for _ in range(min(most, len(entries)))]

    def finish(self, entries: list[Entry]) -> None:
        """These entries are committed, or will never be."""
        with self._lock:
            for entry in entries:
                if isinstance(entry, Submission):
                    self._events -= 1
                    if entry.event is not None and entry.event.kind == "begin":
                        self._begun.discard(entry.event.id)

    def empty(self) -> bool:
        """Nothing waits."""
        with self._lock:
            return not self._entries and not self._losses and not self._events

    def _is_open(self, id_: str, store: Store | None) -> bool:
        return id_ in self._begun or (store is not None and id_ in store.open.committed)
