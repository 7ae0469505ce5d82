from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamd.errors import SinkError
from streamd.events.place import JOURNAL
from streamd.events.query import MAX_PAGE, Filter, find
from streamd.events.schema import open_writer
from streamd.events.store import Store
from tests.events.journals import T0, event, journal


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> sqlite3.Connection:
    store = Store(open_writer(tmp_path_factory.mktemp("j") / JOURNAL))
    store.begin()
    for number in range(120):
        rule, label = ("gate", "yard", None)[number % 5 % 3], ("person", "car")[number % 2]
        made = event(f"x{number}", at_s=(number * 7) % 50, stream="abc"[number % 3], rule=rule, label=label)
        store.add(msgspec.structs.replace(made, type=("", "t")[number % 4 // 2]))
    store.commit()
    return store.connection


def some(*values: str) -> st.SearchStrategy[list[str] | None]:
    return st.none() | st.lists(st.sampled_from(values), max_size=3)


@given(
    since=st.none() | st.integers(0, 50), until=st.none() | st.integers(0, 50), streams=some("a", "b", "none"),
    rules=some("gate", "yard"), labels=some("person", "car"), types=some("", "t"), newest=st.booleans(),
    limit=st.integers(1, 40),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_pages_together_are_what_was_asked_for(
    filled: sqlite3.Connection, since: int | None, until: int | None, streams: list[str] | None,
    rules: list[str] | None, labels: list[str] | None, types: list[str] | None, newest: bool, limit: int,
) -> None:  # fmt: skip
    everything = find(filled, Filter(limit=MAX_PAGE))
    assert len(everything) == 120
    expected = [
        r
        for r in everything
        if (since is None or r.at_ns >= T0 + since * 10**9)
        and (until is None or r.at_ns < T0 + until * 10**9)
        and (streams is None or r.stream in streams)
        and (rules is None or r.rule in rules)
        and (labels is None or r.label in labels)
        and (types is None or r.type in types)
    ]
    found = []
    position = None
    while True:
        page = find(
            filled,
            Filter(
                since_ns=None if since is None else T0 + since * 10**9,
                until_ns=None if until is None else T0 + until * 10**9,
                streams=streams, rules=rules, labels=labels, types=types, newest_first=newest, limit=limit,
                before=position if newest else None, after=None if newest else position,
            ),
        )  # fmt: skip
        found += page
        if len(page) < limit:
            break
        position = page[-1].position
    assert found == (expected[::-1] if newest else expected)


def test_a_record_reads_back_as_it_was_handed_out(tmp_path: Path) -> None:
    handed: list[object] = []
    with journal(tmp_path) as one:
        one.listen(handed.extend)
        for kind in ("begin", "update", "end"):
            details = {"box": [1.5, 2], "nested": {"é": None}, "ok": True}
            one.submit(event("x", kind, 3, track=7, epoch=2, seq=5, details=details, counts={"in": 2}))
        one.submit(event("y", track="boot/1/9", rule=None, label=None))
        assert one.flush()
        assert one.find(Filter()) == handed


def test_a_journal_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with journal(tmp_path) as one:
        assert one.flush()
        one._writer.readers.close()
        (tmp_path / JOURNAL).rename(tmp_path / "away")
        with pytest.raises(SinkError, match=r"events\.db: cannot be read"):
            one.find(Filter())
        (tmp_path / "away").rename(tmp_path / JOURNAL)
        assert one.find(Filter()) == []


@pytest.mark.parametrize("limit", [0, MAX_PAGE + 1])
def test_a_page_has_a_size(filled: sqlite3.Connection, limit: int) -> None:
    with pytest.raises(ValueError, match="expected 1 to 10000"):
        find(filled, Filter(limit=limit))
