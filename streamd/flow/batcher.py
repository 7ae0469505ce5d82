"""Gathers frames of many streams into batches: fairly, by priority, and without frames that are too old."""

from __future__ import annotations

import threading
import time
from itertools import groupby
from operator import attrgetter

from streamd.flow.gated import GatedRing, is_record
from streamd.flow.ring import Bell, Closed, Ring
from streamd.types import Frame

RECORDS_S = 0.025
"""Frames that are not looked at are taken together so often, unless one to look at comes sooner. Each time wakes four
threads, which costs more than the frames themselves."""
TURN = 8
"""Every eighth frame goes to the stream that was served longest ago, whatever its priority."""


class _Input:
    """One stream; `served` belongs to the thread that takes batches."""

    __slots__ = ("gated", "max_age_ns", "moving", "priority", "ring", "served", "stream")

    def __init__(self, stream: str, ring: Ring[Frame], priority: int, max_age_s: float | None) -> None:
        self.stream = stream
        self.ring = ring
        self.priority = priority
        self.max_age_ns = float("inf") if max_age_s is None else max_age_s * 1e9
        self.served = 0
        """Number of the last frame that was taken, of all streams' frames."""
        self.gated = ring if isinstance(ring, GatedRing) else None
        self.moving = True
        """Whether it may have something to look at that cannot wait; belongs to the same thread."""

    @property
    def waiting(self) -> int:
        """Frames to look at."""
        return len(self.ring) if self.gated is None else self.gated.pictures


_served = attrgetter("served")
_priority = attrgetter("priority")
_urgency = attrgetter("priority", "moving")


