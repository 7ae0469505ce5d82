"""What every sink promises, run over each kind of the union."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import zmq

from streamd.errors import SinkError
from streamd.sinks import JsonlSettings, SinkConfig, ZmqSettings, open_sink
from streamd.sinks.message import detections_message, encoder, status_message, topic
from streamd.types import StreamCounts
from tests.frames import detections, status
from tests.messages import checked


class Reader:
    """Collects what a sink sent, as (kind, message)."""

    def __init__(self, sink: Any, settings: Any) -> None:
        self.sink, self.settings = sink, settings
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.SUB)
        if settings.kind == "zmq":
            self.socket.connect(sink.endpoint)
            self.socket.subscribe(b"streamd/1/")
            deadline = time.monotonic() + 5
            while not sink._socket.poll(10) and time.monotonic() < deadline:
                pass

    def all(self, count: int) -> list[Any]:
        if self.settings.kind == "zmq":
            out: list[Any] = []
            while len(out) < count and self.socket.poll(3000):
                out.append(checked(self.socket.recv_multipart()))
            return out
        lines = Path(self.settings.path).read_bytes().splitlines()
        names = [b"streamd/1/s/status" if b'"state"' in line else b"streamd/1/s/detections" for line in lines]
        return [checked([name, line]) for name, line in zip(names, lines, strict=True)]

    def close(self) -> None:
        self.socket.close(0)
        self.context.term()


def kinds() -> list[str]:
    return [get_args(m)[0].model_fields["kind"].default for m in get_args(get_args(SinkConfig)[0])]


@pytest.fixture(params=kinds())
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, Reader]]:
    made: dict[str, Any] = {
        "zmq": ZmqSettings(bind=f"ipc://{tmp_path}/z"),
        "jsonl": JsonlSettings(path=str(tmp_path / "out.jsonl"), status=True),
    }
    settings = made[request.param]
    sink = open_sink(settings, boot_id="boot")
    sink.open()
    reader = Reader(sink, settings)
    yield sink, reader
    sink.close()
    sink.close()
    reader.close()


def test_detections_arrive_whole_and_in_order(opened: tuple[Any, Reader]) -> None:
    sink, reader = opened
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
    for i in (2, 3, 7):
        sink.publish(detections(seq=i))
    assert [m.dropped for m in reader.all(3)] == [2, 0, 3]


def test_statuses_arrive(opened: tuple[Any, Reader]) -> None:
    sink, reader = opened
    sink.status(status("s", "BACKOFF", "refused"), StreamCounts(5, 3, {"ring_full": 2}, 1))
    sink.poll()
    message = reader.all(1)[0]
    assert (message.state, message.reason, message.received, message.dropped) == (
        "BACKOFF", "refused", 5, {"ring_full": 2},
    )  # fmt: skip


def test_a_worker_s_messages_are_passed_on_as_they_are(opened: tuple[Any, Reader]) -> None:
    sink, reader = opened
    counts = StreamCounts(5, 3, {}, 1)
    encode = encoder("json")
    first = detections_message(detections(seq=4, boxes=2), "worker", 4)
    second = status_message(status("s", "BACKOFF", "refused"), counts, "worker")
    assert sink.forward(topic("s", "detections"), encode(first)) is None
    assert sink.forward(topic("s", "status"), encode(second)) is None
    assert reader.all(2) == [first, second]


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
    sink = open_sink(settings, boot_id="b")
    with pytest.raises(SinkError, match=message):
        sink.open()
    sink.close()
