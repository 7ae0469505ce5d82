"""What every sink promises, tested for each kind of `tests/contracts.py`.

`contract(folder)` among the kind's cases returns its settings and a `Reader`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from streamd.errors import SinkError
from streamd.events.record import Record
from streamd.sinks import SINKS, open_sink
from streamd.sinks.envelope import DETECTIONS, STATUS, MessageKind, Outgoing
from streamd.sinks.events import EventSink, JournalEvent
from streamd.sinks.jsonl import JsonlSettings
from streamd.sinks.zmq import ZmqSettings
from streamd.types import StreamCounts
from streamd.workers.relay import HEAD, Route, pack
from tests import contracts
from tests.events.journals import T0, until
from tests.frames import detections, status
from tests.sinks.sender import Sender


class Reader(Protocol):
    """Reads what a sink sent."""

    def begin(self, sink: Any) -> None:
        """The sink is open."""

    def all(self, count: int) -> list[Any]:
        """The messages that arrived, decoded; waits for `count` of them where it must."""

    def events(self, count: int) -> list[dict[str, Any]]:
        """Events that arrived; only of sinks that deliver from the journal."""

    def close(self) -> None: ...


@pytest.fixture(params=contracts.kinds(SINKS))
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, Reader]]:
    cases = contracts.cases("sinks", request.param)
    assert hasattr(cases, "contract"), f"{cases.__file__} needs contract(folder)"
    settings, reader = cases.contract(tmp_path)
    sink = Sender(open_sink(settings), boot_id="boot", encoding=settings.payload_encoding, wants=settings.wants)
    sink.open()
    reader.begin(sink)
    yield sink, reader
    sink.close()
    sink.close()
    reader.close()


def takes(sink: Any, kind: MessageKind) -> None:
    """Skips the test where the sink does not take such messages."""
    if kind not in sink.wants:
        pytest.skip(f"takes no {kind.name}")


def test_detections_arrive_whole_and_in_order(opened: tuple[Any, Reader]) -> None:
    sink, reader = opened
    takes(sink, DETECTIONS)
    for i in range(50):
        assert sink.publish(detections(seq=i, boxes=i % 3)) is None
    messages = reader.all(50)
    assert [m.seq for m in messages] == list(range(50))
    assert [len(m.detections) for m in messages] == [i % 3 for i in range(50)]
    first = messages[1]
    assert (first.boot_id, first.stream, first.width, first.model.name) == ("boot", "s", 640, "m")
    assert first.detections[0].box == (1.5, 2.0, 30.0, 40.0)
    assert first.detections[0].label == "person"
    assert first.latency_ms.total >= 5


def test_gaps_are_told(opened: tuple[Any, Reader]) -> None:
    sink, reader = opened
    takes(sink, DETECTIONS)
    for i in (2, 3, 7):
        sink.publish(detections(seq=i))
    assert [m.dropped for m in reader.all(3)] == [2, 0, 3]


def test_statuses_arrive(opened: tuple[Any, Reader]) -> None:
    sink, reader = opened
    takes(sink, STATUS)
    sink.status(status("s", "BACKOFF", "refused"), StreamCounts(5, 3, {"ring_full": 2}, 1))
    sink.poll()
    message = reader.all(1)[0]
    assert (message.state, message.reason, message.received, message.dropped) == (
        "BACKOFF", "refused", 5, {"ring_full": 2},
    )  # fmt: skip


def test_a_worker_s_messages_are_passed_on_as_they_are(opened: tuple[Any, Reader]) -> None:
    sink, reader = opened
    takes(sink, DETECTIONS)
    takes(sink, STATUS)
    made = Outgoing(detections(seq=4, boxes=2), "worker")
    first = sink._builder.detections(made)
    second = sink._builder.status(status("s", "BACKOFF", "refused"), StreamCounts(5, 3, {}, 1))
    for message in (first, second):
        head, payload = pack(7, message)
        life, again = Route(head[HEAD.size :]).take(head, payload, message.encoding)
        again.dropped = message.dropped
        assert (life, again.topic, again.payload) == (7, message.topic, message.payload)
        assert sink.send(again) is None
    passed, told = reader.all(2)
    assert (passed.boot_id, passed.seq, passed.dropped, len(passed.detections)) == ("worker", 4, 4, 2)
    assert (told.state, told.reason, told.received) == ("BACKOFF", "refused", 5)


def journal_event(number: int) -> JournalEvent:
    return JournalEvent(
        Record(
            position=number, log_id="log", event_seq=number, began_ns=0, committed_ns=0, events_lost=0, counters={},
            id=f"e{number}", stream="s", kind="instant", type="line_crossed", rule="gate", label="person", track=1,
            epoch=0, seq=0, at_ns=T0, details={},
        ),
        "yard",
    )  # fmt: skip


def test_events_arrive_in_order_and_are_settled(opened: tuple[Any, Reader]) -> None:
    sink, reader = opened
    if not isinstance(sink.sink, EventSink):
        pytest.skip("takes events from memory")
    waiting = [journal_event(n) for n in range(1, 21)]

    def settled() -> bool:
        sink.poll()
        if sink.takes_events():
            outcomes = sink.deliver(waiting)
            assert set(outcomes) <= {"delivered"}
            del waiting[: len(outcomes)]
        return not waiting

    until(settled)
    found = reader.events(20)
    assert [e["id"] for e in found] == [f"log/s/{n}" for n in range(1, 21)]
    assert found[0]["source"] == "/streamd/yard"
    assert sink.unreachable is None


def test_a_sink_can_be_opened_again(opened: tuple[Any, Reader]) -> None:
    sink, _ = opened
    sink.close()
    sink.open()

    def published() -> bool:
        # A sink that connects does so in `poll`, and may need a moment.
        sink.poll()
        if DETECTIONS not in sink.wants:
            return bool(sink.takes_events() and sink.deliver([journal_event(1)]) == ["delivered"])
        try:
            return sink.publish(detections(seq=0)) is None
        except SinkError:
            return False

    until(published)
    sink.poll()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ZmqSettings(bind="tcp://256.0.0.1:5555"), "zmq sink: cannot bind tcp://256"),
        (ZmqSettings(bind="nonsense"), "expected tcp://HOST:PORT"),
        (ZmqSettings(connect="http://x"), "expected tcp://HOST:PORT"),
        (JsonlSettings(path="/nonexistent/folder/x.jsonl"), "cannot open /nonexistent/folder/x.jsonl"),
        (JsonlSettings(path="/"), "cannot open /"),
    ],
)
def test_what_cannot_be_opened_is_named(settings: Any, message: str) -> None:
    sink = open_sink(settings)
    with pytest.raises(SinkError, match=message):
        sink.open()
    sink.close()
