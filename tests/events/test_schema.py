from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from streamd.errors import ConfigError
from streamd.events import schema
from streamd.events.journal import Journal
from streamd.events.place import JOURNAL
from streamd.events.query import Filter
from tests.events.journals import event, journal, rows


def fill(folder: Path) -> str:
    with journal(folder) as one:
        one.submit(event("x", "begin", counts={"in": 1}))
        assert one.flush()
        return one.status().log_id


def test_the_policy_is_what_the_docs_say(tmp_path: Path) -> None:
    connection = schema.open_writer(tmp_path / JOURNAL)
    told = {
        p: connection.execute(f"PRAGMA {p}").fetchone()[0] for p in ("journal_mode", "synchronous", "secure_delete")
    }
    assert told == {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1}
    connection.close()


def test_the_files_are_for_their_user_alone(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        with journal(tmp_path) as one:
            assert one.flush()
            modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir() if path.is_file()}
    finally:
        os.umask(umask)
    assert set(modes) == {JOURNAL, f"{JOURNAL}-wal", f"{JOURNAL}-shm", "lock"}
    assert set(modes.values()) == {0o600}


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    fill(tmp_path)
    connection = sqlite3.connect(tmp_path / JOURNAL)
    connection.execute(f"PRAGMA user_version={len(schema.STEPS) + 1}")
    connection.close()
    expected = (
        f"has schema {len(schema.STEPS) + 1}, and this streamd knows schemas up to {len(schema.STEPS)}; run the newer"
    )
    with pytest.raises(ConfigError, match=expected):
        Journal(tmp_path)
    with pytest.raises(ConfigError, match="reads schema"):
        schema.open_reader(tmp_path / JOURNAL)
    assert rows(tmp_path, "SELECT id FROM events") == [("x",)], "nothing of it was touched"
    with pytest.raises(ConfigError, match="newer"):
        Journal(tmp_path)  # and the folder is not locked by the refused one


def test_an_older_schema_is_brought_forward_with_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log_id = fill(tmp_path)
    step = "ALTER TABLE streams ADD COLUMN note TEXT; CREATE TABLE more (x)"
    monkeypatch.setattr(schema, "STEPS", [*schema.STEPS, step])
    connection = schema.open_writer(tmp_path / JOURNAL)
    assert connection.execute("PRAGMA user_version").fetchone() == (len(schema.STEPS),)
    assert connection.execute("SELECT stream, note FROM streams").fetchall() == [("a", None)]
    assert connection.execute("SELECT value FROM meta WHERE name = 'log_id'").fetchone() == (log_id,)
    connection.close()


def test_a_step_that_fails_leaves_the_old_version_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    monkeypatch.setattr(schema, "STEPS", [*schema.STEPS, "CREATE TABLE more (x); CREATE TABLE events (x)"])
    with pytest.raises(sqlite3.OperationalError, match="already exists"):
        schema.open_writer(tmp_path / JOURNAL)
    monkeypatch.undo()
    assert rows(tmp_path, "SELECT name FROM sqlite_master WHERE name = 'more'") == []
    assert fill(tmp_path)


def test_another_program_s_database_is_left_alone(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / JOURNAL)
    connection.execute("CREATE TABLE letters (x)")
    connection.close()
    with pytest.raises(ConfigError, match="another program's database"):
        Journal(tmp_path)
    assert rows(tmp_path, "SELECT name FROM sqlite_master") == [("letters",)]


@pytest.mark.parametrize("damage", ["head", "middle", "text", "empty"])
def test_a_damaged_journal_is_set_aside_and_another_begun(tmp_path: Path, damage: str) -> None:
    """At the start or at the first touch; the old file keeps what it had. An empty file is a new journal."""
    with journal(tmp_path) as one:
        for number in range(3000):
            one.submit(event(f"x{number}", details={"n": "x" * 50}))
        assert one.flush(30)
        log_id = one.status().log_id
    path = tmp_path / JOURNAL
    data = bytearray(path.read_bytes())
    if damage == "head":
        data[:100] = bytes(100)
    elif damage == "middle":
        data[4096 * 2 :] = b"\xa5" * (len(data) - 4096 * 2)
    else:
        data = bytearray(b"this was a disk once\n" * 400 if damage == "text" else b"")
    path.write_bytes(data)
    with capture_logs() as logs, journal(tmp_path) as one:
        one.submit(event("y"))
        assert one.flush(20)
        assert one.status().log_id != log_id
        assert one.status().problem == ""
        assert [(r.id, r.event_seq) for r in one.find(Filter())] == [("y", 1)]
    kept = schema.damaged(path)
    if damage == "empty":
        assert kept == []
    else:
        (aside,) = kept
        assert aside.read_bytes()[:8192] == bytes(data)[:8192]
        assert any(str(aside) == line.get("kept_as") for line in logs), "its name is told"


def test_only_the_newest_damaged_journals_are_kept(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    for number in range(6):
        path.write_text(f"{number}" * 2000)
        fill(tmp_path)
    assert [aside.read_text()[0] for aside in schema.damaged(path)] == ["0", "1", "2", "3", "4", "5"][-3:]


def test_a_journal_that_is_removed_while_in_use_begins_anew(tmp_path: Path) -> None:
    with journal(tmp_path) as one:
        one.submit(event("x", "begin", counts={"in": 5}))
        assert one.flush()
        old, since = one.status().log_id, one.counters("a")["in"].since_ns
        (tmp_path / JOURNAL).unlink()
        one.submit(event("x", "end"))
        one.submit(event("y", counts={"in": 1}))
        assert one.flush()
        assert one.status().log_id != old
        assert one.counters("a")["in"].value == 1
        assert one.counters("a")["in"].since_ns > since
        assert one.status().orphans == 1, "the begin of x went with the file"
    assert rows(tmp_path, "SELECT id, event_seq, lost FROM events") == [("y", 1, 1)]
