"""The accounting of peers, however late it is told of them: with real connections, and the events of libzmq played."""

from __future__ import annotations

import socket
from collections import deque
from dataclasses import dataclass
from types import TracebackType

from hypothesis import given, settings
from hypothesis import strategies as st

from streamd.sinks.peers import FAIR_BYTES, Peers


@dataclass
class Connection:
    """One, from an address of its own."""

    host: str
    client: socket.socket
    accepted: socket.socket
    asked: bool = False


class Bound:
    """A bound socket, as libzmq has one, and a camera beside it."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._cameras = socket.create_server(("127.0.0.1", 0))
        self._camera: tuple[socket.socket, socket.socket] | None = None
        self.peers = Peers(1000)
        self.peers.endpoint = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        self.open: list[Connection] = []
        self.ended: list[Connection] = []
        self._closing: list[Connection] = []
        self.sent = 0
        self._events: deque[tuple[bool, int]] = deque()

    def __enter__(self) -> Bound:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.peers.close()
        self.close()
        left = [s for c in self.open for s in (c.client, c.accepted)]
        for each in (self._server, self._cameras, *(self._camera or ()), *left):
            each.close()

    def connect(self, _: int) -> None:
        host = f"127.0.1.{1 + len(self.open) + len(self.ended)}"
        client = socket.create_connection(self._server.getsockname(), 10, (host, 0))
        accepted, _ = self._server.accept()
        self._events.append((True, accepted.fileno()))
        self.open.append(Connection(host, client, accepted))

    def leave(self, which: int) -> None:
        """libzmq tells of an end before it closes the descriptor: see `close`."""
        if self.open:
            connection = self.open.pop(which % len(self.open))
            self.ended.append(connection)
            self._events.append((False, connection.accepted.fileno()))
            self._closing.append(connection)

    def close(self, _: int = 0) -> None:
        while self._closing:
            connection = self._closing.pop()
            connection.accepted.close()
            connection.client.close()

    def send(self, which: int) -> None:
        if self.open:
            connection = self.open[which % len(self.open)]
            connection.client.sendall(bytes(1000))
            self.sent += len(connection.accepted.recv(1000, socket.MSG_WAITALL))

    def camera(self, _: int) -> None:
        """What has ended is closed, and a camera has its descriptors. It sends much."""
        for end in self._camera or ():
            end.close()
        self.close()
        camera = socket.create_connection(self._cameras.getsockname())
        reading, _address = self._cameras.accept()
        self._camera = camera, reading
        for _ in range(20):
            camera.sendall(bytes(50_000))
            reading.recv(50_000, socket.MSG_WAITALL)

    def hear(self, most: int | None = None) -> None:
        for _ in range(len(self._events) if most is None else min(most, len(self._events))):
            begins, descriptor = self._events.popleft()
            (self.peers.accepted if begins else self.peers.ended)(descriptor)

    def ask(self, which: int) -> None:
        """A connection greets, and libzmq asks about it: once all has been heard."""
        if self.open and not (connection := self.open[which % len(self.open)]).asked:
            self.hear()
            connection.asked = True
            assert self.peers.may_enter(connection.host), connection.host


_STEP = st.sampled_from(("connect", "connect", "leave", "close", "hear", "send", "ask", "camera", "look"))
_STEPS = st.lists(st.tuples(_STEP, st.integers(0, 7)), min_size=5, max_size=60)


@settings(max_examples=300)
@given(_STEPS)
def test_whenever_it_is_heard_each_connection_is_counted_once(steps: list[tuple[str, int]]) -> None:
    now = 0.0
    with Bound() as bound:
        peers = bound.peers
        peers.look(now)
        for step, number in steps:
            if step == "look":
                now += 0.3  # whether all exist is asked at every fourth look
                peers.look(now)
            else:
                getattr(bound, step)(number)
        bound.hear()
        bound.close()
        peers.look(now)
        assert {fd: p.host for fd, p in peers._peers.items()} == {c.accepted.fileno(): c.host for c in bound.open}
        assert not peers.readers().refused
        hosts = peers._hosts
        for connection in bound.open:
            assert hosts._of(connection.host)._left == peers._host_limit - 1
            assert connection.asked or peers.may_enter(connection.host)
            assert not peers.may_enter(connection.host), "once"
        for connection in bound.ended:
            assert hosts._of(connection.host)._left >= peers._host_limit - 1
            assert not peers.may_enter(connection.host)
        # The kernel counts the end of a connection as a byte.
        assert peers._all_input.used <= bound.sent + (FAIR_BYTES + 1) * len(bound.ended)
