"""Peers that connect to the daemon: invalid ZeroMQ subscribers, and clients of the HTTP port."""

from __future__ import annotations

import contextlib
import hashlib
import select
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing.target import Target
from streamd.errors import SinkError

_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_READY = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03SUB"


class _Publisher:
    """The daemon's zmq sink, with one thread that publishes continuously, as a sink thread does."""

    def __init__(self, more: dict[str, Any]) -> None:
        from streamd.sinks import open_sink
        from streamd.sinks.zmq import ZmqSettings
        from streamd.types import Boxes, Detections, ModelInfo, StageTimes, StreamCounts, StreamStatus

        self.error: BaseException | None = None
        self._sink = open_sink(ZmqSettings(kind="zmq", bind="tcp://127.0.0.1:0", **more))
        self._sink.open()
        self._sink._peers._hosts.rate = 1e6  # type: ignore[attr-defined] # each input is a connection of this host
        self.endpoint: str = self._sink.endpoint  # type: ignore[attr-defined]
        self.port = int(self.endpoint.rpartition(":")[2])
        self._stop = threading.Event()
        nothing = Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))
        self._status = StreamStatus("a", "LIVE", "", "", 0, 0), StreamCounts()
        times, model = StageTimes(1, 2, 3, 4, 5, 6), ModelInfo("m", "", ())
        self._frame = Detections("a", 0, 0, None, 0, 64, 48, times, model, nothing)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        from streamd.sinks.envelope import MessageBuilder, Outgoing

        seq, builder = 0, MessageBuilder("b")
        try:
            self._sink.send(builder.status(*self._status))
            while not self._stop.wait(0.002):
                self._sink.poll()
                self._sink.send(builder.detections(Outgoing(replace(self._frame, seq=seq), "b")))
                seq += 1
        except BaseException as error:  # noqa: BLE001 - told with the next input
            self.error = error

    def close(self) -> None:
        self._stop.set()
        self._thread.join(10)
        self._sink.close()


class Zmtp(Target):
    """Arbitrary bytes sent to the PUB port, while a valid subscriber continues to receive."""

    name = "zmtp"
    what = "bytes of a peer at the ZeroMQ port (ZMTP); a good subscriber beside it must lose nothing"
    share = 0.8
    least = 30
    tokens: Sequence[bytes] = (
        b"\x00\x00",
        b"\x01\x01",
        b"\x02\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x00\x01\x01",
        b"\x04\x05\x04PING",
        b"\x09SUBSCRIBE",
        b"\x05ERROR",
        b"\x7f\x01",
        b"PLAIN",
        b"CURVE",
        b"GSSAPI",
        b"\x00\x05\x01\xff\xfe\x00\x01",
    )
    options: dict[str, Any] = {}  # noqa: RUF012 - replaced by a subclass, never changed

    @classmethod
    def seeds(cls, folder: Path) -> list[bytes]:
        subscribe = b"\x00\x01\x01"
        return [
            _GREETING + _READY + subscribe + b"\x00\x15\x01streamd/1/a/detection",
            _GREETING + _READY + b"\x00\x01\x01\x00\x01\x00" * 20,
            _GREETING + _READY + b"\x04\x07\x04PING\0\0" + subscribe,
        ]

    def open(self) -> None:
        self._publisher = _Publisher(self.options)
        self._context, self._good = self.subscriber(self._publisher.endpoint)
        self._seq: int | None = None
        self._received(10)

    def subscriber(self, endpoint: str) -> tuple[Any, Any]:
        import zmq

        context = zmq.Context()
        good = context.socket(zmq.SUB)
        good.setsockopt(zmq.RCVHWM, 0)
        good.subscribe(b"streamd/1/a/detections")
        self.secure(good)
        good.connect(endpoint)
        return context, good

    def secure(self, good: Any) -> None:
        """Sets the valid subscriber's keys."""

    def _received(self, timeout: float) -> None:
        """Receives the waiting messages, at least one; none may be missing."""
        import zmq

        from streamd.sinks.message import DetectionsMessage, decode

        if not self._good.poll(timeout * 1000):
            raise AssertionError(
                f"the good subscriber got nothing for {timeout} s; publisher: {self._publisher.error!r}"
            )
        with contextlib.suppress(zmq.Again):
            while True:
                message = decode(self._good.recv_multipart(zmq.DONTWAIT))
                assert isinstance(message, DetectionsMessage)
                assert self._seq is None or message.seq == self._seq + 1, "the good subscriber missed a message"
                self._seq = message.seq

    def run(self, data: bytes) -> None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._publisher.port), 5) as peer:
            peer.settimeout(0.004)
            # In two parts, to wait for the answer in between.
            for piece in (data[:64], data[64:]):
                peer.sendall(piece)
                with contextlib.suppress(TimeoutError):
                    peer.recv(65536)
        self._received(5)

    def close(self) -> None:
        self._publisher.close()
        self._context.destroy(linger=0)


