"""ZeroMQ publisher that counts what its subscribers lose, and lets no subscriber slow another.

PUB drops silently at a full subscriber; XPUB with NODROP refuses the message for everyone instead. So each message is
first sent with NODROP: a refusal tells that somebody is full, is counted, and the message is sent again without NODROP,
which loses it for the full subscriber alone. From then on libzmq leaves that subscriber out without a word until it has
read, so what is counted is how often a subscriber fell behind; by how many messages, it sees itself: gaps in `seq` that
`dropped` does not explain.
"""

from __future__ import annotations

import contextlib
from typing import Any

from streamd.errors import SinkError, StreamdError
from streamd.sinks import ZmqSettings
from streamd.sinks.curve import ZapAuthenticator
from streamd.sinks.message import STATUS_SUFFIX, Gaps, detections_message, encoder, send_now, status_message, topic
from streamd.types import Detections, StreamCounts, StreamStatus

SLOW_SUBSCRIBER = "subscriber_slow"
MAX_SUBSCRIPTION_BYTES = 1024
"""A longer message ends its sender's connection."""
MAX_SUBSCRIPTIONS = 1000
"""Taken in at a time: a subscriber that asks without end does not keep us from publishing."""


class ZmqSink:
    """See `streamd.sinks.Sink`.

    Args:
        settings: endpoint, high-water mark, encoding.
        boot_id: identity of this process in every message.
    """

    def __init__(self, settings: ZmqSettings, *, boot_id: str) -> None:
        self._settings = settings
        self._boot_id = boot_id
        self._endpoint = settings.bind or settings.connect or ""
        self._encode = encoder(settings.encoding)
        self._gaps = Gaps()
        self._statuses: dict[bytes, bytes] = {}
        """Last status by topic, as it was sent."""
        self._context: Any = None
        self._socket: Any = None
        self._door: ZapAuthenticator | None = None
        self._topics: dict[str, bytes] = {}

    @property
    def endpoint(self) -> str:
        """Where the socket is, with the port that was chosen for port 0 or *."""
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
        # Every subscription is told, also a repeated one: each newcomer gets the last statuses.
        socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        socket.setsockopt(zmq.IPV6, 1)
        # A subscriber sends topics; nobody makes us keep more than that.
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
                zmq.EADDRINUSE: "another process has that address; stop it or choose another port",
                zmq.EADDRNOTAVAIL: "this machine has no such address; check the host part",
                zmq.EPROTONOSUPPORT: "expected tcp://HOST:PORT or ipc://PATH",
                zmq.EINVAL: "expected tcp://HOST:PORT or ipc://PATH",
            }
            advice = advice_of.get(error.errno, error.strerror or "check the endpoint")
            verb = "bind" if self._settings.bind is not None else "connect to"
            raise SinkError(f"zmq sink: cannot {verb} {self._endpoint}: {advice}") from error

    def publish(self, detections: Detections) -> str | None:
        """See `Sink.publish`."""
        stream = detections.stream
        name = self._topics.get(stream)
        if name is None:
            name = self._topics[stream] = topic(stream, "detections")
        message = detections_message(detections, self._boot_id, self._gaps.before(stream, detections.seq))
        return self._send(name, self._encode(message))

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

    def status(self, status: StreamStatus, counts: StreamCounts) -> None:
        """See `Sink.status`."""
        payload = self._encode(status_message(status, counts, self._boot_id))
        self.forward(topic(status.stream, "status"), payload)

    def forward(self, name: bytes, payload: bytes) -> str | None:
        """See `Sink.forward`."""
        if name.endswith(STATUS_SUFFIX):
            self._statuses[name] = payload
        return self._send(name, payload)

    def poll(self) -> None:
        """See `Sink.poll`. Sends the last statuses to whoever has just subscribed to them."""
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
        for name, payload in list(self._statuses.items()):
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
            self._context.term()  # waits for what is queued, at most the linger time
            self._context = None
