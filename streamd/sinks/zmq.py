"""ZeroMQ publisher that counts its subscribers' losses, and in which no subscriber slows another.

PUB drops messages silently if a subscriber's queue is full; XPUB with NODROP rejects the message for everyone instead.
Each message is therefore first sent with NODROP. A rejection means that some queue is full: it is counted, and the
message is sent again without NODROP, so that only the full subscriber loses it. From then on libzmq silently skips that
subscriber until it has read, so the counter tells how often a subscriber fell behind. The subscriber itself sees how
many messages it lost: gaps in `seq` that `dropped` does not explain.

What one subscriber may take is limited: see `peers`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from streamd.errors import SinkError, StreamdError
from streamd.settings import FieldPath, Problems
from streamd.settings.places import unwritable_file
from streamd.sinks import SINKS, Readers, Sink, SinkSettings
from streamd.sinks.curve import CurveSettings, ZapAuthenticator
from streamd.sinks.endpoint import EXPECTED, LONGEST, check_socket_file, endpoint_problem
from streamd.sinks.envelope import GLANCE, Message, MessageKind
from streamd.sinks.peers import Peers
from streamd.sinks.peerwatch import HANDSHAKE_MS, PeerWatch

SLOW_SUBSCRIBER = "subscriber_slow"
MAX_SUBSCRIPTION_BYTES = 1024
"""A longer message closes its sender's connection."""
_MORE_MS = 1
"""Wait for the next ones of a subscriber that has just sent some, in milliseconds."""
_POLL_S, _LONG_POLL_S = 0.02, 0.05
"""Longest time for subscriptions, ten times a second: one who sends them endlessly must not keep us from publishing.
Those that are not processed stay in libzmq's memory, also after their sender has left, so the longer time holds while
there are more."""
_LOOK_AFTER = 64
"""Subscriptions between two looks at the clock."""
_REPEAT_S = 1.0
"""A status is repeated for late subscribers this often at most: all other subscribers receive it, too."""
_FORGET_S = 10.0
"""Message sizes older than this do not limit the queues."""


_NOW, _MORE_NOW = 1, 3
"""ZMQ_DONTWAIT, alone and with ZMQ_SNDMORE."""


FEW_RECEIVERS = 32
"""Up to this number libzmq queues a message in some microseconds."""


@functools.cache
def _held_send() -> Any:
    """libzmq's zmq_send, called with the interpreter lock; None where pyzmq is built in another way.

    pyzmq lets go of the lock for each part of a message. What does not wait takes a microsecond or two, and getting the
    lock back from busy decoders far longer."""
    try:
        from zmq.backend.cython import _zmq

        send = ctypes.PyDLL(_zmq.__file__).zmq_send
    except (ImportError, OSError, AttributeError):
        return None
    send.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int]
    return send


def send_now(socket: Any, name: bytes, payload: bytes, receivers: int = 1) -> None:
    """Sends a message on a ZeroMQ socket; raises zmq.Again and sends nothing if the socket is full.

    pyzmq's send_multipart checks the parts and combines enum flags for each message: 1.4 µs more.

    Args:
        socket: pyzmq's.
        name: first part.
        payload: second part.
        receivers: about how many it has.
    """
    send = _held_send()
    if send is not None and receivers <= FEW_RECEIVERS:
        handle = socket.underlying
        if send(handle, name, len(name), _MORE_NOW) >= 0:
            if send(handle, payload, len(payload), _NOW) < 0:
                socket.send(payload, _NOW)  # says why
            return
    socket.send(name, _MORE_NOW)
    socket.send(payload, _NOW)


