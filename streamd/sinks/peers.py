"""The peers of a bound ZeroMQ socket, and the limits on what they may take.

libzmq accepts every connection and stores every subscription. Its socket monitor names the descriptor of each
connection that it accepts, and each subscription carries the descriptor that it came from. The kernel tells how much
each connection has received. A connection beyond a limit is shut down through a duplicate of its descriptor, after a
check that it is still the same connection: libzmq then sees its end, and frees everything that belonged to it.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import structlog

from streamd.flow.threads import NamedThread
from streamd.sinks import Readers
from streamd.sinks.curve import DOMAIN, ZAP_ENDPOINT
from streamd.sinks.hosts import Allowance, Hosts, host_of
from streamd.sinks.sockets import Duplicates, cookie_of, is_at, name_of, received_by, unread_of
from streamd.telemetry.logs import Throttle

log = structlog.get_logger(__name__)

HANDSHAKE_MS = 10_000
"""A connection that has not completed its handshake by then is closed by libzmq."""
TOPICS = 1_000
TOPIC_BYTES = 64 << 10
"""Most subscriptions of one peer. libzmq stores each in a tree with about 32 bytes a character."""
ALL_TOPIC_BYTES = 2 << 20
"""Of all peers of a socket."""
MESSAGES, MESSAGES_A_SECOND = 2_000, 50.0
"""Subscriptions and cancellations of one peer: at once, and in the long run."""
INPUT_BYTES, INPUT_BYTES_A_SECOND = 256 << 10, 4096.0
"""Bytes received from one peer: at once, and in the long run. Subscriptions and heartbeats are far less; parts of a
message that never ends would be stored by libzmq without a limit."""
ALL_INPUT_BYTES, ALL_INPUT_BYTES_A_SECOND = 1 << 20, 64_000.0
"""The same of all peers of a socket, from however many hosts: beyond it, none is let in, and those that have sent more
than FAIR_BYTES are closed."""
FAIR_BYTES = 16 << 10
"""Also what a connection is taken to have sent that ends before it is looked at."""
UNREAD_WEIGHT, UNREAD_BYTES = 50, 16 << 10
"""The kernel does not count what a local (ipc) peer has sent; it tells what of it waits to be read. Bytes that are seen
waiting stand for this many times as many that were read between two looks, but for no more than UNREAD_BYTES: a burst
of topics is looked at only once."""
LEAST_OF_HOST = 16
"""One host may always have this many connections, and half of `limit`."""

_CHECK_MS, _BUSY_CHECK_MS = 50, 5
"""libzmq stores subscriptions as fast as they come, and publishes nothing meanwhile: at a gigabyte a second, 5 MB come
between two checks. The shorter time holds while a peer has just connected or is sending."""
_EVENTS, _ALL_EVENTS = 64, 10_000
"""Events taken at a time."""
_BUSY_S = 0.2
_BUSY_BYTES = 2048
"""More than this between two checks is sending; heartbeats are less."""
_AUDIT_S = 1.0
"""Between two looks at whether the connections still exist."""
_MISSING_S = 2.0
"""A connection that has not existed for so long has ended, whether libzmq has said so or not."""
_SETTLED_S = 0.05
"""After the end of a connection, libzmq has passed on what it had received by then."""
_LOG_S = 10.0

Reason = Literal["limit", "host", "descriptors", "again", "busy", "topics", "rate", "input"]
_ABUSE = ("topics", "rate", "input")


@dataclass(slots=True)
class Peer:
    """One connection."""

    name: Any
    """Its own address and port; empty for ipc."""
    host: str
    """See `host_of`."""
    cookie: int = 0
    """See `cookie_of`."""
    closed: bool = False
    """It was shut down, and libzmq has yet to see it."""
    topics: set[bytes] = field(default_factory=set)
    topic_bytes: int = 0
    missing_since: float = 0.0
    """When its descriptor was first found to be none of this connection any more, monotonic seconds."""
    received: int = 0
    """Bytes, as last seen; for ipc those that waited to be read."""
    messages: Allowance = field(default_factory=lambda: Allowance(MESSAGES, MESSAGES_A_SECOND))
    input: Allowance = field(default_factory=lambda: Allowance(INPUT_BYTES, INPUT_BYTES_A_SECOND))


class Peers:
    """Watches one bound socket on a thread of its own; `heard` is called by the socket's thread.

    Args:
        context: of the socket.
        socket: not bound yet.
        limit: most connections.
        asked: libzmq asks here, before it takes anything of a connection; False where it asks another (CURVE).
    """

    _serial = 0

    def __init__(self, context: Any, socket: Any, limit: int, *, asked: bool) -> None:
        import zmq

        self.endpoint = ""
        """Of the socket, once it is bound."""
        self._limit, self._host_limit = limit, max(LEAST_OF_HOST, limit // 2)
        self._peers: dict[int, Peer] = {}
        self._all_topic_bytes = 0
        self._busy_until = 0.0
        self._ended: dict[int, float] = {}
        """Descriptors of connections that have ended, and when, while subscriptions of theirs may be under way."""
        self._refused: Counter[str] = Counter()
        self._throttle = Throttle(_LOG_S)
        self._lock = threading.Lock()
        self._duplicates = Duplicates()
        self._hosts = Hosts(self._host_limit)
        self._all_input = Allowance(ALL_INPUT_BYTES, ALL_INPUT_BYTES_A_SECOND)
        self._granted: Counter[str] = Counter()
        """Connections by host about which libzmq has yet to ask."""
        self._over = False
        self._socket = socket
        Peers._serial += 1
        endpoint = f"inproc://peers-{Peers._serial}"
        self._monitor = context.socket(zmq.PAIR)
        # No limit on events: libzmq's own thread would wait for us.
        self._monitor.setsockopt(zmq.RCVHWM, 0)
        self._monitor.setsockopt(zmq.LINGER, 0)
        socket.monitor(
            endpoint, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_ACCEPT_FAILED | zmq.EVENT_MONITOR_STOPPED
        )
        self._monitor.connect(endpoint)
        self._questions = context.socket(zmq.REP) if asked else None
        if self._questions is not None:
            # What a connection sends before its end is noticed is stored, and freed by a search of everything stored,
            # for minutes: a connection that is refused must not come so far.
            socket.setsockopt_string(zmq.ZAP_DOMAIN, DOMAIN)
            self._questions.setsockopt(zmq.LINGER, 0)
            self._questions.bind(ZAP_ENDPOINT)
        self._thread = NamedThread(self._watch, "zmq-peers")
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, while the socket is open."""
        self._socket.disable_monitor()
        self._thread.join()
        self._duplicates.close()

    @property
    def count(self) -> int:
        """The number of connections. Any thread."""
        return len(self._peers)

    def readers(self) -> Readers:
        """See `Readers`. Any thread."""
        with self._lock:
            return Readers(len(self._peers), dict(self._refused))

    def heard(self, descriptor: int, message: bytes) -> bool:
        """Takes a subscription or cancellation; returns whether it is a topic that this peer did not have yet.

        Args:
            descriptor: of the connection that it came from.
            message: as received from the socket.
        """
        with self._lock:
            peer = self._peers.get(descriptor)
            if peer is None or descriptor in self._ended:
                # Accepted this very moment, gone, or sent by a peer that had the descriptor before this one.
                return message[:1] == b"\x01"
            if peer.closed:
                return False
            if not peer.messages.use(1):
                self._close(descriptor, peer, "rate")
                return False
            topic = message[1:]
            if message[:1] == b"\x00" and topic in peer.topics:
                peer.topics.remove(topic)
                self._count(peer, -len(topic))
            if message[:1] != b"\x01" or topic in peer.topics:
                return False
            peer.topics.add(topic)
            self._count(peer, len(topic))
            if (
                len(peer.topics) > TOPICS
                or peer.topic_bytes > TOPIC_BYTES
                or (self._all_topic_bytes > ALL_TOPIC_BYTES and peer is self._greediest())
            ):
                self._close(descriptor, peer, "topics")
                return False
            return True

    def heard_all(self, since: float) -> None:
        """There was nothing more to hear.

        Args:
            since: when it was begun to listen, monotonic seconds.
        """
        if self._ended:
            with self._lock:
                self._ended = {fd: at for fd, at in self._ended.items() if at > since - _SETTLED_S}

    def _count(self, peer: Peer, size: int) -> None:
        peer.topic_bytes += size
        self._all_topic_bytes += size

    def _greediest(self) -> Peer:
        return max(self._peers.values(), key=lambda p: p.topic_bytes)

    def _watch(self) -> None:
        import zmq

        monitor, questions = self._monitor, self._questions
        poller = zmq.Poller()
        poller.register(monitor, zmq.POLLIN)
        if questions is not None:
            poller.register(questions, zmq.POLLIN)
        next_check = next_audit = 0.0
        with contextlib.closing(monitor), contextlib.closing(questions) if questions else contextlib.nullcontext():
            while not self._over:
                now = time.monotonic()
                if self._peers and now >= next_check:
                    self._check_input(now)
                    next_check = now + (_BUSY_CHECK_MS if now < self._busy_until else _CHECK_MS) / 1000
                    if now >= next_audit:
                        self._audit(now)
                        next_audit = now + _AUDIT_S
                self._hear(_EVENTS)
                if questions is not None:
                    self._answer(questions)
                if self._busy_until > now:
                    next_check = min(next_check, now + _BUSY_CHECK_MS / 1000)
                if not self._over:
                    poller.poll(max(1, int((next_check - time.monotonic()) * 1000)) if self._peers else None)

    def _hear(self, most: int) -> None:
        """Takes events of the monitor, as far as there are any."""
        import zmq

        for _ in range(most):
            try:
                event, value = struct.unpack("=hi", self._monitor.recv(zmq.DONTWAIT))
                self._monitor.recv()
            except zmq.Again:
                return
            if event == zmq.EVENT_MONITOR_STOPPED:
                self._over = True
                return
            try:
                self._happened(event, value)
            except Exception as error:  # noqa: BLE001 - nobody would count or limit the peers any more
                log.error("zmq sink: a connection was not looked at", error=repr(error))

    def _answer(self, questions: Any) -> None:
        """Answers libzmq's questions (ZAP) about new connections: it takes no subscription before."""
        import zmq

        for _ in range(_EVENTS):
            try:
                version, request, _domain, address, *_ = questions.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            self._hear(_ALL_EVENTS)  # the connection is among them
            may = self._may_enter(address.decode("ascii", "replace"))
            answer = (b"200", b"OK") if may else (b"400", b"too many connections")
            questions.send_multipart([version, request, *answer, b"", b""])

    def _may_enter(self, address: str) -> bool:
        """Whether a connection from there was accepted and not closed, for which nobody has asked yet."""
        try:
            host = host_of((address,))
        except ValueError:
            host = ""  # ipc: localhost:UID:GID:PID
        with self._lock:
            if self._granted[host] <= 0:
                return False
            self._granted[host] -= 1
            return True

    def _happened(self, event: int, value: int) -> None:
        import zmq

        with self._lock:
            if event == zmq.EVENT_ACCEPTED:
                self._accepted(value)
            elif event == zmq.EVENT_ACCEPT_FAILED:
                self._refuse("descriptors", "")
            else:
                self._gone(value)

    def _accepted(self, descriptor: int) -> None:
        self._busy_until = time.monotonic() + _BUSY_S
        self._gone(descriptor)
        with self._duplicates.of(descriptor) as connection:
            name = connection and name_of(connection)
            if connection is None or name is None or not is_at(connection, self.endpoint):
                return  # over already; its descriptor may be a camera's by now
            peer = self._peers[descriptor] = Peer(name, host_of(name), cookie_of(connection.fileno()))
            hosts = [p.host for p in self._peers.values() if not p.closed]
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            if descriptor >= soft - max(32, soft // 4):
                # Descriptors are given out from the lowest: a quarter of them stays free for cameras, files, workers.
                self._close(descriptor, peer, "descriptors")
            elif len(hosts) > self._limit:
                self._close(descriptor, peer, "limit")
            elif peer.host and hosts.count(peer.host) > self._host_limit:
                self._close(descriptor, peer, "host")
            elif self._all_input.short:
                self._close(descriptor, peer, "busy")
            elif not self._hosts.connected(peer.host):
                self._close(descriptor, peer, "again")
            else:
                self._granted[peer.host] += 1

    def _gone(self, descriptor: int) -> None:
        peer = self._peers.pop(descriptor, None)
        if peer is not None:
            self._all_topic_bytes -= peer.topic_bytes
            self._ended[descriptor] = time.monotonic()
            if not peer.received and not peer.closed:
                self._all_input.use(FAIR_BYTES, least=-ALL_INPUT_BYTES)
            if granted := self._granted[peer.host]:
                # Whether it had been asked about is not known: there are at most as many as connections.
                there = sum(p.host == peer.host and not p.closed for p in self._peers.values())
                self._granted[peer.host] = min(granted, there)
            if not self._granted[peer.host]:
                del self._granted[peer.host]

    def _audit(self, now: float) -> None:
        """Forgets connections that exist no more: the limits would count them for ever."""
        with self._lock:
            missing = []
            for descriptor, peer in self._peers.items():
                with self._duplicates.of(descriptor) as connection:
                    there = connection is not None and name_of(connection) == peer.name
                if there:
                    peer.missing_since = 0.0
                elif not peer.missing_since:
                    peer.missing_since = now
                elif now - peer.missing_since > _MISSING_S:
                    missing.append(descriptor)
            for descriptor in missing:
                self._gone(descriptor)
        if missing:
            log.warning("zmq sink: connections had ended unnoticed", connections=len(missing))

    def _check_input(self, now: float) -> None:
        """Bytes received are counted by the kernel for TCP, and estimated for ipc."""
        with self._lock:
            for descriptor, peer in self._peers.items():
                if peer.closed:
                    continue
                if peer.host:
                    received = received_by(descriptor)
                    new = received - peer.received
                else:
                    received = unread_of(descriptor)
                    # The same number again may be the same bytes: libzmq's thread has not run meanwhile.
                    new = received + min((UNREAD_WEIGHT - 1) * received, UNREAD_BYTES)
                    new *= received != peer.received
                if new and cookie_of(descriptor) != peer.cookie:
                    # It has ended, which is heard later, and its descriptor is another's: perhaps that of a camera,
                    # whose megabytes would keep all subscribers out for seconds.
                    continue
                peer.received = received
                if new > _BUSY_BYTES:
                    self._busy_until = now + _BUSY_S
                if new <= 0:
                    continue
                self._all_input.use(new, least=-ALL_INPUT_BYTES)
                within = peer.input.use(new)
                if not within or (self._all_input.short and peer.input.used > FAIR_BYTES):
                    self._close(descriptor, peer, "input")

    def _close(self, descriptor: int, peer: Peer, reason: Reason) -> None:
        peer.closed = True
        if reason in _ABUSE:
            self._hosts.abused(peer.host)
        with self._duplicates.of(descriptor) as connection:
            # Between the check and the end of the block, the duplicate keeps its connection: it cannot be another's.
            if connection is None or name_of(connection) != peer.name:
                return
            with contextlib.suppress(OSError):
                # Once libzmq closes it, the other side is told at once, also one that waits for room to send more.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.shutdown(socket.SHUT_RDWR)
        self._refuse(reason, peer.host)

    def _refuse(self, reason: Reason, host: str) -> None:
        self._refused[reason] += 1
        held = self._throttle.take()
        if held is None:
            return
        log.warning(
            "zmq sink: connection closed", reason=reason, address=host or None, not_logged=held or None,
            connected=len(self._peers),
        )  # fmt: skip
