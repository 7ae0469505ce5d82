"""Events and journals for the tests."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from streamd.events.journal import Journal
from streamd.events.place import JOURNAL
from streamd.events.record import Event, Kind

T0 = 1_800_000_000_000_000_000
SECOND = 1_000_000_000


def event(id_: str, kind: Kind = "instant", at_s: float = 0.0, **more: Any) -> Event:
    """An event of stream `a` at a rule named gate."""
    values: dict[str, Any] = {"stream": "a", "rule": "gate", "label": "person", "type": "line_crossed", **more}
    return Event(id=id_, kind=kind, at_ns=T0 + int(at_s * SECOND), **values)


@contextlib.contextmanager
def journal(folder: Path, **settings: Any) -> Iterator[Journal]:
    """A journal that runs until the block ends."""
    made = Journal(folder, **settings)
    made.start()
    try:
        yield made
    finally:
        made.close()


def rows(folder: Path, query: str, *values: Any) -> list[Any]:
    """What the tables hold."""
    connection = sqlite3.connect(folder / JOURNAL)
    try:
        return connection.execute(query, values).fetchall()
    finally:
        connection.close()


def until(condition: Callable[[], Any], timeout: float = 30.0) -> None:
    """Waits for `condition`."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)