@SINKS.register
class ZmqSettings(SinkSettings):
    """ZeroMQ publisher: topic and payload, message version 1."""

    kind: Literal["zmq"] = "zmq"
    bind: str | None = Field(
        None,
        description="Endpoint to bind: tcp://HOST:PORT or ipc://PATH. Exactly one of `bind` and `connect` is required.",
    )
    connect: str | None = Field(None, description="Endpoint to connect to, for subscribers that bind.")
    hwm: int = Field(
        1000,
        ge=1,
        le=1_000_000,
        description="Number of messages that may wait for each subscriber; further ones are dropped for it.",
    )
    hwm_mb: float = Field(
        256.0,
        ge=1,
        le=1_000_000,
        description="Memory for the messages that wait, in megabytes. Each subscriber may use an equal part of it, "
        "and `hwm` messages at most.",
    )
    max_subscribers: int = Field(
        256,
        ge=1,
        le=60_000,
        description="Largest number of connections to the bound endpoint; further ones are closed. One host may "
        "have half of them.",
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

    @property
    def wants(self) -> frozenset[MessageKind]:
        """See `SinkSettings.wants`. Frames that were not looked at have a topic of their own, for those who want it."""
        return super().wants | {GLANCE}

    def check(self) -> Problems:
        """See `KindSettings.check`."""
        if (self.bind is None) == (self.connect is None):
            yield (), "give either bind (subscribers connect to us) or connect (the subscriber binds)"
        elif (problem := endpoint_problem(self.address, bind=self.bind is not None)) is not None:
            yield ("bind" if self.bind is not None else "connect",), problem

    @property
    def address(self) -> str:
        """See `SinkSettings.address`."""
        return self.bind or self.connect or ""

    def claims(self) -> Iterator[tuple[FieldPath, str, str]]:
        """See `SinkSettings.claims`."""
        if self.bind is not None and not self.bind.endswith((":0", ":*")):
            yield ("bind",), "endpoint", self.bind

    def look(self) -> Iterator[tuple[FieldPath, str]]:
        """See `SinkSettings.look`."""
        scheme, _, path = (self.bind or "").partition("://")
        if scheme == "ipc" and path[:1] != "@" and (found := unwritable_file(Path(path))) is not None:
            yield ("bind",), found

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
        self._late: dict[bytes, None] = {}
        """Topics of retained messages that a new subscriber waits for."""
        self._repeated: dict[bytes, float] = {}
        """When each was last repeated, monotonic seconds."""
        self._peers: Peers | None = None
        self._watch: PeerWatch | None = None
        self._behind = False
        """The last look at subscriptions ended before there were no more."""
        self._hwm = settings.hwm
        self._largest = 0
        """Largest message of late, bytes."""
        self._larger = 0
        """The same since `_forget_at` was set."""
        self._forget_at = 0.0
        self._context: Any = None
        self._socket: Any = None
        self._door: ZapAuthenticator | None = None
        self._topics: dict[str, dict[str, bytes]] = {}
        """By kind and stream."""

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
        self._hwm, self._largest, self._larger = self._settings.hwm, 0, 0
        socket.setsockopt(zmq.SNDHWM, self._hwm)
        # No limit: where libzmq 4.3 has stopped reading a peer with a full queue and that peer closes its connection,
        # a heartbeat among what it had sent ends the process ("Assertion failed: !_io_error"). `Peers` limits input.
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        socket.setsockopt(zmq.LINGER, int(self._settings.linger_s * 1000))
        socket.setsockopt(zmq.XPUB_NODROP, 1)
        # Report every subscription and cancellation: each new subscriber gets the last statuses, and each is counted.
        socket.setsockopt(zmq.XPUB_VERBOSER, 1)
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
                if self._settings.bind.startswith("ipc://"):
                    check_socket_file(self._settings.bind.removeprefix("ipc://"))
                self._peers = Peers(self._settings.max_subscribers)
                self._watch = PeerWatch(self._context, socket, self._peers, asked=self._door is None)
                socket.bind(self._settings.bind)
                self._peers.endpoint = self.endpoint
            else:
                socket.connect(self._endpoint)
        except SinkError:
            self.close()
            raise
        except zmq.ZMQError as error:
            self.close()
            advice_of: dict[int | None, str] = {
                zmq.EADDRINUSE: "another process uses that address; stop it or choose another port",
                zmq.EADDRNOTAVAIL: "the host part is not an address of this machine; check it",
                zmq.EPROTONOSUPPORT: EXPECTED,
                zmq.EINVAL: EXPECTED,
                errno.ENAMETOOLONG: LONGEST,
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
        topics = self._topics.get(kind.name)
        if topics is None:
            topics = self._topics[kind.name] = {}
        topic = topics.get(stream)
        if topic is None:
            topic = topics[stream] = message.topic
        return self._send(topic, message.payload)

    def _send(self, name: bytes, payload: bytes) -> str | None:
        if len(payload) > self._larger:
            self._larger = len(payload)
            if self._larger > self._largest:
                self._largest = self._larger
                self._limit_queues()
        try:
            send_now(self._socket, name, payload, self._peers.count if self._peers is not None else 1)
        except Exception as error:  # noqa: BLE001 - told apart there, so that no frame pays for an import
            return self._not_sent(error, name, payload)
        return None

    def _not_sent(self, error: Exception, name: bytes, payload: bytes) -> str | None:
        """Sends a message again after an error of the first try."""
        import zmq

        socket = self._socket
        if isinstance(error, zmq.Again):
            socket.setsockopt(zmq.XPUB_NODROP, 0)
            try:
                with contextlib.suppress(zmq.Again):
                    send_now(socket, name, payload)
            finally:
                socket.setsockopt(zmq.XPUB_NODROP, 1)
            return SLOW_SUBSCRIBER
        if isinstance(error, zmq.ZMQError):
            raise SinkError(f"zmq sink: cannot send to {self._endpoint}: {error.strerror}") from error
        raise error

    def _limit_queues(self) -> None:
        """libzmq counts messages only: so many as fit into the megabytes by the largest one of late."""
        import zmq

        peers = max(1, self._peers.count) if self._peers is not None else 1
        room = int(self._settings.hwm_mb * 1e6 / (max(1, self._largest) * peers))
        hwm = max(2, min(self._settings.hwm, room))
        if hwm != self._hwm:
            self._hwm = hwm
            self._socket.setsockopt(zmq.SNDHWM, hwm)

    def poll(self) -> None:
        """See `Sink.poll`. Sends the last statuses to new subscribers."""
        if self._door is not None:
            self._door.answer()
        now = time.monotonic()
        if now >= self._forget_at:
            self._largest, self._larger, self._forget_at = self._larger, 0, now + _FORGET_S
        self._limit_queues()
        if prefixes := self._subscriptions(now):
            lengths = {len(p) for p in prefixes}  # there may be thousands of prefixes
            self._late.update((n, None) for n in self._retained if any(n[:k] in prefixes for k in lengths))
        for name in list(self._late):
            if now - self._repeated.get(name, -_REPEAT_S) >= _REPEAT_S:
                del self._late[name]
                self._repeated[name] = now
                self._send(name, self._retained[name])

    def _subscriptions(self, began: float) -> set[bytes]:
        """New topics of subscribers."""
        import zmq

        socket, peers = self._socket, self._peers
        prefixes: set[bytes] = set()
        taken = 0
        deadline = began + (_LONG_POLL_S if self._behind else _POLL_S)
        self._behind = False
        deserted = False
        while True:
            if peers is not None and not taken % _LOOK_AFTER:
                deserted = not peers.count
            try:
                # A frame tells its sender, and costs as much again: it is of no use if nobody is left.
                frame = socket.recv(zmq.DONTWAIT, copy=deserted)
            except zmq.Again:
                if not prefixes or time.monotonic() > deadline or not socket.poll(_MORE_MS):
                    if peers is not None:
                        peers.heard_all(began)
                    break
                continue
            except zmq.ZMQError as error:
                raise SinkError(f"zmq sink: {self._endpoint}: {error.strerror}") from error
            taken += 1
            if not taken % _LOOK_AFTER and time.monotonic() > deadline:
                self._behind = True
                break
            if deserted:
                if frame[:1] == b"\x01":
                    prefixes.add(frame[1:])  # of one who has just connected, it may be
                continue
            event = frame.bytes
            try:
                descriptor = frame.get(zmq.SRCFD)
            except zmq.ZMQError:
                continue  # cancelled by libzmq, since the peer has gone
            if peers.heard(descriptor, event) if peers is not None else event[:1] == b"\x01":
                prefixes.add(event[1:])
        return prefixes

    @property
    def readers(self) -> Readers | None:
        """See `Sink.readers`."""
        peers = self._peers
        return None if peers is None else peers.readers()

    def close(self) -> None:
        """See `Sink.close`."""
        if self._door is not None:
            self._door.close()
            self._door = None
        if self._watch is not None:
            self._watch.close()
            self._watch = self._peers = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._context is not None:
            self._context.term()  # waits for queued messages, at most the linger time
            self._context = None
