"""The last status of every stream."""

from __future__ import annotations

import threading
from collections.abc import Callable

from streamd.types import StreamStatus


class StatusBoard:
    """Last status per stream, with a number that increases at every change. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[str, tuple[int, StreamStatus]] = {}
        self._retired: set[str] = set()
        self._changes = 0
        self._listener: Callable[[StreamStatus], None] | None = None

    def listen(self, listener: Callable[[StreamStatus], None] | None) -> None:
        """Sets a function that is called with every status; it must be fast. None removes it."""
        self._listener = listener

    def post(self, status: StreamStatus) -> None:
        """Replaces the stream's status."""
        with self._lock:
            self._changes += 1
            self._last[status.stream] = (self._changes, status)
            self._retired.discard(status.stream)
        if (listener := self._listener) is not None:
            listener(status)

    def retire(self, stream: str) -> None:
        """Marks the stream's last status as final: reported once as a change, then removed."""
        with self._lock:
            self._retired.add(stream)

    @property
    def changes(self) -> int:
        """The newest change number, without a lock."""
        return self._changes

    def since(self, change: int) -> tuple[int, list[StreamStatus]]:
        """The newest change number, and the statuses newer than `change`, oldest first."""
        with self._lock:
            newer = (
                sorted((v for v in self._last.values() if v[0] > change), key=lambda v: v[0])
                if self._changes > change
                else []
            )
            return self._changes, [s for _, s in newer]

    def all(self) -> list[StreamStatus]:
        """The last status of every stream that is not retired."""
        with self._lock:
            return [s for _, s in sorted(self._last.values(), key=lambda v: v[0]) if s.stream not in self._retired]
