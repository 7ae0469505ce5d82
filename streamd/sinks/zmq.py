"""ZeroMQ publisher that counts its subscribers' losses, and in which no subscriber slows another.

PUB drops messages silently if a subscriber's queue is full; XPUB with NODROP rejects the message for everyone instead.
Each message is therefore first sent with NODROP. A rejection means that some queue is full: it is counted, and the
message is sent again without NODROP, so that only the full subscriber loses it. From then on libzmq silently skips that
subscriber until it has read, so the counter tells how often a subscriber fell behind. The subscriber itself sees how
many messages it lost: gaps in `seq` that `dropped` does not explain.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from streamd.errors import SinkError, StreamdError
from streamd.settings import FieldPath, Problems
from streamd.sinks import SINKS, Sink, SinkSettings
from streamd.sinks.curve import CurveSettings, ZapAuthenticator
from streamd.sinks.envelope import Message
from streamd.sinks.message import send_now

SLOW_SUBSCRIBER = "subscriber_slow"
MAX_SUBSCRIPTION_BYTES = 1024
"""A longer message closes its sender's connection."""
MAX_SUBSCRIPTIONS = 1000
"""Subscriptions processed at a time: a subscriber that sends them endlessly must not keep us from publishing."""


@SINKS.register
class ZmqSettings(SinkSettings):
    """ZeroMQ publisher: topic and payload, message version 1."""

    kind: Literal["zmq"] = "zmq"
    bind: str | None = Field(None, description="Endpoint to bind: tcp://HOST:PORT or ipc://PATH. Give bind or connect.")
    connect: str | None = Field(None, description="Endpoint to connect to, if the subscriber binds.")
    hwm: int = Field(
        1000,
        ge=1,
        le=1_000_000,
        description="Messages queued for each subscriber before further ones are dropped for it.",
    )
    curve: CurveSettings | None = Field(None, description="Encryption and allowed clients. Default: not encrypted.")
    encoding: Literal["json", "msgpack"] = Field("json", description="Encoding of the payload.")
    linger_s: float = Field(
        1.0, ge=0, le=60, description="Longest time to deliver queued messages at exit, in seconds."
    )

    @property
    def payload_encoding(self) -> Literal["json", "msgpack"]:
        """See `SinkSettings.payload_encoding`."""
        return self.encoding

    def check(self) -> Problems:
        """See `KindSettings.check`."""
        if (self.bind is None) == (self.connect is None):
            yield (), "give either bind (subscribers connect to us) or connect (the subscriber binds)"

    def claims(self) -> Iterator[tuple[FieldPath, str, str]]:
        """See `SinkSettings.claims`."""
        if self.bind is not None and not self.bind.endswith((":0", ":*")):
            yield ("bind",), "endpoint", self.bind

    def open(self) -> Sink:
        """See `SinkSettings.open`."""
        return ZmqSink(self)


class ZmqSink(Sink):
    """See `streamd.sinks.Sink`.

    Args:
        settings: endpoint and high-water mark.
    """

    def __init__(self, settings: ZmqSettings) -> None:
        self._settings = settings
        self._endpoint = settings.bind or settings.connect or ""
        self._retained: dict[bytes, bytes] = {}
        """The last message for late subscribers, by topic."""
        self._context: Any = None
        self._socket: Any = None
        self._door: ZapAuthenticator | None = None
        self._topics: dict[tuple[str, str], bytes] = {}

    @property
    def endpoint(self) -> str:
        """The socket's endpoint, with the chosen port for port 0 or *."""
        if self._settings.bind is None or self._socket is None:
            return self._endpoint
        import zmq

        return str(self._socket.getsockopt_string(zmq.LAST_ENDPOINT))

    def open(self) -> None:
        """See `Sink.open`."""
        import zmq

        self._context = zmq.Context()
        socket = self._socket = self._context.socket(zmq.XPUB)
        socket.setsockopt(zmq.SNDHWM, self._settings.hwm)
        socket.setsockopt(zmq.LINGER, int(self._settings.linger_s * 1000))
        socket.setsockopt(zmq.XPUB_NODROP, 1)
        # Report every subscription, also repeated ones: each new subscriber gets the last statuses.
        socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        socket.setsockopt(zmq.IPV6, 1)
        # Subscribers only send topics; limit what they can make us store.
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_SUBSCRIPTION_BYTES)
        try:
            if self._settings.curve is not None:
                self._door = ZapAuthenticator(self._context, socket, self._settings.curve)
        except StreamdError:
            self.close()
            raise
        try:
            if self._settings.bind is not None:
                socket.bind(self._settings.bind)
            else:
                socket.connect(self._endpoint)
        except zmq.ZMQError as error:
            self.close()
            advice_of: dict[int | None, str] = {
                zmq.EADDRINUSE: "another process uses that address; stop it or choose another port",
                zmq.EADDRNOTAVAIL: "the host part is not an address of this machine; check it",
                zmq.EPROTONOSUPPORT: "expected tcp://HOST:PORT or ipc://PATH",
                zmq.EINVAL: "expected tcp://HOST:PORT or ipc://PATH",
            }
            advice = advice_of.get(error.errno, error.strerror or "check the endpoint")
            verb = "bind" if self._settings.bind is not None else "connect to"
            raise SinkError(f"zmq sink: cannot {verb} {self._endpoint}: {advice}") from error

    def send(self, message: Message) -> str | None:
        """See `Sink.send`."""
        kind, stream = message.kind, message.stream
        if kind.retained:
            name, payload = message.topic, message.payload
            self._retained[name] = payload
            return self._send(name, payload)
        name = self._topics.get((kind.name, stream), b"")
        if not name:
            name = self._topics[kind.name, stream] = message.topic
        return self._send(name, message.payload)

    def _send(self, name: bytes, payload: bytes) -> str | None:
        import zmq

        socket = self._socket
        try:
            send_now(socket, name, payload)
        except zmq.Again:
            socket.setsockopt(zmq.XPUB_NODROP, 0)
            try:
                with contextlib.suppress(zmq.Again):
                    send_now(socket, name, payload)
            finally:
                socket.setsockopt(zmq.XPUB_NODROP, 1)
            return SLOW_SUBSCRIBER
        except zmq.ZMQError as error:
            raise SinkError(f"zmq sink: cannot send to {self._endpoint}: {error.strerror}") from error
        return None

    def poll(self) -> None:
        """See `Sink.poll`. Sends the last statuses to new subscribers."""
        import zmq

        if self._door is not None:
            self._door.answer()
        prefixes: set[bytes] = set()
        for _ in range(MAX_SUBSCRIPTIONS):
            try:
                event = self._socket.recv(zmq.DONTWAIT)
            except zmq.Again:
                break
            except zmq.ZMQError as error:
                raise SinkError(f"zmq sink: {self._endpoint}: {error.strerror}") from error
            if event[:1] == b"\x01":
                prefixes.add(event[1:])
        if not prefixes:
            return
        for name, payload in list(self._retained.items()):
            if any(name.startswith(p) for p in prefixes):
                self._send(name, payload)

    def close(self) -> None:
        """See `Sink.close`."""
        if self._door is not None:
            self._door.close()
            self._door = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._context is not None:
            self._context.term()  # waits for queued messages, at most the linger time
            self._context = None
