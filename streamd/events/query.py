"""Reading the journal: by time, stream, kind, rule and label, in pages. For any connection that reads."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from streamd.events.record import Kind, Media, Record

MAX_PAGE = 10_000
_COLUMNS = (
    "position, stream, event_seq, id, kind, type, rule, label, track, epoch, seq, at_ns, began_ns, committed_ns, lost,"
    " details, counters, generation"
)
_decode = msgspec.json.decode


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on events. None means no condition."""

    since_ns: int | None = None
    """Unix nanoseconds of `at_ns`, inclusive."""
    until_ns: int | None = None
    """Unix nanoseconds of `at_ns`, exclusive."""
    streams: Sequence[str] | None = None
    kinds: Sequence[Kind] | None = None
    types: Sequence[str] | None = None
    rules: Sequence[str] | None = None
    """Names of zones and lines."""
    labels: Sequence[str] | None = None
    ids: Sequence[str] | None = None
    after: int | None = None
    """Only positions above this one: the next page of an ascending query, or what is new."""
    before: int | None = None
    """Only positions below this one: the next page of a descending query."""
    newest_first: bool = False
    limit: int = 100
    """Records in a page, 1 to 10,000."""


def _in(column: str, values: Sequence[str]) -> str:
    return f"{column} IN ({','.join('?' * len(values))})"


def find(connection: sqlite3.Connection, wanted: Filter) -> list[Record]:
    """A page of the events that `wanted` describes, in commit order.

    Raises:
        ValueError: the limit is out of range.
        sqlite3.Error: the journal cannot be read.
    """
    if not 1 <= wanted.limit <= MAX_PAGE:
        raise ValueError(f"limit {wanted.limit}; expected 1 to {MAX_PAGE}")
    clauses: list[str] = []
    values: list[Any] = []
    bounds = (
        ("at_ns >= ?", wanted.since_ns), ("at_ns < ?", wanted.until_ns), ("position > ?", wanted.after),
        ("position < ?", wanted.before),
    )  # fmt: skip
    for clause, value in bounds:
        if value is not None:
            clauses.append(clause)
            values.append(value)
    choices: tuple[tuple[str, Sequence[str] | None], ...] = (
        ("stream", wanted.streams), ("kind", wanted.kinds), ("type", wanted.types), ("rule", wanted.rules),
        ("label", wanted.labels), ("id", wanted.ids),
    )  # fmt: skip
    for column, chosen in choices:
        if chosen is not None:
            clauses.append(_in(column, chosen))
            values += chosen
    where = f"WHERE {' AND '.join(clauses)}" if clauses else ""
    # Within one stream both orders are the same, and this one has an index that starts with the stream.
    column = "event_seq" if wanted.streams is not None and len(wanted.streams) == 1 else "position"
    order = "DESC" if wanted.newest_first else "ASC"
    # Selected and sorted by position only, so that only the rows of the page are read.
    chosen = f"SELECT position FROM events {where} ORDER BY {column} {order} LIMIT ?"  # noqa: S608 - no value in it
    query = f"SELECT {_COLUMNS} FROM events WHERE position IN ({chosen}) ORDER BY position {order}"  # noqa: S608
    return _records(connection, query, [*values, wanted.limit])


def after(connection: sqlite3.Connection, position: int, limit: int) -> list[Record]:
    """The first events after a position."""
    query = f"SELECT {_COLUMNS} FROM events WHERE position > ? ORDER BY position LIMIT ?"  # noqa: S608
    return _records(connection, query, (position, limit))


def open_events(connection: sqlite3.Connection, streams: Sequence[str] | None = None) -> list[Record]:
    """The newest record of every event that has begun and not ended, in commit order.

    An event that has been open for longer than its rows are kept is not among them.
    """
    where, values = (f"AND {_in('open.stream', streams)}", streams) if streams is not None else ("", ())
    query = (
        f"SELECT {_COLUMNS} FROM events WHERE position IN (SELECT MAX(e.position) FROM open JOIN events e"  # noqa: S608
        f" ON e.id = open.id WHERE NOT open.deleted {where} GROUP BY open.id) ORDER BY position"
    )
    return _records(connection, query, values)


def pending_media(connection: sqlite3.Connection) -> list[tuple[str, str, str, str]]:
    """Event id, role, stream and path of every file that is still to be written."""
    query = "SELECT id, role, stream, path FROM media WHERE state = 'pending'"
    return [(str(a), str(b), str(c), str(d)) for a, b, c, d in connection.execute(query)]


def log_id(connection: sqlite3.Connection) -> str:
    """The id of this journal."""
    (found,) = connection.execute("SELECT value FROM meta WHERE name = 'log_id'").fetchone()
    return str(found)


def _records(connection: sqlite3.Connection, query: str, values: Iterable[Any]) -> list[Record]:
    # One snapshot for all three reads. It is released immediately, since it keeps the WAL from shrinking.
    connection.execute("BEGIN")
    try:
        rows = connection.execute(query, tuple(values)).fetchall()
        log = log_id(connection) if rows else ""
        media = _media(connection, {row[3] for row in rows}) if rows else {}
    finally:
        connection.execute("COMMIT")
    return [
        Record(
            position=row[0], log_id=log, stream=row[1], event_seq=row[2], id=row[3], kind=row[4], type=row[5],
            rule=row[6], label=row[7], track=row[8], epoch=row[9], seq=row[10], at_ns=row[11], began_ns=row[12],
            committed_ns=row[13], events_lost=row[14], details=_decode(row[15]), counters=_decode(row[16]),
            generation=row[17], media=media.get(row[3], {}),
        )
        for row in rows
    ]  # fmt: skip


def _media(connection: sqlite3.Connection, ids: set[str]) -> dict[str, dict[str, Media]]:
    found: dict[str, dict[str, Media]] = {}
    chosen = sorted(ids)
    for first in range(0, len(chosen), 500):  # older versions of SQLite allow 999 values
        some = chosen[first : first + 500]
        query = f"SELECT id, role, path, state, reason FROM media WHERE {_in('id', some)}"  # noqa: S608
        for each, role, path, state, reason in connection.execute(query, some):
            found.setdefault(each, {})[role] = Media(path, state, reason)
    return found
