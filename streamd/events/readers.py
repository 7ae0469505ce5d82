"""A pool of connections for reading."""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from streamd.events.schema import open_reader

T = TypeVar("T")
KEPT = 4
"""Largest number of idle connections: as many as usually read at the same time."""


class Readers:
    """A pool for any thread.

    Args:
        path: path of the journal.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._idle: queue.LifoQueue[tuple[int, sqlite3.Connection]] = queue.LifoQueue(KEPT)
        self._lock = threading.Lock()
        self._generation = 0

    def use(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Calls `function` with a connection that nothing else uses meanwhile.

        Raises:
            sqlite3.Error: there is no journal, or it cannot be read.
        """
        try:
            generation, connection = self._idle.get_nowait()
        except queue.Empty:
            generation, connection = self._generation, open_reader(self._path)
        try:
            result = function(connection)
        except BaseException:
            connection.close()
            raise
        self._give_back(generation, connection)
        return result

    def _give_back(self, generation: int, connection: sqlite3.Connection) -> None:
        with self._lock:
            if generation == self._generation:
                with contextlib.suppress(queue.Full):
                    self._idle.put_nowait((generation, connection))
                    return
        connection.close()

    def close(self) -> None:
        """Closes all connections; those in use, once they are returned. The next use opens the file again."""
        with self._lock:
            self._generation += 1
            with contextlib.suppress(queue.Empty):
                while True:
                    self._idle.get_nowait()[1].close()
