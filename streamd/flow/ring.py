"""The ring buffer between two threads: bounded, closable, with one of three policies for a full ring."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, Literal, TypeVar

T = TypeVar("T")

Policy = Literal["drop_oldest", "latest", "block"]


class Closed(Exception):
    """The ring is closed: it accepts no more items, or has none left."""


class Bell:
    """Wakes one consumer that waits on many rings."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._condition = threading.Condition(self._lock)
        self._rings = 0
        self._waiting = 0
        """Threads in `wait`: a condition without any takes time to find that out."""
        self.patient = False
        """The consumer comes back soon by itself: what can wait needs no signal. Set by the consumer, before it looks
        at the rings."""

    def ring(self) -> None:
        """Signals that one of the rings has changed."""
        with self._lock:
            self._rings += 1
            if self._waiting:
                self._condition.notify()

    @property
    def count(self) -> int:
        """Number of signals so far. Read it before checking the rings, then `wait` for it to change."""
        return self._rings

    def wait(self, seen: int, timeout: float | None) -> bool:
        """Waits until the count differs from `seen`; False after `timeout` seconds."""
        with self._lock:
            self._waiting += 1
            try:
                return self._condition.wait_for(lambda: self._rings != seen, timeout)
            finally:
                self._waiting -= 1


class Ring(Generic[T]):
    """A bounded queue of one producer and one consumer.

    Args:
        capacity: largest number of items.
        policy: what `put` does when the ring is full. `drop_oldest` drops the oldest item, `latest` drops all waiting
            items, `block` waits.
        on_drop: called with each dropped item and the reason, by the thread that caused the drop, outside the lock.
        bell: rung at every `put` and at `close`, for a consumer of many rings.
    """

    def __init__(
        self,
        capacity: int,
        policy: Policy = "drop_oldest",
        *,
        on_drop: Callable[[T, str], None] | None = None,
        bell: Bell | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"ring capacity must be at least 1, not {capacity}")
        self.capacity = capacity
        self.policy: Policy = policy
        self._items: deque[T] = deque()
        self._lock = threading.Lock()
        self._not_empty = threading.Condition(self._lock)
        self._not_full = threading.Condition(self._lock)
        self._getting = self._putting = 0
        """Threads that wait on each of them: a condition without any takes time to find that out."""
        self._closed = False
        self._on_drop = on_drop
        self._bell = bell

    def __len__(self) -> int:
        return len(self._items)

    @property
    def closed(self) -> bool:
        """True once `close` was called; items may still be waiting."""
        return self._closed

    @property
    def exhausted(self) -> bool:
        """True once it is closed and empty."""
        return self._closed and not self._items

    def change(self, capacity: int, policy: Policy) -> None:
        """Changes capacity and policy. Items beyond the new capacity are dropped, the oldest first."""
        gone: list[T] = []
        with self._lock:
            self.capacity, self.policy = capacity, policy
            keep = 1 if policy == "latest" else capacity
            while len(self._items) > keep:
                gone.append(self._items.popleft())
            self._not_full.notify_all()
        if self._on_drop is not None:
            for item in gone:
                self._on_drop(item, "ring_full")

    def put(self, item: T, timeout: float | None = None) -> None:
        """Adds an item.

        Raises:
            Closed: the ring is closed; the item was not taken.
            TimeoutError: the policy is block, and there was no room within `timeout` seconds; the item was not taken.
        """
        gone: list[T] | None = None
        with self._lock:
            if self.policy == "block" and len(self._items) >= self.capacity:
                self._wait_for_room(lambda: len(self._items) < self.capacity, timeout)
            if self._closed:
                raise Closed
            if self.policy == "latest":
                if self._items:
                    gone = list(self._items)
                    self._items.clear()
            elif len(self._items) >= self.capacity:
                gone = [self._items.popleft()]
            self._items.append(item)
            if self._getting:
                self._not_empty.notify()
        if self._bell is not None:
            self._bell.ring()
        if gone is not None and self._on_drop is not None:
            for old in gone:
                self._on_drop(old, "ring_full")

    def get(self, timeout: float | None = None) -> T:
        """Takes the oldest item, waiting for one.

        Raises:
            Closed: the ring is closed and empty.
            TimeoutError: no item arrived within `timeout` seconds.
        """
        with self._lock:
            if not self._items:
                self._wait_for_item(timeout)
            item = self._items.popleft()
            if self._putting:
                self._not_full.notify()
            return item

    def _wait_for_room(self, room: Callable[[], bool], timeout: float | None) -> None:
        """Waits until there is `room`, the ring is closed, or its policy is no longer block. Called with the lock.

        Raises:
            TimeoutError: none of it within `timeout` seconds.
        """
        self._putting += 1
        try:
            if not self._not_full.wait_for(lambda: self._closed or self.policy != "block" or room(), timeout):
                raise TimeoutError
        finally:
            self._putting -= 1

    def _wait_for_item(self, timeout: float | None) -> None:
        """Waits for an item. Called with the lock.

        Raises:
            Closed: the ring is closed and empty.
            TimeoutError: no item arrived within `timeout` seconds.
        """
        self._getting += 1
        try:
            if not self._not_empty.wait_for(lambda: self._items or self._closed, timeout):
                raise TimeoutError
        finally:
            self._getting -= 1
        if not self._items:
            raise Closed

    def take(self) -> T | None:
        """Takes the oldest item, or returns None immediately if there is none."""
        with self._lock:
            if not self._items:
                return None
            item = self._items.popleft()
            if self._putting:
                self._not_full.notify()
            return item

    def refuse(self, item: T, reason: str) -> None:
        """Drops an item that was taken: it is counted like one that the ring itself dropped."""
        if self._on_drop is not None:
            self._on_drop(item, reason)

    def close(self, *, discard: bool = False, reason: str = "shutdown") -> None:
        """Closes the ring. Waiting items can still be taken, unless `discard` drops them with `reason`. Idempotent."""
        gone: list[T] = []
        with self._lock:
            self._closed = True
            if discard:
                gone = list(self._items)
                self._items.clear()
            self._not_empty.notify_all()
            self._not_full.notify_all()
        if self._bell is not None:
            self._bell.ring()
        if self._on_drop is not None:
            for item in gone:
                self._on_drop(item, reason)
