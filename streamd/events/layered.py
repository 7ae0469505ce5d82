"""A dictionary whose changes are kept or dropped together, with the transaction that they belong to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Layered(Generic[K, V]):
    """The committed values, overlaid by the changes of the current transaction. One thread writes.

    Args:
        committed: the committed values; kept and modified.
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
        """Removes it in this transaction."""
        self._changes[key] = None

    def items(self) -> Iterator[tuple[K, V]]:
        """The entries as this transaction sees them."""
        for key, value in list(self.committed.items()):
            if key not in self._changes:
                yield key, value
        for key, changed in list(self._changes.items()):
            if changed is not None:
                yield key, changed

    def changes(self) -> list[tuple[K, V | None]]:
        """The changes of this transaction; None for removed keys."""
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
