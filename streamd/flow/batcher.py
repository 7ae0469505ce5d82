"""Gathers frames of many streams into batches, fairly."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from streamd.flow.ring import Bell, Closed, Ring
from streamd.types import Frame


@dataclass(slots=True, frozen=True)
class _Input:
    stream: str
    ring: Ring[Frame]
    priority: int


class Batcher:
    """Round robin over the streams' rings, higher priorities first.

    A batch closes when it is full, or when `age_s` has passed since the batcher first saw a frame for it. With
    `age_s` 0 it takes what is there: under load batches then grow by themselves while the engine is busy.

    Args:
        max_batch: frames a batch at most.
        age_s: seconds.
        bell: the one that every ring handed to `add` rings.
    """

    def __init__(self, max_batch: int, age_s: float, bell: Bell) -> None:
        self.max_batch = max_batch
        self.age_s = age_s
        self._bell = bell
        self._inputs: tuple[_Input, ...] = ()
        self._lock = threading.Lock()
        self._last = ""
        self._sealed = False

    def add(self, stream: str, ring: Ring[Frame], priority: int = 0) -> None:
        """Serves one more stream from now on."""
        with self._lock:
            inputs = [*self._inputs, _Input(stream, ring, priority)]
            # Stable: streams of one priority stay in the order in which they came.
            self._inputs = tuple(sorted(inputs, key=lambda i: -i.priority))
        self._bell.ring()

    def remove(self, stream: str) -> None:
        """Serves the stream no longer; what waits in its ring is the caller's."""
        with self._lock:
            self._inputs = tuple(i for i in self._inputs if i.stream != stream)
        self._bell.ring()

    def seal(self) -> None:
        """No stream will be added any more: once every ring is exhausted, `take` raises Closed."""
        self._sealed = True
        self._bell.ring()

    def take(self) -> list[Frame]:
        """Waits for the next batch: 1 to `max_batch` frames.

        Raises:
            Closed: the batcher is sealed and every ring is exhausted.
        """
        deadline: float | None = None
        while True:
            seen = self._bell.count
            inputs = self._inputs
            waiting = sum(len(i.ring) for i in inputs)
            if waiting == 0:
                if self._sealed and all(i.ring.exhausted for i in inputs):
                    raise Closed
                self._bell.wait(seen, None)
                continue
            if waiting < self.max_batch and self.age_s > 0 and not all(i.ring.closed for i in inputs):
                now = time.monotonic()
                if deadline is None:
                    deadline = now + self.age_s
                if now < deadline:
                    self._bell.wait(seen, deadline - now)
                    continue
            batch = self._gather(inputs)
            if batch:
                return batch
            deadline = None  # a latest-frame ring emptied itself between the count and the taking

    def _gather(self, inputs: tuple[_Input, ...]) -> list[Frame]:
        batch: list[Frame] = []
        start = 0
        while start < len(inputs) and len(batch) < self.max_batch:
            end = start
            while end < len(inputs) and inputs[end].priority == inputs[start].priority:
                end += 1
            self._gather_level(inputs[start:end], batch)
            start = end
        return batch

    def _gather_level(self, level: tuple[_Input, ...], batch: list[Frame]) -> None:
        """One frame a stream and pass, beginning after the stream that was served last."""
        names = [i.stream for i in level]
        first = names.index(self._last) + 1 if self._last in names else 0
        order = level[first:] + level[:first]
        taken = True
        while taken and len(batch) < self.max_batch:
            taken = False
            for item in order:
                frame = item.ring.take()
                if frame is None:
                    continue
                taken = True
                self._last = item.stream
                batch.append(frame)
                if len(batch) == self.max_batch:
                    return
