"""Subscribers that are slow, late, dead or back again."""

from __future__ import annotations

import itertools
import socket as socket_module
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from streamd.errors import SinkError
from streamd.sinks import zmq as module
from streamd.sinks.zmq import FEW_RECEIVERS, ZmqSettings, ZmqSink, send_now
from streamd.testing.sending import Sender
from streamd.types import StreamCounts
from tests.frames import detections, status
from tests.messages import checked


class SubscriberReader:
    """Subscribes to everything of message version 1."""

    def begin(self, sink: Any) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.SUB)
        self.socket.connect(sink.endpoint)
        self.socket.subscribe(b"streamd/1/")
        deadline = time.monotonic() + 5
        while not sink._socket.poll(10) and time.monotonic() < deadline:
            pass

    def all(self, count: int) -> list[Any]:
        out: list[Any] = []
        while len(out) < count and self.socket.poll(3000):
            out.append(checked(self.socket.recv_multipart()))
        return out

    def close(self) -> None:
        self.socket.close(0)
        self.context.term()


def contract(folder: Path) -> tuple[ZmqSettings, SubscriberReader]:
    """See tests/sinks/test_contract.py."""
    return ZmqSettings(bind=f"ipc://{folder}/z"), SubscriberReader()


OPENED: list[Sender] = []


@pytest.fixture
def context() -> Iterator[Any]:
    made = zmq.Context()
    yield made
    made.destroy(linger=0)
    while OPENED:
        OPENED.pop().close()


def sink_at(endpoint: str, **settings: Any) -> Sender:
    """An open sink; a test that fails must not leave one behind, whose linger would hold up the interpreter."""
    sink = Sender(ZmqSink(ZmqSettings(bind=endpoint, **settings)), encoding=settings.get("encoding", "json"))
    sink.open()
    OPENED.append(sink)
    return sink


def subscriber(context: Any, sink: Sender, *topics: bytes, hwm: int = 1000) -> Any:
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.RCVHWM, hwm)
    if hwm < 100:
        socket.setsockopt(zmq.RCVBUF, 4096)
    for topic in topics or (b"",):
        socket.subscribe(topic)
    sink.poll()  # takes earlier subscriptions in, so that the next one to be seen is ours
    socket.connect(sink.endpoint)
    deadline = time.monotonic() + 5
    while not sink._socket.poll(10) and time.monotonic() < deadline:
        pass
    return socket


def received(socket: Any, timeout_ms: int = 500) -> list[Any]:
    out = []
    while socket.poll(timeout_ms):
        out.append(checked(socket.recv_multipart()))
    return out


def test_a_slow_subscriber_loses_its_own_messages_and_no_other_does(context: Any) -> None:
    sink = sink_at("tcp://127.0.0.1:*", hwm=100)
    slow = subscriber(context, sink, hwm=5)
    fast = subscriber(context, sink, hwm=100_000)
    lost = 0
    seen: list[int] = []

    def take() -> None:
        message: Any = checked(fast.recv_multipart())
        seen.append(message.seq)

    started = time.monotonic()
    for i in range(3000):
        lost += sink.publish(detections(seq=i, boxes=30)) is not None
        while fast.poll(0):
            take()
        if i % 10 == 0:
            while len(seen) < i and fast.poll(1000):
                take()
    assert time.monotonic() - started < 60
    seen += [m.seq for m in received(fast)]
    assert seen == list(range(3000))
    late = received(slow)
    assert 0 < len(late) < 3000
    assert lost >= 1
    # It has caught up and is served again; the gap in seq that the daemon does not explain is its own loss.
    sink.publish(detections(seq=3000))
    late += received(slow)
    gaps = sum(b.seq - a.seq - 1 - b.dropped for a, b in itertools.pairwise(late))
    assert late[-1].seq == 3000
    assert gaps == 3001 - len(late)
    sink.close()


def test_a_late_subscriber_gets_the_last_status_of_each_stream_at_once(context: Any) -> None:
    sink = sink_at("tcp://127.0.0.1:*")
    for state, reason in (("CONNECTING", ""), ("BACKOFF", "refused")):
        sink.status(status("a", state, reason), StreamCounts())
    sink.status(status("b"), StreamCounts())
    socket = subscriber(context, sink)
    sink.poll()
    assert [(m.stream, m.state) for m in received(socket)] == [("a", "BACKOFF"), ("b", "LIVE")]
    # One that asks for one stream gets that one; the first hears of it too, which does no harm.
    # A status is repeated once a second at most, for all who came meanwhile.
    other = subscriber(context, sink, b"streamd/1/b/")
    deadline = time.monotonic() + 10
    while not other.poll(20) and time.monotonic() < deadline:
        sink.poll()
    assert [m.stream for m in received(other)] == ["b"]
    sink.close()