class Batcher:
    """Higher priorities first; among equals the stream that was served longest ago.

    Lower priorities are not starved: with S streams waiting, each of them is served at least once in `TURN` × S frames.

    A batch closes when it is full, or when `age_s` has passed since the batcher first saw a frame for it. With
    `age_s` 0 it takes what is there: under load batches then grow by themselves while the engine is busy.

    Of a stream whose frames are not all looked at (`flow.gated`), those that are not come along without taking up room.
    Within a priority, streams in which something moves go first; if even those are too many, each is looked at less
    often.

    Streams may be added and removed at any time; the thread that takes batches holds no lock for it.

    Args:
        max_batch: largest number of frames in a batch.
        age_s: seconds.
        bell: shared by all rings passed to `add`.
    """

    def __init__(self, max_batch: int, age_s: float, bell: Bell) -> None:
        self.max_batch = max_batch
        self.age_s = age_s
        self._bell = bell
        self._inputs: tuple[_Input, ...] = ()
        """Replaced, never changed: `take` reads it without a lock."""
        self._lock = threading.Lock()
        self._taken = 0
        self._credit = 0
        self._sealed = False
        self._gated = False
        """Whether any stream's frames are not all looked at."""
        self._records_at = 0.0
        """When frames that are not looked at are due, if alone; monotonic seconds."""
        self._order: list[Frame] = []
        self.order: list[Frame] = []
        """All frames of the last batch with those that are not to be looked at, in the order of capture of each stream;
        empty where there are none of those. For the thread that takes batches."""

    def add(self, stream: str, ring: Ring[Frame], priority: int = 0, max_age_s: float | None = None) -> None:
        """Adds a stream.

        Args:
            stream: its id.
            ring: its frames.
            priority: higher is served first.
            max_age_s: a frame decoded longer ago than this, in seconds, is dropped with the reason `too_old`. None for
                no limit.
        """
        with self._lock:
            self._inputs = (*self._inputs, _Input(stream, ring, priority, max_age_s))
            self._gated |= isinstance(ring, GatedRing)
        self._bell.ring()

    def change(self, stream: str, priority: int, max_age_s: float | None) -> None:
        """Changes the priority and the age limit; see `add`. Applies from the next batch."""
        for item in self._inputs:
            if item.stream == stream:
                item.priority = priority
                item.max_age_ns = float("inf") if max_age_s is None else max_age_s * 1e9

    def remove(self, stream: str) -> None:
        """Removes the stream. The frames in its ring are left to the caller."""
        with self._lock:
            self._inputs = tuple(i for i in self._inputs if i.stream != stream)
        self._bell.ring()

    def seal(self) -> None:
        """Declares that no stream will be added: once every ring is exhausted, `take` raises Closed."""
        self._sealed = True
        self._bell.ring()

    def take(self) -> list[Frame]:
        """Waits for the next batch: up to `max_batch` frames to look at, and at least one if `order` is empty.

        Raises:
            Closed: the batcher is sealed and every ring is exhausted.
        """
        deadline: float | None = None
        while True:
            rest = self._rest()
            seen = self._bell.count
            inputs = self._inputs
            ready = [i for i in inputs if len(i.ring)]
            if not ready:
                if self._sealed and all(i.ring.exhausted for i in inputs):
                    raise Closed
                self._bell.wait(seen, rest)
                continue
            if rest is not None and not any(i.waiting or i.ring.closed for i in ready):
                self._bell.wait(seen, rest)
                continue
            if self.age_s > 0 and self._may_wait(ready) and not all(i.ring.closed for i in inputs):
                now = time.monotonic()
                if deadline is None:
                    deadline = now + self.age_s
                if now < deadline:
                    self._bell.wait(seen, deadline - now)
                    continue
            batch = self._gather_all(ready) if self._gated else self._gather(ready)
            if batch or self.order:
                return batch
            deadline = None  # a ring was emptied since it was checked, or all its frames were too old

    def _rest(self) -> float | None:
        """Seconds until frames that are not looked at are due; None if they are, or if there are no such streams."""
        if not self._gated:
            return None
        rest = self._records_at - time.monotonic()
        self._bell.patient = rest > 0
        return rest if rest > 0 else None

    def _may_wait(self, ready: list[_Input]) -> bool:
        """Whether more frames are worth waiting for."""
        return 0 < sum(i.waiting for i in ready) < self.max_batch

    def _gather_all(self, ready: list[_Input]) -> list[Frame]:
        """See `order`."""
        self._order = []
        now_ns = time.monotonic_ns()
        self._records_at = now_ns / 1e9 + RECORDS_S
        for item in ready:
            if item.gated is not None:
                if item.gated.pictures > 1:
                    item.gated.thin(now_ns)
                self._order += item.gated.records()
                item.moving = item.gated.moving
        waiting = [item for item in ready if item.waiting]
        batch = self._gather(waiting) if waiting else []
        for item in waiting:
            if item.gated is not None and item.gated.pictures and not item.moving:
                item.gated.let_go(now_ns)
        self.order = self._order if len(self._order) > len(batch) else []
        return batch

    def _gather(self, ready: list[_Input]) -> list[Frame]:
        batch: list[Frame] = []
        now_ns = time.monotonic_ns()
        ready.sort(key=_served)
        self._credit += self.max_batch
        turns, self._credit = divmod(self._credit, TURN)
        for item in ready:
            if len(batch) == turns:
                break
            self._take_one(item, batch, now_ns)
        # The sort is stable: within a priority, the streams served longest ago stay first.
        rank = _urgency if self._gated else _priority
        ready.sort(key=_served)
        ready.sort(key=rank, reverse=True)
        for _, level in groupby(ready, rank):
            self._gather_level(list(level), batch, now_ns)
        return batch

    def _gather_level(self, level: list[_Input], batch: list[Frame], now_ns: int) -> None:
        """Takes one frame per stream in each pass."""
        while level:
            left = []
            for item in level:
                if len(batch) == self.max_batch:
                    return
                if self._take_one(item, batch, now_ns):
                    left.append(item)
            level = left

    def _take_one(self, item: _Input, batch: list[Frame], now_ns: int) -> bool:
        """Adds the stream's oldest frame that is young enough; False where it has none."""
        gated = item.gated
        while (frame := item.ring.take()) is not None:
            if gated is not None and is_record(frame):
                self._order.append(frame)
                continue
            if now_ns - frame.decoded_ns > item.max_age_ns:
                if gated is not None and gated.give_up(frame):
                    self._order.append(frame)
                else:
                    item.ring.refuse(frame, "too_old")
                continue
            self._taken += 1
            item.served = self._taken
            batch.append(frame)
            if self._gated:
                self._order.append(frame)
            return True
        return False
