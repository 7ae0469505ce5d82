"""A sink's thread: nothing a sink does reaches the stage that feeds it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from streamd.errors import SinkError
from streamd.events.upkeep import Limits, Outcome
from streamd.flow.status import StatusBoard
from streamd.sinks import Sink, guard
from streamd.sinks.envelope import Message, Outgoing
from streamd.sinks.events import EventSink, JournalEvent
from streamd.sinks.message import DetectionsMessage, StatusMessage, decode
from streamd.sinks.thread import SinkThread
from streamd.telemetry.metrics import Metrics
from tests.events.journals import event, journal
from tests.frames import detections, status


class Recorder(Sink):
    """A sink that keeps what it gets, and can be made slow or broken."""

    def __init__(self) -> None:
        self.messages: list[DetectionsMessage] = []
        self.statuses: list[StatusMessage] = []
        self.go = threading.Event()
        self.go.set()
        self.broken = False
        self.error: BaseException = SinkError("broken")
        self.opened = 0
        self.closed = False

    def open(self) -> None:
        self.opened += 1

    def send(self, message: Message) -> str | None:
        decoded = decode([message.topic, message.payload])
        if isinstance(decoded, StatusMessage):
            self.statuses.append(decoded)
            return None
        self.go.wait()
        if self.broken:
            raise self.error
        assert isinstance(decoded, DetectionsMessage)
        self.messages.append(decoded)
        return "subscriber_slow" if decoded.seq == 13 else None

    def close(self) -> None:
        self.closed = True


def rig(capacity: int = 8, heartbeat_s: float = 60) -> tuple[Recorder, SinkThread, StatusBoard, CollectorRegistry]:
    recorder, board, registry = Recorder(), StatusBoard(), CollectorRegistry()
    thread = SinkThread("out", recorder, capacity, board, Metrics(registry), heartbeat_s, boot_id="b")
    thread.open()
    thread.start()
    return recorder, thread, board, registry


def dropped(registry: CollectorRegistry, reason: str) -> float:
    return registry.get_sample_value("streamd_sink_dropped_total", {"sink": "out", "reason": reason}) or 0


def test_everything_is_delivered_before_it_closes() -> None:
    recorder, thread, _, registry = rig(capacity=64)
    for i in range(50):
        thread.put(Outgoing(detections(seq=i), "b"))
    assert thread.close(5)
    assert [d.seq for d in recorder.messages] == list(range(50))
    assert recorder.closed
    assert registry.get_sample_value("streamd_sink_messages_total", {"sink": "out"}) == 50
    assert dropped(registry, "subscriber_slow") == 1


def test_a_stuck_sink_costs_its_own_messages_and_no_time() -> None:
    recorder, thread, _, registry = rig()
    recorder.go.clear()
    started = time.monotonic()
    for i in range(100):
        thread.put(Outgoing(detections(seq=i), "b"))
    assert time.monotonic() - started < 1
    lost = dropped(registry, "ring_full")
    assert lost in (91, 92)  # eight wait, and one may be in the sink's hands
    recorder.go.set()
    assert thread.close(5)
    assert len(recorder.messages) == 100 - lost
    assert recorder.messages[-1].seq == 99


def test_a_broken_sink_is_counted_and_tried_again() -> None:
    recorder, thread, _, registry = rig(capacity=64)
    recorder.broken = True
    for i in range(5):
        thread.put(Outgoing(detections(seq=i), "b"))
    deadline = time.monotonic() + 5
    while dropped(registry, "error") < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    recorder.broken = False
    thread.put(Outgoing(detections(seq=5), "b"))
    assert thread.close(5)
    assert [d.seq for d in recorder.messages] == [5]
    assert registry.get_sample_value("streamd_sink_errors_total", {"sink": "out"}) == 5


def test_statuses_on_change_and_as_a_heartbeat() -> None:
    recorder, thread, board, _ = rig(heartbeat_s=0.3)
    board.post(status("a"))
    board.post(status("b"))
    time.sleep(0.2)
    assert [s.stream for s in recorder.statuses] == ["a", "b"]
    time.sleep(0.8)
    assert len(recorder.statuses) >= 6
    board.post(status("a", "BACKOFF", "refused"))
    assert thread.close(5)
    # A heartbeat may be due in the same moment: it tells of the others after the change.
    last = [s for s in recorder.statuses if s.stream == "a"][-1]
    assert (last.state, last.reason) == ("BACKOFF", "refused")


def test_a_sink_that_fails_in_an_undeclared_way_is_closed_and_opened_again() -> None:
    recorder, thread, board, registry = rig(capacity=64)
    recorder.broken, recorder.error = True, RuntimeError("a bug")
    thread.put(Outgoing(detections(seq=0), "b"))
    deadline = time.monotonic() + 5
    while thread.problem is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert thread.problem == "RuntimeError: a bug"
    assert registry.get_sample_value("streamd_sink_up", {"sink": "out"}) == 0
    recorder.broken = False
    while thread.problem is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert thread.problem is None
    assert recorder.opened == 2
    assert registry.get_sample_value("streamd_sink_up", {"sink": "out"}) == 1
    thread.put(Outgoing(detections(seq=1), "b"))
    board.post(status("a"))
    assert thread.close(5)
    assert [(m.seq, m.dropped) for m in recorder.messages] == [(1, 1)], "what was lost is told"
    assert [s.stream for s in recorder.statuses] == ["a"]
    assert dropped(registry, "error") == 1


def test_a_sink_that_opens_and_fails_again_is_tried_less_and_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "REOPEN_INITIAL_S", 0.01)
    recorder, thread, _, _ = rig(capacity=64)
    recorder.broken, recorder.error = True, RuntimeError("a bug")
    for attempts in (1, 2, 3):
        until(lambda: thread.problem is None)
        thread.put(Outgoing(detections(seq=attempts), "b"))
        until(lambda: thread.problem is not None)
        assert thread._sink._backoff.attempts == attempts
    monkeypatch.setattr(guard, "STEADY_S", 0.0)
    until(lambda: thread.problem is None)
    thread.put(Outgoing(detections(seq=9), "b"))
    until(lambda: thread.problem is not None)
    assert thread._sink._backoff.attempts == 1, "it had recovered"
    assert thread.close(5)


def test_the_start_says_which_sink_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "SLOW_S", 0.05)
    recorder, sink = Recorder(), guard.GuardedSink("slow", Recorder(), Metrics(CollectorRegistry()))
    with capture_logs() as logs:
        sink.open()
        assert logs == []
        monkeypatch.setattr(recorder, "open", lambda: time.sleep(0.3))
        guard.GuardedSink("late", recorder, Metrics(CollectorRegistry())).open()
    assert [(each["event"], each["sink"]) for each in logs] == [
        ("sink is still being opened, and the start waits for it", "late")
    ]


def test_a_sink_that_takes_no_message_is_not_up_until_it_does() -> None:
    """A full disk: the sink is open, and loses everything."""
    recorder, thread, _, registry = rig(capacity=64)
    recorder.broken, recorder.error = True, SinkError("cannot write to o.jsonl: no space")

    def up() -> float | None:
        return registry.get_sample_value("streamd_sink_up", {"sink": "out"})

    assert up() == 1
    thread.put(Outgoing(detections(seq=0), "b"))
    until(lambda: up() == 0)
    assert (thread.problem, thread.unreachable) == (None, "cannot write to o.jsonl: no space")
    recorder.broken = False
    thread.put(Outgoing(detections(seq=1), "b"))
    until(lambda: up() == 1)
    assert thread.unreachable is None
    assert thread.close(5)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("error", [SystemExit(1), asyncio.CancelledError(), MemoryError(), KeyboardInterrupt()])
def test_no_error_of_a_sink_ends_its_thread(error: BaseException) -> None:
    """Also those that `except Exception` lets through: asyncio cancels, a plug-in may exit."""
    recorder, thread, _, registry = rig(capacity=64)
    recorder.broken, recorder.error = True, error
    thread.put(Outgoing(detections(seq=0), "b"))
    until(lambda: thread.problem is not None)
    recorder.broken = False
    until(lambda: thread.problem is None)
    thread.put(Outgoing(detections(seq=1), "b"))
    assert thread.close(5)
    assert [(m.seq, m.dropped) for m in recorder.messages] == [(1, 1)]
    assert dropped(registry, "error") == 1


def test_a_message_that_cannot_be_made_costs_no_other() -> None:
    recorder, thread, _, registry = rig(capacity=64)
    thread.put(Outgoing(detections(seq=0), "b"))
    thread.put(Outgoing(replace(detections(seq=1), boxes=None), "b"))  # type: ignore[arg-type]
    thread.put(Outgoing(detections(seq=2), "b"))
    assert thread.close(5)
    assert [m.seq for m in recorder.messages] == [0, 2]
    assert dropped(registry, "error") == 1
    assert registry.get_sample_value("streamd_sink_errors_total", {"sink": "out"}) == 1


def test_a_status_that_cannot_be_encoded_costs_none_of_other_streams() -> None:
    recorder, thread, board, registry = rig(heartbeat_s=0.2)
    odd: Any = object()
    board.post(replace(status("a"), width=odd))
    board.post(status("b"))
    deadline = time.monotonic() + 5
    while len(recorder.statuses) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert thread.close(5)
    assert {each.stream for each in recorder.statuses} == {"b"}
    assert len(recorder.statuses) >= 2
    assert registry.get_sample_value("streamd_sink_errors_total", {"sink": "out"})


class Forgetful(Recorder, EventSink):
    """A sink for events that cannot say whether it takes some."""

    @property
    def unreachable(self) -> str | None:
        return None

    def takes_events(self) -> bool:
        raise KeyError("broker")

    def deliver(self, events: Sequence[JournalEvent]) -> list[Outcome]:
        return []


def test_a_sink_that_fails_when_asked_for_events_goes_on_with_the_rest(tmp_path: Path) -> None:
    with journal(tmp_path) as made:
        recorder, registry = Forgetful(), CollectorRegistry()
        thread = SinkThread(
            "out", recorder, 64, StatusBoard(), Metrics(registry), 60, boot_id="b", owed=Limits(1e6, 1000)
        )
        thread.open()
        thread.attach(made, "yard")
        made.submit(event("e"))
        made.flush()
        thread.start()
        deadline = time.monotonic() + 5
        while not thread.problem and time.monotonic() < deadline:
            time.sleep(0.01)
        assert thread.problem == "KeyError: 'broker'"
        while not recorder.messages and time.monotonic() < deadline:
            thread.put(Outgoing(detections(seq=0), "b"))
            time.sleep(0.05)
        assert recorder.messages
        assert thread.close(5)
        assert recorder.closed
