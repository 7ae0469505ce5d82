from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamd.events import upkeep
from streamd.events.place import JOURNAL
from streamd.events.schema import open_writer
from streamd.events.store import Store
from streamd.events.upkeep import Limits
from tests.events.journals import event, journal, rows, until

FOREVER = Limits(1e9, 10**9)


def test_a_cursor_goes_on_where_it_was_after_a_restart(tmp_path: Path) -> None:
    with journal(tmp_path) as one:
        one.submit(event("before"))
        cursor = one.cursor("mqtt")
        for number in range(10):
            one.submit(event(f"x{number}"))
        assert one.flush()
        first = cursor.read(4)
        assert [r.id for r in first] == ["x0", "x1", "x2", "x3"]
        assert cursor.read(4) == first, "what is not advanced past comes again"
        cursor.advance(first[-1])
        assert [r.id for r in cursor.read(2)] == ["x4", "x5"]
        cursor.advance(first[0])  # backwards is nowhere
        cursor.advance(cursor.read(1)[0], "refused")
        assert one.flush()
        assert cursor.counts() == (10, 5, 4, 1, 0, 0)
    with journal(tmp_path) as one:
        cursor, late = one.cursor("mqtt"), one.cursor("webhook", oldest=True)
        assert one.flush()
        assert [r.id for r in cursor.read()] == [f"x{number}" for number in range(5, 10)]
        assert len(late.read()) == late.counts().accepted == late.counts().queued == 11
        assert cursor.counts() == (10, 5, 4, 1, 0, 0)
        one.drop_cursor("mqtt")
        assert one.flush()
    assert rows(tmp_path, "SELECT name FROM cursors") == [("webhook",)]


def test_a_sink_that_waits_is_woken_by_a_commit(tmp_path: Path) -> None:
    with journal(tmp_path) as one:
        cursor = one.cursor("mqtt")
        assert one.flush()
        assert not cursor.wait(0.05)
        threading.Timer(0.1, one.submit, (event("x"),)).start()
        began = time.monotonic()
        assert cursor.wait(5)
        assert time.monotonic() - began < 2
        assert [r.id for r in cursor.read()] == ["x"]


def test_a_position_is_kept_while_the_journal_cannot_be_written(tmp_path: Path) -> None:
    """A sink delivers on from what is committed; it is not sent the same again and again for want of a disk."""
    with journal(tmp_path) as one:
        cursor = one.cursor("mqtt")
        for number in range(4):
            one.submit(event(f"x{number}"))
        assert one.flush()
        other = sqlite3.connect(tmp_path / JOURNAL, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        for expected in ("x0", "x1", "x2"):
            (record,) = cursor.read(1)
            assert record.id == expected
            cursor.advance(record)
            time.sleep(0.3)
        other.execute("ROLLBACK")
        other.close()
        assert one.flush()
        until(lambda: cursor.counts().delivered == 3)
        assert cursor.counts() == (4, 1, 3, 0, 0, 0)


def test_cursors_begin_anew_with_a_new_journal(tmp_path: Path) -> None:
    with journal(tmp_path) as one:
        cursor = one.cursor("mqtt")
        for number in range(5):
            one.submit(event(f"x{number}"))
        assert one.flush()
        old = cursor.read()
        (tmp_path / JOURNAL).unlink()
        one.submit(event("y"))
        assert one.flush()
        cursor.advance(old[-1])  # of a journal that is no more
        assert one.flush()
        assert [r.id for r in cursor.read()] == ["y"]
        assert cursor.counts() == (1, 1, 0, 0, 0, 0)


def test_a_sink_that_is_away_holds_up_nobody_and_loses_only_what_it_is_not_owed(tmp_path: Path) -> None:
    with journal(tmp_path, retention=Limits(1e9, 20)) as one:
        fast = one.cursor("fast", FOREVER)
        away = one.cursor("away", Limits(1e9, 50))
        for number in range(100):
            one.submit(event(f"x{number}"))
            if number % 20 == 19:
                assert one.flush()
                fast.advance(fast.read(100)[-1])
        one._writer.do(one._writer.chores._retain)
        assert one.flush()
        assert fast.counts() == (100, 0, 100, 0, 0, 0)
        assert away.counts() == (100, 50, 0, 0, 50, 0)
        assert [r.id for r in away.read(100)] == [f"x{number}" for number in range(50, 100)]
        one.drop_cursor("away")
        one._writer.do(one._writer.chores._retain)
        assert one.flush()
        assert len(rows(tmp_path, "SELECT 1 FROM events")) == 20


def test_age_counts_only_where_the_clock_can_be_believed(tmp_path: Path) -> None:
    store = Store(open_writer(tmp_path / JOURNAL))
    store.begin()
    for number in range(10):
        store.add(event(f"x{number}"))
    store.commit()
    later = time.time_ns() + 3600 * 10**9
    for ages, left in ((False, 10), (True, 0)):
        store.begin()
        upkeep.retain(store, Limits(60, 1000), {}, later, ages=ages)
        store.commit()
        assert store.connection.execute("SELECT COUNT(*) FROM events").fetchone() == (left,)
    store.begin()
    store.add(event("y"))
    assert [(r.position, r.event_seq) for r in store.commit()] == [(11, 11)], "numbers are not given again"


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 8)),
        st.tuples(st.sampled_from(["c0", "c1", "c2"]), st.integers(0, 12)),
        st.tuples(st.just("refuse"), st.integers(0, 12)),
        st.tuples(st.just("retain"), st.integers(0, 20)),
        st.tuples(st.just("delete"), st.integers(0, 30)),
        st.tuples(st.just("crash"), st.just(0)),
    ),
    max_size=30,
)


@given(actions=ACTIONS)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_counts_of_a_cursor_always_add_up(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("j")
    store = Store(open_writer(folder / JOURNAL))
    store.connection.execute("PRAGMA synchronous=OFF")
    owed = {"c0": Limits(1e9, 5), "c1": FOREVER}
    store.begin()
    for name in ("c0", "c1", "c2"):
        upkeep.make_cursor(store, name, oldest=False)
    store.commit()
    store.begin()
    made = 0
    for what, number in actions:
        if what == "add":
            for _ in range(number):
                store.add(event(f"x{made % 7}", ("begin", "end")[made // 7 % 2], made))
                made += 1
        elif what == "retain":
            upkeep.retain(store, Limits(1e9, number), owed, time.time_ns(), ages=False)
        elif what == "delete":
            since = event("", at_s=number).at_ns
            upkeep.delete(store, "a", since, since + 3 * 10**9)
        elif what == "crash":
            store.connection.close()
            store = Store(open_writer(folder / JOURNAL))
            store.connection.execute("PRAGMA synchronous=OFF")
            made = max(made, store.position)
            store.begin()
        else:
            name = "c1" if what == "refuse" else what
            cursor = store.cursors.get(name)
            assert cursor is not None
            upkeep.move_cursor(store, name, cursor.position + number, "refused" if what == "refuse" else "delivered")
        if number % 3 == 0:
            store.commit()
            store.begin()
    store.commit()
    for name in ("c0", "c1", "c2"):
        state = store.cursors.committed[name]
        query = "SELECT COUNT(*) FROM events WHERE position > ?"
        (queued,) = store.connection.execute(query, (state.position,)).fetchone()
        assert min(state.delivered, state.refused, state.expired, state.deleted) >= 0
        assert queued + state.delivered + state.refused + state.expired + state.deleted == store.position - state.start
    (oldest,) = store.connection.execute("SELECT MIN(position) FROM events").fetchone()
    assert oldest is None or oldest >= 1
    store.connection.close()