def test_topics_select(context: Any) -> None:
    sink = sink_at("tcp://127.0.0.1:*")
    socket = subscriber(context, sink, b"streamd/1/b/detections")
    for stream in "ab":
        sink.publish(detections(stream))
        sink.status(status(stream), StreamCounts())
    assert [m.stream for m in received(socket)] == ["b"]
    sink.close()


@pytest.mark.parametrize("way", ["held", "many", "none"])
def test_both_ways_send_the_same_and_tell_of_a_full_queue(
    context: Any, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the interpreter lock held, and by pyzmq: for many receivers, or if it is built in another way."""
    if way == "none":
        monkeypatch.setattr(module, "_held_send", lambda: None)
    else:
        assert module._held_send() is not None
    receivers = FEW_RECEIVERS + (way == "many")
    sender, receiver = context.socket(zmq.PUSH), context.socket(zmq.PULL)
    sender.setsockopt(zmq.SNDHWM, 3)
    receiver.setsockopt(zmq.RCVHWM, 3)
    receiver.bind("inproc://here")
    sender.connect("inproc://here")
    sent = [(b"topic %d" % i, bytes(range(256)) * i) for i in range(5)]
    for parts in sent:
        send_now(sender, *parts, receivers)
        assert receiver.recv_multipart() == [*parts]
    with pytest.raises(zmq.Again):
        for _ in range(100):
            send_now(sender, b"topic", b"payload", receivers)
    sender.close(0)
    with pytest.raises(zmq.ZMQError):
        send_now(sender, b"topic", b"payload", receivers)


def test_it_can_connect_to_a_binding_subscriber(context: Any, tmp_path: Path) -> None:
    socket = context.socket(zmq.SUB)
    socket.subscribe(b"")
    socket.bind(f"ipc://{tmp_path}/s")
    sink = Sender(ZmqSink(ZmqSettings(connect=f"ipc://{tmp_path}/s", encoding="msgpack")), encoding="msgpack")
    sink.open()
    deadline = time.monotonic() + 5
    # A binding socket takes its peers in, and tells them its subscriptions, only when it is called.
    while not sink._socket.poll(10) and time.monotonic() < deadline:
        socket.poll(10)
    sink.publish(detections(seq=0))
    assert received(socket)[0].seq == 0
    sink.close()


def test_an_address_in_use() -> None:
    first = sink_at("tcp://127.0.0.1:*")
    second = ZmqSink(ZmqSettings(bind=first.endpoint))
    with pytest.raises(SinkError, match="another process uses that address"):
        second.open()
    first.close()


def test_an_ipc_address_in_use_is_not_taken_over(context: Any, tmp_path: Path) -> None:
    first = sink_at(f"ipc://{tmp_path}/z")
    socket = subscriber(context, first)
    with pytest.raises(SinkError, match="another process uses that address"):
        ZmqSink(ZmqSettings(bind=first.endpoint)).open()
    first.publish(detections(seq=0))
    assert [m.seq for m in received(socket)] == [0]
    late = subscriber(context, first)
    first.publish(detections(seq=1))
    assert [m.seq for m in received(late)] == [1]
    first.close()


def test_the_socket_file_of_a_killed_process_is_used_again(context: Any, tmp_path: Path) -> None:
    with socket_module.socket(socket_module.AF_UNIX) as left:
        left.bind(f"{tmp_path}/z")
        left.listen()
    assert (tmp_path / "z").is_socket()
    sink = sink_at(f"ipc://{tmp_path}/z")
    reader = subscriber(context, sink)
    sink.publish(detections(seq=0))
    assert [m.seq for m in received(reader)] == [0]


def test_a_file_is_not_replaced_by_a_socket(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(SinkError, match="not a socket, and would be replaced"):
        ZmqSink(ZmqSettings(bind=f"ipc://{tmp_path}/notes")).open()
    assert (tmp_path / "notes").read_text() == "mine"


def test_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="at most 107 bytes"):
        ZmqSink(ZmqSettings(bind=f"ipc://{tmp_path}/{'x' * 120}")).open()


def test_closing_delivers_what_is_queued(context: Any) -> None:
    sink = sink_at("tcp://127.0.0.1:*", linger_s=5)
    socket = subscriber(context, sink, hwm=100_000)
    for i in range(500):
        sink.publish(detections(seq=i))
    sink.close()
    assert len(received(socket)) == 500


def test_a_subscriber_that_is_gone_does_not_hold_up_closing(context: Any) -> None:
    sink = sink_at("tcp://127.0.0.1:*", linger_s=0.3, hwm=100_000)
    socket = subscriber(context, sink, hwm=1)
    for i in range(3000):
        sink.publish(detections(seq=i, boxes=50))
    started = time.monotonic()
    sink.close()
    assert time.monotonic() - started < 2
    socket.close(0)