class Curve(Zmtp):
    """The same at an encrypted port: handshakes of a listed and an unlisted client, complete, truncated and altered."""

    name = "curve"
    what = "CURVE handshakes of a peer at the encrypted ZeroMQ port; a listed subscriber beside it must lose nothing"
    tokens = (*Zmtp.tokens, b"\x04\xc8\x05HELLO\x01\x00", b"\x08INITIATE", b"\x07WELCOME", b"\x07MESSAGE", b"NULL")

    @classmethod
    def keys(cls, whose: str) -> tuple[str, str]:
        """A fixed public and secret key for a name."""
        import zmq
        from zmq.utils import z85

        secret = z85.encode(hashlib.sha256(whose.encode()).digest())
        return zmq.curve_public(secret).decode(), secret.decode()

    @classmethod
    def seeds(cls, folder: Path) -> list[bytes]:
        publisher = _Publisher(cls.settings())
        try:
            made = [
                _handshake(publisher.port, cls.keys("server")[0], cls.keys(client)) for client in ("good", "stranger")
            ]
        finally:
            publisher.close()
        # A client's first message, once and twice; and a client without keys.
        return [*made, made[0][:264], made[0][:264] + made[0][64:264], *Zmtp.seeds(folder)[:1]]

    @classmethod
    def settings(cls) -> dict[str, Any]:
        """Of the sink."""
        return {"curve": {"secret_key": cls.keys("server")[1], "clients": (cls.keys("good")[0],)}}

    def open(self) -> None:
        self.options = self.settings()
        super().open()

    def secure(self, good: Any) -> None:
        _use(good, self.keys("server")[0], self.keys("good"))


def _use(subscriber: Any, server: str, own: tuple[str, str]) -> None:
    subscriber.curve_serverkey = server.encode()
    subscriber.curve_publickey, subscriber.curve_secretkey = (key.encode() for key in own)


def _handshake(port: int, key: str, own: tuple[str, str]) -> bytes:
    """The bytes that a subscriber with these keys sends until it is accepted or rejected; different every time."""
    import zmq

    sent = bytearray()
    with (
        socket.create_server(("127.0.0.1", 0)) as proxy,
        zmq.Context() as context,
        context.socket(zmq.SUB) as subscriber,
    ):
        subscriber.linger = 0
        _use(subscriber, key, own)
        subscriber.subscribe(b"")
        subscriber.connect(f"tcp://127.0.0.1:{proxy.getsockname()[1]}")
        client, _ = proxy.accept()
        with client, socket.create_connection(("127.0.0.1", port)) as server:
            deadline = time.monotonic() + 0.5
            while time.monotonic() < deadline:
                for source in select.select([client, server], [], [], 0.1)[0]:
                    piece = source.recv(65536)
                    if source is client:
                        sent += piece
                        server.sendall(piece)
                    else:
                        client.sendall(piece)
                    if not piece:
                        return bytes(sent)
    return bytes(sent)


_REQUESTS = (
    b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n",
    b"GET /healthz HTTP/1.0\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n",
    b"GET /state?x=1&y=%20%ff HTTP/1.1\r\nHost: x\r\nAuthorization: Basic dTpw\r\n\r\n",
    b"GET /still/a HTTP/1.1\r\nHost: x\r\nOrigin: http://x\r\nSec-Fetch-Site: cross-site\r\n\r\n",
    b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
)


