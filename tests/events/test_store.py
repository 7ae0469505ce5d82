"""Any order of events, resends, crashes and restarts leaves a journal in which everything is accounted for."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streamd.events.layered import Layered
from streamd.events.place import JOURNAL
from streamd.events.query import Filter, find
from streamd.events.record import Event, OpenEvent, event_id
from streamd.events.schema import open_writer
from streamd.events.store import Store
from tests.events.journals import T0, event

KINDS = st.sampled_from(["begin", "update", "end", "instant"])
STREAMS = st.sampled_from(["a", "b"])


class Machine(RuleBasedStateMachine):
    """A store whose process may die at any time, beside a plain model of what it should hold."""

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.open_store()
        self.log_id = self.store.log_id
        self.time = 0
        self.sent: list[Event] = []
        """By worker w, numbered from 1; the worker outlives the store."""
        self.counters: Counter[tuple[str, str]] = Counter()
        self.opened: set[str] = set()
        self.stored: list[tuple[str, str, str]] = []
        self.told_lost: Counter[str] = Counter()
        self.seen_values: dict[tuple[str, str], int] = {}
        self.pending: list[tuple[Event, int]] = []

    def open_store(self) -> None:
        self.connection = open_writer(self.folder / JOURNAL)
        self.connection.execute("PRAGMA synchronous=OFF")  # it is a process that dies here, not the machine
        self.store = Store(self.connection)
        self.store.begin()

    def make(self, number: int, kind: str, stream: str, counts: int) -> Event:
        self.time += 1
        by = {"in": counts} if counts else {}
        return event(f"{stream}{number}", kind, self.time, stream=stream, counts=by)  # type: ignore[arg-type]

    @rule(number=st.integers(0, 3), kind=KINDS, stream=STREAMS, counts=st.integers(0, 2))
    def add(self, number: int, kind: str, stream: str, counts: int) -> None:
        made = self.make(number, kind, stream, counts)
        self.store.add(made)
        self.pending.append((made, 0))

    @rule(number=st.integers(0, 3), kind=KINDS, stream=STREAMS, counts=st.integers(0, 2))
    def send(self, number: int, kind: str, stream: str, counts: int) -> None:
        self.sent.append(self.make(number, kind, stream, counts))
        self.store.add(self.sent[-1], "w", len(self.sent))
        self.pending.append((self.sent[-1], len(self.sent)))

    @precondition(lambda self: self.sent)
    @rule(back=st.integers(1, 5))
    def resend(self, back: int) -> None:
        for n in range(max(1, len(self.sent) - back + 1), len(self.sent) + 1):
            self.store.add(self.sent[n - 1], "w", n)

    @rule(stream=STREAMS, count=st.integers(1, 3))
    def lose(self, stream: str, count: int) -> None:
        self.commit()
        self.store.add_lost(stream, count)
        self.told_lost[stream] += count
        self.commit()

    def apply(self, made: Event) -> None:
        """The model: what one event means."""
        for name, by in made.counts.items():
            self.counters[made.stream, name] += by
        known = made.id in self.opened
        if (made.kind == "begin" and known) or (made.kind in ("update", "end") and not known):
            self.told_lost[made.stream] += 1
            return
        if made.kind == "begin":
            self.opened.add(made.id)
        elif made.kind == "end":
            self.opened.discard(made.id)
        self.stored.append((made.stream, made.id, made.kind))

    @rule()
    def commit(self) -> None:
        records = self.store.commit()
        before = len(self.stored)
        for made, _ in self.pending:
            self.apply(made)
        self.pending = []
        assert [(r.stream, r.id, r.kind) for r in records] == self.stored[before:]
        self.store.begin()

    @rule(successor_ends=st.booleans())
    def crash(self, successor_ends: bool) -> None:
        """kill -9 in mid-transaction: nothing of it stays, and the worker sends again what was not acknowledged."""
        self.connection.close()
        self.pending = []
        self.open_store()
        assert self.store.log_id == self.log_id
        acknowledged = self.store.origins.get("w") or 0
        for n in range(acknowledged + 1, len(self.sent) + 1):
            self.store.add(self.sent[n - 1], "w", n)
            self.pending.append((self.sent[n - 1], n))
        if successor_ends:
            self.commit()
            ended = sorted(self.opened)
            assert self.store.end_open("process_died", lambda *_: True) == len(ended)
            assert sorted(r.id for r in self.store.commit()) == ended
            self.stored += [(id_[0], id_, "end") for id_ in ended]
            self.opened = set()
            self.store.begin()

    @invariant()
    def everything_adds_up(self) -> None:
        if self.pending:
            return
        self.store.commit()
        query = "SELECT stream, event_seq, id, kind, lost, began_ns, at_ns FROM events ORDER BY position"
        found = self.connection.execute(query).fetchall()
        assert Counter((r[0], r[2], r[3]) for r in found) == Counter(self.stored)
        by_stream, by_id = defaultdict(list), defaultdict(list)
        for stream, event_seq, id_, kind, *_ in found:
            by_stream[stream].append(event_seq)
            if kind != "instant":
                by_id[id_].append(kind)
        for seqs in by_stream.values():
            assert seqs == list(range(1, len(seqs) + 1)), "gapless"
        for id_, kinds in by_id.items():
            text = "".join({"begin": "(", "update": ".", "end": ")"}[kind] for kind in kinds)
            lives = [life for life in text.split(")") if life]
            assert all(life[0] == "(" and set(life[1:]) <= {"."} for life in lives), text
            assert text.endswith(")") == (id_ not in self.opened)
        assert set(self.store.open.committed) == self.opened
        values = {key: v.value for key, v in self.store.counters.committed.items()}
        assert values == {k: v for k, v in self.counters.items() if k in values}
        assert sum(values.values()) == sum(self.counters.values())
        assert all(values.get(key, 0) >= value for key, value in self.seen_values.items()), "monotone"
        self.seen_values = values
        for stream in ("a", "b"):
            told = sum(r[4] for r in found if r[0] == stream)
            _, still = self.store.streams.committed.get(stream, (0, 0))
            assert told + still == self.told_lost[stream], "every lost event is told once"
        stored = self.connection.execute("SELECT stream, name, value FROM counters").fetchall()
        assert {(s, n): v for s, n, v in stored} == values
        self.store.begin()

    def teardown(self) -> None:
        if hasattr(self, "connection"):
            self.connection.close()
            shutil.rmtree(self.folder)


Machine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestAnyOrder = Machine.TestCase


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(open_writer(tmp_path / JOURNAL))


@pytest.mark.parametrize(
    "bad",
    [
        event("x", details={"long": "x" * 20_000}), event("x", details={"what": object()}), event("\ud800"),
        event("x", seq=1 << 63), event("x", kind="start"), event("x", counts={"in": -1}),  # type: ignore[arg-type]
        event("x", seq=1.5), event("x", label=7), event("x", counts={"in": 0.5}),
    ],
    ids=["long", "no JSON", "surrogate", "large", "kind", "falls", "fraction", "label", "half"],
)  # fmt: skip
def test_a_bad_event_is_refused_and_harms_no_other(store: Store, bad: Event) -> None:
    store.begin()
    store.add(event("before"))
    store.add(bad, "w", 1)
    store.add(event("after"))
    records = store.commit()
    assert [(r.id, r.events_lost) for r in records] == [("before", 0), ("after", 1)]
    assert store.tally["refused"] == 1
    assert store.origins.committed == {"w": 1}, "its sender need not send it again"


def test_an_end_by_the_journal_is_at_the_last_known_time(store: Store) -> None:
    store.begin()
    store.add(event("x", "begin", 0))
    store.add(event("x", "update", 5))
    store.add(event("y", "begin", 6, stream="b"))
    store.add(event("z", "begin", 7, rule="other"))
    store.commit()
    store.begin()
    store.touch({"b": T0 + 60_000_000_000})
    store.end_open("process_died", lambda o: o.rule == "gate")
    ends = {r.id: r for r in store.commit()}
    assert {id_: (r.at_ns - T0) / 1e9 for id_, r in ends.items()} == {"x": 5.0, "y": 60.0}
    assert all(r.details == {"reason": "process_died"} and r.kind == "end" and r.rule == "gate" for r in ends.values())
    assert ends["y"].began_ns == T0 + 6_000_000_000
    assert set(store.open.committed) == {"z"}


def memory(store: Store) -> tuple[object, ...]:
    committed = [dict(layer.committed) for layer in (store.open, store.origins, store.streams)]
    return (*committed, store.counters.get(("a", "in")), store.position, store.last)


def test_a_rolled_back_transaction_leaves_no_trace_in_memory(store: Store) -> None:
    store.begin()
    store.add(event("x", "begin", counts={"in": 1}), "w", 4)
    store.commit()
    before = memory(store)
    store.begin()
    store.add(event("x", "end", counts={"in": 1}), "w", 5)
    store.rollback()

    assert memory(store) == before
    store.begin()
    assert store.commit() == []
    assert store.tally["events"] == 1


def test_counters_of_the_record_are_those_after_it(store: Store) -> None:
    store.begin()
    for number in range(3):
        store.add(event(f"{number}", counts={"in": number, "out": 1}))
    assert [r.counters for r in store.commit()] == [
        {"in": 0, "out": 1}, {"in": 1, "out": 2}, {"in": 3, "out": 3},
    ]  # fmt: skip
    first, second = store.by_stream["a"], None
    store.begin()
    store.add(event("4", counts={"in": 1}))
    store.commit()
    second = store.by_stream["a"]
    assert (first["in"].value, second["in"].value) == (3, 4), "a dictionary that was handed out is not changed"
    assert first["in"].since_ns == second["in"].since_ns


def test_layers() -> None:
    layered: Layered[str, int] = Layered({"a": 1, "b": 2})
    layered.put("a", 3)
    layered.remove("b")
    layered.put("c", 4)
    assert sorted(layered.items()) == [("a", 3), ("c", 4)]
    assert (layered.get("a"), layered.get("b"), layered.committed) == (3, None, {"a": 1, "b": 2})
    layered.drop()
    assert sorted(layered.items()) == [("a", 1), ("b", 2)]
    for key, value in itertools.product("bc", [7]):
        layered.put(key, value)
    layered.remove("a")
    layered.keep()
    assert layered.committed == {"b": 7, "c": 7}


def test_a_stream_of_another_journal_continues_and_what_it_left_open_ends(tmp_path: Path) -> None:
    connection = open_writer(tmp_path / "j")
    store = Store(connection)
    opened = OpenEvent("other-1", "zone_entered", "yard", "car", 3, 1, 2, 50, 60, "gate", generation=9)
    for _ in range(2):  # told twice: it happens once
        store.begin()
        store.adopt("gate", 41, {"yard": 7}, [opened], "node_lost")
        records = store.commit()
        if records:
            (end,) = records
            assert (end.id, end.kind, end.event_seq, end.generation) == ("other-1", "end", 42, 9)
            assert (end.began_ns, end.at_ns, end.details) == (50, 60, {"reason": "node_lost"})
            assert event_id(end) == f"{store.log_id}/gate/9/42"
    assert store.by_stream["gate"]["yard"].value == 7
    store.begin()
    store.add(Event(id="n", stream="gate", kind="begin", at_ns=70, counts={"yard": 1}, generation=10))
    (begin,) = store.commit()
    assert begin.counters == {"yard": 8}
    store.begin()
    store.end_open("process_died", lambda *_: True)
    store.commit()
    # As a sink reads it later: the generation is in the file.
    kept = find(connection, Filter(streams=["gate"]))
    assert {(r.kind, r.generation) for r in kept} == {("end", 9), ("begin", 10), ("end", 10)}
