"""The journal's file: its tables, their version, opening it, and setting aside damaged files."""

from __future__ import annotations

import contextlib
import datetime
import os
import sqlite3
import uuid
from pathlib import Path

import structlog

from streamd.errors import ConfigError

log = structlog.get_logger(__name__)

APPLICATION_ID = 0x73746D6A
KEPT_ASIDE = 3
"""Number of unreadable journals kept: a faulty disk that damages one after the other must not fill up with them."""
BUSY_MS = 200
"""How long a commit waits for another process's lock before it is tried again later."""

STEPS = [
    """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
    -- position is given by us and never again, so that a cursor stays true when the last rows are deleted
    CREATE TABLE events (
        position INTEGER PRIMARY KEY, stream TEXT NOT NULL, event_seq INTEGER NOT NULL, id TEXT NOT NULL,
        kind TEXT NOT NULL, type TEXT NOT NULL, rule TEXT, label TEXT, track, epoch INTEGER NOT NULL,
        seq INTEGER NOT NULL, at_ns INTEGER NOT NULL, began_ns INTEGER NOT NULL, committed_ns INTEGER NOT NULL,
        lost INTEGER NOT NULL, details TEXT NOT NULL, counters TEXT NOT NULL);
    CREATE UNIQUE INDEX events_by_stream ON events (stream, event_seq);
    CREATE INDEX events_by_time ON events (at_ns);
    CREATE INDEX events_by_id ON events (id);
    CREATE TABLE streams (
        stream TEXT PRIMARY KEY, event_seq INTEGER NOT NULL, lost INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE counters (
        stream TEXT NOT NULL, name TEXT NOT NULL, value INTEGER NOT NULL, since_ns INTEGER NOT NULL,
        PRIMARY KEY (stream, name)) WITHOUT ROWID;
    CREATE TABLE open (
        id TEXT PRIMARY KEY, stream TEXT NOT NULL, origin TEXT NOT NULL, type TEXT NOT NULL, rule TEXT, label TEXT,
        track, epoch INTEGER NOT NULL, seq INTEGER NOT NULL, began_ns INTEGER NOT NULL, last_ns INTEGER NOT NULL,
        deleted INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE origins (origin TEXT PRIMARY KEY, n INTEGER NOT NULL, used_ns INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE cursors (
        name TEXT PRIMARY KEY, start INTEGER NOT NULL, position INTEGER NOT NULL, delivered INTEGER NOT NULL,
        refused INTEGER NOT NULL, expired INTEGER NOT NULL, deleted INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE media (
        id TEXT NOT NULL, role TEXT NOT NULL, stream TEXT NOT NULL, path TEXT NOT NULL, state TEXT NOT NULL,
        reason TEXT NOT NULL, began_ns INTEGER NOT NULL, ended_ns INTEGER, PRIMARY KEY (id, role)) WITHOUT ROWID;
    CREATE INDEX media_by_path ON media (path);
    CREATE TABLE removals (path TEXT PRIMARY KEY) WITHOUT ROWID
    """,
    """
    -- of the box of a fleet, 0 outside of one
    ALTER TABLE events ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE open ADD COLUMN generation INTEGER NOT NULL DEFAULT 0
    """,
    """
    -- what each rule has counted, as JSON. The rule with an empty name is the stream as its last process left it
    CREATE TABLE rules (
        stream TEXT NOT NULL, rule TEXT NOT NULL, state TEXT NOT NULL, PRIMARY KEY (stream, rule)) WITHOUT ROWID
    """,
]
"""The statements that lead from each version to the next. Never change a released step: append another one.
A semicolon ends a statement."""


def is_corrupt(error: BaseException) -> bool:
    """True if the file itself is damaged or is not a database: trying again cannot help."""
    code = getattr(error, "sqlite_errorcode", None)  # Python 3.11
    if code is not None:
        return code & 0xFF in (11, 26)  # SQLITE_CORRUPT, SQLITE_NOTADB
    return "malformed" in str(error) or "not a database" in str(error)


def open_writer(path: Path) -> sqlite3.Connection:
    """Opens the journal for its only writer; creates or upgrades it if needed.

    Raises:
        ConfigError: it is of a newer version, or belongs to another program.
        OSError: it cannot be created.
        sqlite3.Error: it cannot be opened now, or is damaged (`is_corrupt`).
    """
    # Accessible to this user only, whatever the umask; SQLite gives its other files the same mode. An existing file is
    # not opened here: closing any descriptor of it would release the locks of other connections of this process.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(
        path, timeout=BUSY_MS / 1000, isolation_level=None, check_same_thread=False, cached_statements=64
    )
    try:
        _set_up(connection)
        _migrate(connection, path)
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.close()
        raise
    return connection


def _set_up(connection: sqlite3.Connection) -> None:
    # FULL: one fsync a commit. With NORMAL, a power failure would undo commits whose events were delivered, and their
    # event_seq would be reused for other events. secure_delete overwrites what was deleted on request.
    for pragma in (
        "trusted_schema=OFF", "cell_size_check=ON", "journal_mode=WAL", "synchronous=FULL", "secure_delete=ON",
        "wal_autocheckpoint=1000", f"journal_size_limit={4 << 20}", "cache_size=-4096", "temp_store=MEMORY",
    ):  # fmt: skip
        connection.execute(f"PRAGMA {pragma}")


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION_ID and (application or version or _has_tables(connection)):
        raise ConfigError(f"{path}: is another program's database; move it away, or name another state_dir")
    if version > len(STEPS):
        advice = "run the newer streamd, or move the file away to begin a new journal"
        raise ConfigError(f"{path}: has schema {version}, and this streamd knows schemas up to {len(STEPS)}; {advice}")
    if version == len(STEPS):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for step in STEPS[version:]:
            for statement in step.split(";"):
                connection.execute(statement)
        if version == 0:
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            made = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
            rows = [("log_id", uuid.uuid4().hex), ("made", made), ("position", 0)]
            connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
        connection.execute(f"PRAGMA user_version={len(STEPS)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    if version:
        log.info("event journal brought up to date", path=str(path), schema=len(STEPS), was=version)


def _has_tables(connection: sqlite3.Connection) -> bool:
    (count,) = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    return bool(count)


def open_reader(path: Path) -> sqlite3.Connection:
    """Opens the journal for reading only, alongside its writer or without one.

    Raises:
        ConfigError: it is of another version.
        sqlite3.Error: there is none, or it cannot be opened.
    """
    uri = f"{path.absolute().as_uri()}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, timeout=2.0, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA query_only=ON")
        connection.execute("PRAGMA trusted_schema=OFF")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version != len(STEPS):
            advice = "read it with the streamd that writes it"
            raise ConfigError(f"{path}: has schema {version}, and this streamd reads schema {len(STEPS)}; {advice}")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.close()
        raise
    return connection


def set_aside(path: Path) -> Path:
    """Renames a damaged journal and its other files; the newest few are kept.

    Returns:
        Its new name.

    Raises:
        OSError: it cannot be renamed.
    """
    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    os.rename(path, aside)
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{aside}{suffix}")
    for old in damaged(path)[:-KEPT_ASIDE]:
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                os.unlink(f"{old}{suffix}")
    return aside


def damaged(path: Path) -> list[Path]:
    """Journals that were set aside, the oldest first."""
    names = path.parent.glob(f"{path.name}.damaged-*Z")
    return sorted(names)
