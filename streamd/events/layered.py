"""A dictionary whose changes are kept or dropped together, as the transaction that they belong to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Layered(Generic[K, V]):
    """What is committed, and above it the changes of the transaction under way. One thread writes.

    Args:
        committed: is kept and changed.
    """

    def __init__(self, committed: dict[K, V]) -> None:
        self.committed = committed
        """Any thread may read it."""
        self._changes: dict[K, V | None] = {}

    def get(self, key: K) -> V | None:
        """The value as this transaction sees it."""
        return self._changes[key] if key in self._changes else self.committed.get(key)

    def put(self, key: K, value: V) -> None:
        """Sets it in this transaction."""
        self._changes[key] = value

    def remove(self, key: K) -> None:
        """Takes it away in this transaction."""
        self._changes[key] = None

    def items(self) -> Iterator[tuple[K, V]]:
        """What this transaction sees."""
        for key, value in list(self.committed.items()):
            if key not in self._changes:
                yield key, value
        for key, changed in list(self._changes.items()):
            if changed is not None:
                yield key, changed

    def changes(self) -> list[tuple[K, V | None]]:
        """What this transaction has changed; None is gone."""
        return list(self._changes.items())

    def keep(self) -> None:
        """The transaction was committed."""
        for key, value in self._changes.items():
            if value is None:
                self.committed.pop(key, None)
            else:
                self.committed[key] = value
        self._changes.clear()

    def drop(self) -> None:
        """The transaction was rolled back."""
        self._changes.clear()
