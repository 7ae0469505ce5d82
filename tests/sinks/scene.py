"""A bound zmq sink with peers of every kind."""

from __future__ import annotations

import time
from typing import Any

import zmq

from streamd.sinks.guard import GuardedSink
from streamd.sinks.zmq import ZmqSettings, ZmqSink
from streamd.testing.sending import Sender
from tests.sinks.zmtp import RawPeer


class Scene:
    """A sink with peers, all closed at the end."""

    def __init__(self) -> None:
        self._open: list[Any] = []
        self.context = zmq.Context()

    def sink(self, **settings: Any) -> Sender:
        sink = Sender(ZmqSink(ZmqSettings(**{"bind": "tcp://127.0.0.1:*", "linger_s": 0.1} | settings)))
        sink.open()
        self._open.append(sink)
        return sink

    def peer(self, sink: Sender, **options: Any) -> RawPeer:
        peer = RawPeer(sink.endpoint, **options)
        self._open.append(peer)
        return peer

    def subscriber(self, sink: Sender, *topics: bytes) -> Any:
        subscriber = self.context.socket(zmq.SUB)
        subscriber.setsockopt(zmq.RCVHWM, 0)
        for topic in topics:
            subscriber.subscribe(topic)
        before = connected(sink)
        subscriber.connect(sink.endpoint)
        until(lambda: connected(sink) == before + 1, sink)
        return subscriber

    def close(self) -> None:
        for part in reversed(self._open):
            part.close()
        self.context.destroy(linger=0)


def connected(sink: Sender) -> int:
    return int(sink.readers.connected)


def refused(sink: Sender) -> dict[str, int]:
    return dict(sink.readers.refused)


def until(condition: Any, sink: Sender | GuardedSink, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        sink.poll()
        time.sleep(0.005)
