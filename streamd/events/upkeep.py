"""Operations on the journal besides adding events: moving cursors, retention, linking files, deletion.

Every function runs inside a transaction of `Store`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from msgspec.structs import replace

from streamd.events import rulestates
from streamd.events.record import Media
from streamd.events.store import CursorState, Store
from streamd.events.wallclock import EARLIEST_S, LEAP_S

_NO_ROWS = "NOT EXISTS (SELECT 1 FROM events WHERE events.id = media.id)"
Outcome = Literal["delivered", "refused"]
SLICE = 2000
"""Rows that retention deletes in one transaction, so that commits of events do not wait for it."""
UNWANTED = 4096
"""Files deleted on request that are remembered."""
ORIGIN_AGE_NS = 7 * 86_400 * 1_000_000_000


class Limits(NamedTuple):
    """How many events are kept."""

    max_age_s: float
    max_events: int


# ------------------------------------------------------------------------------------------------------------ cursors


def make_cursor(store: Store, name: str, *, oldest: bool) -> None:
    """Creates the cursor unless it exists: after all events, or before the oldest kept one."""
    if store.cursors.get(name) is not None:
        return
    store.flush()
    position = store.last
    if oldest:
        (first,) = store.connection.execute("SELECT MIN(position) FROM events").fetchone()
        position = position if first is None else first - 1
    start = store.last - _count(store, position)
    store.cursors.put(name, CursorState(start, position))


def drop_cursor(store: Store, name: str) -> None:
    """Forgets a cursor."""
    if store.cursors.get(name) is not None:
        store.cursors.remove(name)


def keep_cursors(store: Store, names: Collection[str]) -> None:
    """Forgets all cursors but these."""
    for name, _ in list(store.cursors.items()):
        if name not in names:
            store.cursors.remove(name)


def move_cursor(store: Store, name: str, upto: int, outcome: Outcome) -> None:
    """Marks every event up to a position as done for the sink."""
    cursor = store.cursors.get(name)
    if cursor is None:
        return
    store.flush()
    upto = min(upto, store.last)
    if upto <= cursor.position:
        return
    count = _count(store, cursor.position, upto)
    moved = cursor._replace(position=upto)
    if outcome == "delivered":
        store.cursors.put(name, moved._replace(delivered=cursor.delivered + count))
    else:
        store.cursors.put(name, moved._replace(refused=cursor.refused + count))


def _expire(store: Store, name: str, upto: int) -> None:
    cursor = store.cursors.get(name)
    if cursor is not None and upto > cursor.position:
        count = _count(store, cursor.position, upto)
        store.cursors.put(name, cursor._replace(position=upto, expired=cursor.expired + count))


def _count(store: Store, after: int, upto: int | None = None) -> int:
    query = "SELECT COUNT(*) FROM events WHERE position > ? AND position <= ?"
    (count,) = store.connection.execute(query, (after, store.last if upto is None else upto)).fetchone()
    return int(count)


# ---------------------------------------------------------------------------------------------------------- retention


def _beyond(store: Store, limits: Limits, now_ns: int, ages: bool) -> int:
    """The last position that exceeds the limits; 0 for none."""
    bound: int = store.last - limits.max_events
    if ages:
        oldest, latest = now_ns - int(limits.max_age_s * 1e9), now_ns + int(LEAP_S * 1e9)
        # The search starts at the oldest row and ends at the first that is young enough. What a wrong clock has stamped
        # (in the future, or before there was a streamd) is as old as the row behind it.
        query = "SELECT position FROM events WHERE committed_ns BETWEEN ? AND ? ORDER BY position LIMIT 1"
        young = store.connection.execute(query, (oldest, latest)).fetchone()
        query = "SELECT MAX(position) FROM events WHERE position < ? AND committed_ns BETWEEN ? AND ?"
        end = store.last + 1 if young is None else young[0]
        (old,) = store.connection.execute(query, (end, int(EARLIEST_S * 1e9), oldest - 1)).fetchone()
        bound = max(bound, old or 0)
    return max(0, bound)


def retain(store: Store, limits: Limits, cursors: Mapping[str, Limits], now_ns: int, *, ages: bool) -> bool:
    """Deletes a slice of the rows that exceed the limits and that no cursor within its own limits still needs.

    Args:
        store: in a transaction.
        limits: limits of the journal.
        cursors: cursors of the sinks in use, each with its own limits. A cursor in the tables that is not among them
            holds nothing back.
        now_ns: Unix time.
        ages: False if the clock cannot be trusted: then only numbers of events count.

    Returns:
        True if there is more to delete.
    """
    store.flush()
    for name, owed in cursors.items():
        _expire(store, name, _beyond(store, owed, now_ns, ages))
    bound = _beyond(store, limits, now_ns, ages)
    for name in cursors:
        cursor = store.cursors.get(name)
        if cursor is not None:
            bound = min(bound, cursor.position)
    first = "SELECT position FROM events WHERE position <= ? ORDER BY position LIMIT ?"
    query = f"SELECT MAX(position), COUNT(*) FROM ({first})"  # noqa: S608
    last, count = store.connection.execute(query, (bound, SLICE)).fetchone()
    if last is None:
        return False
    for name, _ in list(store.cursors.items()):
        _expire(store, name, last)
    execute = store.connection.execute
    doomed = "SELECT id FROM events WHERE position <= ?"
    # Files have a retention of their own and may outlive the rows: a deletion on request still finds them by time.
    ended = "(SELECT MAX(MAX(at_ns, began_ns)) FROM events WHERE events.id = media.id)"
    execute(f"UPDATE media SET ended_ns = {ended} WHERE id IN ({doomed})", (last,))  # noqa: S608
    execute(
        f"DELETE FROM media WHERE state IN ('deleted', 'failed') AND id IN ({doomed})"  # noqa: S608
        " AND NOT EXISTS (SELECT 1 FROM events WHERE events.id = media.id AND position > ?)", (last, last),
    )  # fmt: skip
    execute("DELETE FROM events WHERE position <= ?", (last,))
    return bool(count == SLICE)


def forget_origins(store: Store, now_ns: int) -> None:
    """Forgets processes that have sent nothing for a week."""
    query = "SELECT origin FROM origins WHERE used_ns < ?"
    for (origin,) in store.connection.execute(query, (now_ns - ORIGIN_AGE_NS,)).fetchall():
        store.connection.execute("DELETE FROM origins WHERE origin = ?", (origin,))
        store.origins.remove(origin)


# -------------------------------------------------------------------------------------------------------------- media


def link(store: Store, event_id: str, role: str, media: Media) -> str | None:
    """Records a file of an event, and returns its stream; None if the event or the file was deleted meanwhile: the file
    must then be removed."""
    store.flush()
    execute = store.connection.execute
    known = store.open.get(event_id)
    row = execute(
        "SELECT stream, MIN(MIN(began_ns, at_ns)) FROM events WHERE id = ? GROUP BY stream", (event_id,)
    ).fetchone()
    before = execute("SELECT stream, began_ns, state FROM media WHERE id = ? AND role = ?", (event_id, role)).fetchone()
    if known is not None and not known.deleted:
        row = (known.stream, known.began_ns)
    elif row is None and before is not None:
        row = before[:2]
    gone = row is None or (before is not None and before[2] == "deleted")
    if gone or media.path in store.unwanted:
        _unwanted(store, [media.path])
        if gone:
            return None
        media = Media(media.path, "deleted", "deleted")  # of an event that is kept, and shares the file
    assert row is not None
    execute(
        "INSERT INTO media (id, role, stream, path, state, reason, began_ns) VALUES (?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (id, role) DO UPDATE SET path = excluded.path, state = excluded.state, reason = excluded.reason",
        (event_id, role, row[0], media.path, media.state, media.reason, row[1]),
    )
    return str(row[0]) if media.state != "deleted" else None


def _unwanted(store: Store, paths: Sequence[str]) -> None:
    """These files are to be removed, whatever other event shows them."""
    rows = [(path,) for path in paths]
    store.connection.executemany("INSERT OR IGNORE INTO removals VALUES (?)", rows)
    store.connection.executemany("UPDATE media SET state = 'deleted', reason = 'deleted' WHERE path = ?", rows)
    store.unwanted |= dict.fromkeys(paths)
    for path in list(store.unwanted)[:-UNWANTED]:
        del store.unwanted[path]


def forget_media(store: Store, paths: Iterable[str]) -> None:
    """Records that the retention of the media folder has removed these files."""
    rows = [(path,) for path in paths]
    store.flush()
    store.connection.executemany("UPDATE media SET state = 'deleted', reason = 'retention' WHERE path = ?", rows)
    store.connection.executemany(f"DELETE FROM media WHERE path = ? AND {_NO_ROWS}", rows)  # noqa: S608


def removals(store: Store) -> list[str]:
    """Files that must be removed and may still exist."""
    return [path for (path,) in store.connection.execute("SELECT path FROM removals")]


def removed(store: Store, paths: Iterable[str]) -> None:
    """Records that these files have been removed."""
    store.connection.executemany("DELETE FROM removals WHERE path = ?", [(path,) for path in paths])


# ------------------------------------------------------------------------------------------------- deletion on request


class Deletion(NamedTuple):
    """The result of a deletion."""

    events: int
    """Rows."""
    pending: int
    """Cancelled deliveries of all sinks together."""
    paths: list[str]
    """Files that belong to them."""


def delete(store: Store, stream: str | None, since_ns: int, until_ns: int) -> Deletion:
    """Deletes every event that overlaps a time span, completely: begin, updates, end, deliveries and files.

    Args:
        store: in a transaction.
        stream: id; None for all.
        since_ns: Unix nanoseconds.
        until_ns: end of the span, exclusive.
    """
    store.flush()
    execute = store.connection.execute
    execute("CREATE TEMP TABLE IF NOT EXISTS doomed (id TEXT PRIMARY KEY)")
    execute("DELETE FROM doomed")
    span = {"stream": stream, "since": since_ns, "until": until_ns}
    mine = "(:stream IS NULL OR stream = :stream)"
    execute(
        f"INSERT OR IGNORE INTO doomed SELECT id FROM events WHERE {mine}"  # noqa: S608
        " AND MIN(began_ns, at_ns) < :until AND MAX(began_ns, at_ns) >= :since", span,
    )  # fmt: skip
    execute(
        f"INSERT OR IGNORE INTO doomed SELECT id FROM media WHERE {mine} AND began_ns < :until"  # noqa: S608
        f" AND (ended_ns IS NULL OR ended_ns >= :since) AND {_NO_ROWS}", span,
    )  # fmt: skip
    for each, known in list(store.open.items()):
        # The event is still open: whatever its last known time is, it may reach into the span.
        if (stream is None or known.stream == stream) and known.began_ns < until_ns:
            execute("INSERT OR IGNORE INTO doomed VALUES (?)", (each,))
            store.open.put(each, replace(known, deleted=1))
    pending = 0
    for name, cursor in list(store.cursors.items()):
        query = "SELECT COUNT(*) FROM events WHERE position > ? AND id IN (SELECT id FROM doomed)"
        (count,) = execute(query, (cursor.position,)).fetchone()
        if count:
            store.cursors.put(name, cursor._replace(deleted=cursor.deleted + count))
            pending += count
    query = "SELECT DISTINCT path FROM media WHERE state != 'deleted' AND id IN (SELECT id FROM doomed)"
    paths = [path for (path,) in execute(query)]
    _unwanted(store, paths)  # a clip shared with other events also shows the span
    execute("DELETE FROM media WHERE id IN (SELECT id FROM doomed)")
    count = execute("DELETE FROM events WHERE id IN (SELECT id FROM doomed)").rowcount
    gone = {each for (each,) in execute("SELECT id FROM doomed")}
    # Events that this same transaction has added are not released, either.
    store.records = [record for record in store.records if record.id not in gone]
    execute("DELETE FROM doomed")
    rulestates.forget_memory(store.rules, stream)
    return Deletion(count, pending, paths)
