"""What every sink promises."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamd.errors import SinkError
from streamd.events.record import Record
from streamd.sinks import SINKS, SinkSettings, open_sink
from streamd.sinks.envelope import DETECTIONS, STATUS, MessageKind, Outgoing
from streamd.sinks.events import EventSink, JournalEvent
from streamd.sinks.message import TOPIC_PREFIX, DetectionsMessage, StatusMessage, decode
from streamd.testing.contract import Contract
from streamd.testing.made import detections, status
from streamd.testing.sending import Sender
from streamd.types import StreamCounts
from streamd.workers.relay import HEAD, Route, pack

T0 = 1_800_000_000_000_000_000


class Reader(ABC):
    """Reads what a sink sent."""

    def begin(self, sink: Any) -> None:  # noqa: B027 - few need it
        """The sink is open."""

    @abstractmethod
    def all(self, count: int) -> list[Any]:
        """The messages that arrived since the beginning, each as `decoded` gives it.

        Waits for `count` of them, for a few seconds at most, if they need time to arrive.
        """

    def events(self, count: int) -> list[dict[str, Any]]:
        """The events that arrived, as in docs/events.md; only of sinks that deliver from the journal."""
        raise NotImplementedError("define events(count): the sink delivers events from the journal")

    def close(self) -> None:  # noqa: B027 - few need it
        """The test is over."""


def decoded(payload: bytes) -> DetectionsMessage | StatusMessage:
    """The message that a sink was given with this payload, JSON or msgpack.

    Raises:
        SinkError: it is none.
    """
    kind = STATUS if b"state" in payload and b"detections" not in payload else DETECTIONS
    message = decode([f"{TOPIC_PREFIX}s{kind.suffix}".encode(), payload])
    assert isinstance(message, (DetectionsMessage, StatusMessage))
    return message


class SinkContract(Contract):
    """Tests that hold for every sink. The class that derives from it has `kind` and `contract`."""

    registry = SINKS

    def contract(self, folder: Path) -> tuple[SinkSettings, Reader]:
        """The settings of a sink that can be opened, and what reads its messages.

        Args:
            folder: an empty one, for this test alone.
        """
        raise NotImplementedError("define contract(folder), which returns settings and a Reader")

    @pytest.fixture
    def opened(self, tmp_path: Path) -> Iterator[tuple[Any, Reader]]:
        """The open sink, with what its thread does for it, and the reader."""
        settings, reader = self.contract(tmp_path)
        self._checked(settings)
        sink = Sender(open_sink(settings), boot_id="boot", encoding=settings.payload_encoding, wants=settings.wants)
        sink.open()
        reader.begin(sink)
        yield sink, reader
        sink.close()
        sink.close()
        reader.close()

    def test_detections_arrive_whole_and_in_order(self, opened: tuple[Any, Reader]) -> None:
        sink, reader = opened
        _takes(sink, DETECTIONS)
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

    def test_gaps_are_told(self, opened: tuple[Any, Reader]) -> None:
        sink, reader = opened
        _takes(sink, DETECTIONS)
        for i in (2, 3, 7):
            sink.publish(detections(seq=i))
        assert [m.dropped for m in reader.all(3)] == [2, 0, 3]

    def test_statuses_arrive(self, opened: tuple[Any, Reader]) -> None:
        sink, reader = opened
        _takes(sink, STATUS)
        sink.status(status("s", "BACKOFF", "refused"), StreamCounts(5, 3, {"ring_full": 2}, 1))
        sink.poll()
        message = reader.all(1)[0]
        assert (message.state, message.reason, message.received, message.dropped) == (
            "BACKOFF", "refused", 5, {"ring_full": 2},
        )  # fmt: skip

    def test_a_worker_s_messages_are_passed_on_as_they_are(self, opened: tuple[Any, Reader]) -> None:
        sink, reader = opened
        _takes(sink, DETECTIONS)
        _takes(sink, STATUS)
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

    def test_events_arrive_in_order_and_are_settled(self, opened: tuple[Any, Reader]) -> None:
        sink, reader = opened
        if not isinstance(sink.sink, EventSink):
            pytest.skip("takes events from memory")
        waiting = [_journal_event(n) for n in range(1, 21)]

        def settled() -> bool:
            sink.poll()
            if sink.takes_events():
                outcomes = sink.deliver(waiting)
                assert set(outcomes) <= {"delivered"}
                del waiting[: len(outcomes)]
            return not waiting

        _until(settled)
        found = reader.events(20)
        assert [e["id"] for e in found] == [f"log/s/{n}" for n in range(1, 21)]
        assert found[0]["source"] == "/streamd/yard"
        assert sink.unreachable is None

    def test_a_sink_can_be_opened_again(self, opened: tuple[Any, Reader]) -> None:
        sink, _ = opened
        sink.close()
        sink.open()

        def published() -> bool:
            # A sink that connects does so in `poll`, and may need a moment.
            sink.poll()
            if DETECTIONS not in sink.wants:
                return bool(sink.takes_events() and sink.deliver([_journal_event(1)]) == ["delivered"])
            try:
                return sink.publish(detections(seq=0)) is None
            except SinkError:
                return False

        _until(published)
        sink.poll()


def _takes(sink: Any, kind: MessageKind) -> None:
    """Skips the test if the sink does not take such messages."""
    if kind not in sink.wants:
        pytest.skip(f"takes no {kind.name}")


def _journal_event(number: int) -> JournalEvent:
    return JournalEvent(
        Record(
            position=number, log_id="log", event_seq=number, began_ns=0, committed_ns=0, events_lost=0, counters={},
            id=f"e{number}", stream="s", kind="instant", type="line_crossed", rule="gate", label="person", track=1,
            epoch=0, seq=0, at_ns=T0, details={},
        ),
        "yard",
    )  # fmt: skip


def _until(condition: Callable[[], object], timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)
