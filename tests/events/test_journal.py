from __future__ import annotations

import sqlite3
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from streamd.errors import ConfigError
from streamd.events.journal import Journal
from streamd.events.place import JOURNAL
from streamd.events.query import Filter
from streamd.events.record import Record
from streamd.events.store import Store
from tests.events.journals import T0, event, journal, rows, until


def test_events_are_numbered_at_their_commit_and_handed_out_after_it(tmp_path: Path) -> None:
    seen: list[Record] = []
    committed_then: list[int] = []

    def listen(records: Any) -> None:
        seen.extend(records)
        committed_then.append(len(rows(tmp_path, "SELECT 1 FROM events")))

    with journal(tmp_path) as one:
        one.listen(listen)
        for number in range(50):
            one.submit(event(f"x{number}", stream="ab"[number % 2]))
        assert one.flush()
        status = one.status()
    assert [r.id for r in seen] == [f"x{number}" for number in range(50)]
    assert [r.position for r in seen] == list(range(1, 51))
    assert [r.event_seq for r in seen] == [1 + number // 2 for number in range(50)]
    assert {r.log_id for r in seen} == {status.log_id}
    assert committed_then[-1] == 50
    assert (status.committed, status.waiting, status.problem) == (50, 0, "")


def test_nothing_is_handed_out_while_its_commit_fails(tmp_path: Path) -> None:
    """Another process holds the database's lock: events wait, are seen to wait, and come once it lets go."""
    seen: list[Record] = []
    with journal(tmp_path) as one:
        one.listen(seen.extend)
        cursor = one.cursor("sink")
        assert one.flush()
        other = sqlite3.connect(tmp_path / JOURNAL, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        began = time.perf_counter()
        for number in range(100):
            assert one.submit(event(f"x{number}"))
        assert time.perf_counter() - began < 0.1, "a submitter does not wait for the lock"
        until(lambda: one.status().problem)
        assert "locked" in one.status().problem
        assert one.status().waiting == 100
        assert (seen, cursor.read(), one.find(Filter())) == ([], [], [])
        other.execute("ROLLBACK")
        until(lambda: len(seen) == 100)
        assert [r.id for r in cursor.read()] == [f"x{number}" for number in range(100)]
        until(lambda: one.status().problem == "")
        other.close()


def test_what_finds_no_room_is_counted_told_and_settled(tmp_path: Path) -> None:
    """Counters lose nothing, a begin without room takes its end with it, and an end without room is made up for."""
    with journal(tmp_path, bound=10) as one:
        one.submit(event("old", "begin", 0, counts={"in": 1}))
        assert one.flush()
        other = sqlite3.connect(tmp_path / JOURNAL, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        one.submit(event("young", "begin", 1))
        for number in range(9):
            assert one.submit(event(f"x{number}", at_s=2, counts={"in": 1}))
        assert not one.submit(event("old", "end", 3, counts={"in": 10}))
        assert not one.submit(event("young", "end", 4))
        assert not one.submit(event("never", "begin", 5, counts={"in": 100}))
        assert not one.submit(event("never", "end", 6))
        assert not one.submit(event("of b", "instant", 7, stream="b", counts={"out": 1}))
        assert not one.submit(event("numbered"), "worker", 1), "its sender keeps it: it is not lost"
        assert (one.status().waiting, one.status().lost) == (10, 5)
        other.execute("ROLLBACK")
        other.close()
        until(lambda: one.status().waiting == 0 and one.status().problem == "")
        assert one.submit(event("next", at_s=8))
        assert one.submit(event("next", at_s=8, stream="b"))
        assert one.flush()
        found = one.find(Filter(streams=["a"]))
        ends = {r.id: r for r in found if r.kind == "end"}
        assert set(ends) == {"old", "young"}
        assert all(r.details == {"reason": "events_lost"} for r in ends.values())
        assert [(ends[i].at_ns - T0) // 10**9 for i in ("old", "young")] == [3, 4]
        assert sum(r.events_lost for r in found) == 4
        assert [r.events_lost for r in one.find(Filter(streams=["b"]))] == [1]
        assert one.counters("a")["in"].value == 1 + 9 + 10 + 100
        assert one.counters("b")["out"].value == 1
        assert one.status().open == 0
        assert one.submit(event("numbered"), "worker", 1)


def test_resends_are_dropped_before_and_after_the_commit_and_a_restart(tmp_path: Path) -> None:
    with journal(tmp_path) as one:
        for n in (1, 2, 2, 1, 3):
            assert one.submit(event(f"x{n}"), "boot/1", n)
        assert one.taken("boot/1") == 3
        assert one.flush()
        assert one.acknowledged("boot/1") == 3
        assert one.submit(event("x3"), "boot/1", 3)
        assert one.submit(event("x1"), "boot/2", 1)
        assert one.flush()
        assert one.status().duplicates == 3
    with journal(tmp_path) as one:
        assert one.taken("boot/1") == one.acknowledged("boot/1") == 3
        assert one.submit(event("x3"), "boot/1", 3)
        assert one.submit(event("x4"), "boot/1", 4)
        assert one.flush()
    assert rows(tmp_path, "SELECT id FROM events ORDER BY position") == [("x1",), ("x2",), ("x3",), ("x1",), ("x4",)]


def test_a_successor_ends_what_its_predecessor_left_open(tmp_path: Path) -> None:
    with journal(tmp_path) as one:
        one.submit(event("x", "begin", 0), "boot/1", 1)
        one.submit(event("y", "begin", 1, rule="other"))
        one.submit(event("z", "begin", 2, stream="b"))
        assert one.flush()
        assert [r.id for r in one.open_events()] == ["x", "y", "z"]
        assert [r.id for r in one.open_events(["b"])] == ["z"]
        assert one.end_open("worker_died", origin="boot/1").result(5) == 1
        assert one.end_open("rule_changed", rules=["other"]).result(5) == 1
    with journal(tmp_path) as one:
        assert one.status().open == 1
        assert one.end_open("process_died").result(5) == 1
        assert one.open_events() == []
        ends = {r.id: (r.details["reason"], (r.at_ns - T0) // 10**9) for r in one.find(Filter(kinds=["end"]))}
        assert ends == {"x": ("worker_died", 0), "y": ("rule_changed", 1), "z": ("process_died", 2)}
        assert [r.event_seq for r in one.find(Filter(streams=["a"]))] == [1, 2, 3, 4]


def test_the_last_known_time_is_kept_while_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamd.events.chores.ALIVE_S", 0.0)
    with journal(tmp_path) as one:
        one.submit(event("x", "begin", 0))
        one.alive({"a": T0 + 3600 * 10**9, "b": 1})
        until(lambda: rows(tmp_path, "SELECT last_ns FROM open") == [(T0 + 3600 * 10**9,)])
        one.end_open("process_died").result(5)
        assert one.find(Filter(kinds=["end"]))[0].at_ns == T0 + 3600 * 10**9


def test_an_end_in_place_of_a_worker_is_at_the_time_of_its_last_report(tmp_path: Path) -> None:
    with journal(tmp_path) as one:  # nothing was written of it yet
        one.submit(event("x", "begin", 0))
        one.alive({"a": T0 + 7 * 10**9})
        assert one.end_open("worker_died").result(5) == 1
        assert one.find(Filter(kinds=["end"]))[0].at_ns == T0 + 7 * 10**9


def test_many_threads_submit_and_nothing_is_lost_or_out_of_order(tmp_path: Path) -> None:
    seen: dict[str, list[int]] = defaultdict(list)

    def collect(records: Any) -> None:
        for r in records:
            seen[r.stream].append(r.seq)

    def work(stream: str) -> None:
        for number in range(500):
            assert one.submit(event(f"{stream}{number}", stream=stream, seq=number))

    with journal(tmp_path) as one:
        one.listen(collect)
        threads = [threading.Thread(target=work, args=(f"s{n}",)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert one.flush(30)
    assert seen == {f"s{n}": list(range(500)) for n in range(8)}


def test_a_single_event_is_committed_within_50_ms(tmp_path: Path) -> None:
    arrived = threading.Event()
    times = []
    with journal(tmp_path) as one:
        one.listen(lambda _: arrived.set())
        for number in range(20):
            arrived.clear()
            time.sleep(0.03)
            began = time.perf_counter()
            one.submit(event(f"x{number}"))
            assert arrived.wait(5)
            times.append(time.perf_counter() - began)
    assert sorted(times)[15] < 0.05, times


def test_a_listener_that_fails_costs_nobody_anything(tmp_path: Path) -> None:
    seen: list[Record] = []

    def broken(_: Any) -> None:
        raise RuntimeError("broken")

    with journal(tmp_path) as one:
        one.listen(broken)
        one.listen(seen.extend)
        one.submit(event("x"))
        assert one.flush()
    assert [r.id for r in seen] == ["x"]


def test_an_entry_that_cannot_be_done_does_not_stop_the_others(tmp_path: Path) -> None:
    """Whatever the fault is: here, tables and memory that disagree about event_seq, and a function that raises."""
    with journal(tmp_path) as one:
        one.submit(event("x"))
        assert one.flush()
        store = one._writer.store
        assert store is not None
        store.streams.committed["a"] = (0, 0)

        def broken(_: Store) -> None:
            raise LookupError("no such thing")

        failed = one._writer.waiting.call(broken)
        one.submit(event("y"))
        with pytest.raises(LookupError):
            failed.result(5)
        assert one.flush()
        assert [(r.id, r.event_seq) for r in one.find(Filter())] == [("x", 1), ("y", 2)]
        assert one.status().waiting == 0


def test_close_commits_what_waits_and_lets_go_of_the_folder(tmp_path: Path) -> None:
    one = Journal(tmp_path)
    one.start()
    for number in range(2000):
        one.submit(event(f"x{number}"))
    with pytest.raises(ConfigError, match="in use"):
        Journal(tmp_path)
    assert one.close(20)
    assert len(rows(tmp_path, "SELECT 1 FROM events")) == 2000
    Journal(tmp_path)._place.close()


def test_close_gives_up_on_a_journal_that_cannot_be_written(tmp_path: Path) -> None:
    one = Journal(tmp_path)
    one.start()
    assert one.flush()
    other = sqlite3.connect(tmp_path / JOURNAL, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    one.submit(event("x"))
    began = time.monotonic()
    assert not one.close(1.0)
    assert time.monotonic() - began < 3
    other.close()


def test_a_journal_that_was_read_only_is_opened_anew(tmp_path: Path) -> None:
    with journal(tmp_path) as one:
        assert one.flush()
        store = one._writer.store
        assert store is not None
        store.connection.execute("PRAGMA query_only=ON")
        one.submit(event("x", counts={"in": 1}))
        assert one.flush()
        until(lambda: one.status().problem == "")
        assert one._writer.store is not store
        assert [r.event_seq for r in one.find(Filter())] == [1]
        assert one.counters("a")["in"].value == 1
