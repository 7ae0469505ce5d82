"""From the journal's cursor to a sink: outcomes are accounted for exactly, and failures lose nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from streamd.errors import SinkError
from streamd.events.journal import Journal
from streamd.events.upkeep import Limits, Outcome
from streamd.sinks.envelope import Message
from streamd.sinks.events import WINDOW, CursorFeed, EventSink, EventSinkSettings, JournalEvent
from streamd.sinks.guard import GuardedSink
from streamd.telemetry.metrics import Metrics
from tests.events.journals import event, journal, until


class Scripted(EventSink):
    """Settles what a test says."""

    def __init__(self) -> None:
        self.offered: list[list[int]] = []
        self.answers: list[list[Outcome] | Exception] = []
        self.taking = True

    @property
    def unreachable(self) -> str | None:
        return None if self.taking else "away"

    def open(self) -> None: ...

    def send(self, message: Message) -> str | None: ...

    def close(self) -> None: ...

    def takes_events(self) -> bool:
        return self.taking

    def deliver(self, events: Sequence[JournalEvent]) -> list[Outcome]:
        self.offered.append([e.record.event_seq for e in events])
        answer: list[Outcome] | Exception = self.answers.pop(0) if self.answers else []
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[tuple[Journal, Scripted, GuardedSink, CursorFeed, Metrics]]:
    with journal(tmp_path) as made:
        metrics = Metrics(CollectorRegistry())
        scripted = Scripted()
        guarded = GuardedSink("out", scripted, metrics)
        guarded.open()
        feed = CursorFeed("out", Limits(1e6, 1000), metrics.deliveries)
        feed.attach(made, "yard")
        yield made, scripted, guarded, feed, metrics


def counts(metrics: Metrics, outcome: str) -> float | None:
    return metrics.registry.get_sample_value("streamd_sink_events_settled_total", {"sink": "out", "outcome": outcome})


def test_outcomes_are_counted_one_by_one(
    opened: tuple[Journal, Scripted, GuardedSink, CursorFeed, Metrics],
) -> None:
    made, scripted, guarded, feed, metrics = opened
    for i in range(6):
        made.submit(event(f"e{i}"))
    made.flush()
    scripted.answers = [["delivered", "refused", "refused", "delivered"], []]
    assert not feed.pump(guarded)
    assert scripted.offered == [[1, 2, 3, 4, 5, 6], [5, 6]]
    until(lambda: counts(metrics, "refused") == 2)
    assert counts(metrics, "delivered") == 2
    assert metrics.registry.get_sample_value("streamd_sink_events_queued", {"sink": "out"}) == 2


def test_a_sink_that_fails_is_offered_the_same_events_again(
    opened: tuple[Journal, Scripted, GuardedSink, CursorFeed, Metrics],
) -> None:
    made, scripted, guarded, feed, metrics = opened
    made.submit(event("e"))
    made.flush()
    scripted.answers = [SinkError("no"), ["delivered"]]
    assert not feed.pump(guarded)
    scripted.taking = False
    assert not feed.pump(guarded)
    assert scripted.offered == [[1]]
    scripted.taking = True
    feed.pump(guarded)
    assert scripted.offered == [[1], [1]]
    assert metrics.registry.get_sample_value("streamd_sink_errors_total", {"sink": "out"}) == 1


def test_a_long_queue_does_not_keep_the_thread(
    opened: tuple[Journal, Scripted, GuardedSink, CursorFeed, Metrics],
) -> None:
    made, scripted, guarded, feed, _ = opened
    for i in range(3 * WINDOW):
        made.submit(event(f"e{i}"))
    made.flush()
    scripted.answers = [["delivered"] * WINDOW] * 3
    assert feed.pump(guarded, turn_s=0.0), "there is more"
    assert len(scripted.offered) == 1
    feed.finish(guarded, float("inf"))
    assert len(scripted.offered) == 3


def test_a_sink_that_is_gone_loses_its_place(tmp_path: Path) -> None:
    with journal(tmp_path) as made:
        for name in ("a", "b"):
            made.cursor(name)
        made.submit(event("e"))
        made.keep_cursors(["b"])
        made.flush()
        again = made.cursor("a")
        made.flush()
        assert again.counts().accepted == 0, "begins behind the newest"
        assert made.cursor("b").counts().queued == 1


def test_the_envelope_is_the_same_for_every_sink(tmp_path: Path) -> None:
    with journal(tmp_path) as made:
        cursor = made.cursor("a")
        made.submit(event("e"))
        made.flush()
        (record,) = cursor.read()
    one, other = JournalEvent(record, "yard"), JournalEvent(record, "yard")
    assert one.payload == other.payload
    assert one.id == f"{record.log_id}/a/1"
    assert EventSinkSettings(kind="x").owed == Limits(604_800.0, 100_000)


@pytest.mark.parametrize("answer", [["delivered"] * 3, ["delivered", "sent"], [True], None])
def test_outcomes_of_another_package_that_cannot_be_settle_nothing(
    opened: tuple[Journal, Scripted, GuardedSink, CursorFeed, Metrics], monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    made, scripted, guarded, feed, metrics = opened
    for i in range(2):
        made.submit(event(f"e{i}"))
    made.flush()
    monkeypatch.setattr(guarded, "package", "acme-sinks 2.0")
    scripted.answers = [answer]
    assert not feed.pump(guarded)
    assert guarded.problem is not None
    assert guarded.problem.startswith("TypeError: ")
    made.flush()
    assert counts(metrics, "delivered") in (None, 0)

    def reopened() -> bool:
        guarded.poll()
        return guarded.problem is None

    until(reopened)
    scripted.answers = [["delivered", "delivered"]]
    feed.pump(guarded)
    assert scripted.offered == [[1, 2], [1, 2]], "they are offered again"
    made.flush()
    assert counts(metrics, "delivered") == 2


def test_what_other_threads_ask_of_a_sink_raises_nothing(
    opened: tuple[Journal, Scripted, GuardedSink, CursorFeed, Metrics], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, guarded, _, metrics = opened

    def fails(*_: object) -> str:
        raise ValueError("boom")

    monkeypatch.setattr(Scripted, "unreachable", property(fails))
    monkeypatch.setattr(Scripted, "interrupt", fails)
    assert guarded.unreachable == "ValueError: boom"
    guarded.interrupt()
    assert metrics.registry.get_sample_value("streamd_sink_errors_total", {"sink": "out"}) == 1