class Http(Target):
    """Requests to the HTTP port with metrics and page."""

    name = "http"
    what = "requests to the metrics port and the web page"
    text = True
    least = 30
    tokens = (
        b"\r\n",
        b"\r\n\r\n",
        b"\0",
        b"%00",
        b"%ff",
        b"/../",
        b"//",
        b"?",
        b"#",
        b"HTTP/9.9",
        b"HTTP/1.1.1",
        b"Expect: 100-continue\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: -1\r\n",
        b"Host: \r\n",
        b": x\r\n",
        b" folded\r\n",
        b"X: " + b"y" * 70000 + b"\r\n",
        b"X: y\r\n" * 120,
        b"Authorization: Basic ////\r\n",
        b"PRI * HTTP/2.0\r\n",
        b"Accept: ;q=;q=,*/*;q=x\r\n",
        b"name[]=",
        b"\xff\xfe",
        b"Accept-Encoding: gzip;q=x\r\n",
    )

    @classmethod
    def seeds(cls, folder: Path) -> list[bytes]:
        return list(_REQUESTS)

    def open(self) -> None:
        from prometheus_client import CollectorRegistry

        from streamd.flow.status import StatusBoard
        from streamd.telemetry import http
        from streamd.telemetry.access import Login
        from streamd.telemetry.metrics import Metrics
        from streamd.types import StreamStatus
        from streamd.web.page import Page
        from streamd.web.state import State
        from streamd.web.tap import Tap

        registry = CollectorRegistry()
        Metrics(registry).stream("a").received = 1
        board = StatusBoard()
        board.post(StreamStatus("a", "LIVE", "", "", 0, 0))
        self._unexpected: list[str] = []
        self._watch(http)
        good = lambda: (True, {"ok": True})  # noqa: E731
        self._tap = Tap()
        # One open to everybody, and one with a login.
        self._servers = [
            http.HttpServer("127.0.0.1:0", registry, good, good, login=login) for login in (None, Login("u", "p"))
        ]
        for server in self._servers:
            server.route("/", Page(self._tap, State(registry, board.all, "b"), guarded=False).answer)
            server.start()
        self._count = 0

    def _watch(self, http: Any) -> None:
        """The server would hide an exception of its thread; here it is a finding."""

        def handle_error(server: Any, request: Any, client_address: Any) -> None:
            kind, error, _ = sys.exc_info()
            if kind is not None and not issubclass(kind, OSError):
                self._unexpected.append(repr(error))

        http._Server.handle_error = handle_error

    def _ask(self, data: bytes, server: Any) -> bytes:
        found = b""
        with socket.create_connection(("127.0.0.1", server.port), 5) as peer:
            peer.settimeout(5)
            with contextlib.suppress(OSError):  # it may have hung up by now
                peer.sendall(data)
                peer.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while len(found) < 100_000 and (piece := peer.recv(65536)):
                    found += piece
                    if b"text/event-stream" in found or b"multipart/x-mixed-replace" in found:
                        break  # has no end
        return found

    def run(self, data: bytes) -> None:
        answer, locked = (self._ask(data, server) for server in self._servers)
        self._count += 1
        if self._count % 20 == 0:
            answers = [self._ask(b"GET /healthz HTTP/1.0\r\n\r\n", server)[:20] for server in self._servers]
            assert b" 200 " in answers[0], "the port no longer answers"
            assert b" 401 " in answers[1], "a stranger was let in"
        assert not self._unexpected, self._unexpected.pop()
        assert b" 500 " not in answer[:100] + locked[:100], (answer[:200], locked[:200])
        if b"basic dtpw" not in data.lower():
            assert b" 200 " not in locked[:20], "somebody without a password was let in"
        if not answer.startswith(b"HTTP/1.") or b" 200 " not in answer[:20]:
            raise SinkError("refused")

    def close(self) -> None:
        self._tap.close()
        for server in self._servers:
            server.close()
        time.sleep(0.1)


TARGETS: tuple[type[Target], ...] = (Zmtp, Curve, Http)
