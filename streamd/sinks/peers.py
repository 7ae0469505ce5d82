"""The peers of a bound ZeroMQ socket, and the limits on what they may take.

libzmq accepts every connection and stores every subscription. `PeerWatch` hears of each connection, by its descriptor,
and each subscription carries the descriptor that it came from. The kernel tells how much each connection has received.
A connection beyond a limit is shut down through a duplicate of its descriptor, after a check that it is still the same
connection: libzmq then sees its end, and frees everything that belonged to it.

A descriptor is no name: it is given to the next connection at once, and what libzmq tells of it is heard later, after
thousands of others' ends on a busy machine. What is at a descriptor is therefore asked of the kernel (`cookie_of`), and
what libzmq tells only says when to ask.
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
from typing import Literal

import structlog

from streamd.sinks import Readers
from streamd.sinks.hosts import Allowance, Hosts, host_of
from streamd.sinks.sockets import Duplicates, cookie_of, is_at, name_of, received_by, unread_of
from streamd.telemetry.logs import Throttle

log = structlog.get_logger(__name__)

TOPICS = 1_000
TOPIC_BYTES = 64 << 10
"""Most subscriptions of one peer. libzmq stores each in a tree with about 32 bytes a character."""
ALL_TOPIC_BYTES, DIFFERENT_TOPIC_BYTES = 2 << 20, 128 << 10
"""Of all peers of a socket, and of their different topics. For each connection that ends, libzmq searches all of these,
about 70 ns a byte, and nothing is published meanwhile."""
FAIR_TOPIC_BYTES = 512
"""What a peer may have once one of both is reached."""
VISITORS, SEARCHED_BYTES = 16, 512 << 10
"""Connections at a time of which is not known yet whether they stay, and bytes of topics that libzmq may search if they
all leave. Others wait to be let in: hundreds that subscribed and left while the socket's thread waited for a processor
were worked off in one call."""
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

_BUSY_S = 0.2
_BUSY_BYTES = 2048
"""More than this between two looks is sending; heartbeats are less."""
_AUDIT_S = 1.0
"""Between two looks at whether the connections still exist, whatever libzmq has said."""
_SETTLED_S = 0.05
"""After the end of a connection, libzmq has passed on what it had received by then."""
_WORKED_OFF_S = 0.1
"""After the end of a connection, libzmq has searched the topics."""
_SILENT_S = 0.5
"""A connection that has subscribed to nothing by then is taken to stay."""
_LOG_S = 10.0

Reason = Literal["limit", "host", "descriptors", "again", "busy", "topics", "rate", "input"]
_ABUSE = ("topics", "rate", "input")


@dataclass(slots=True)
class Peer:
    """One connection."""

    host: str
    """See `host_of`."""
    cookie: int
    """See `cookie_of`."""
    closed: bool = False
    """It was shut down, and libzmq has yet to see it."""
    leaving: bool = False
    """libzmq has told of the end of a connection with its descriptor: of its own, or of one before it."""
    entered: float = 0.0
    """When it was let in, monotonic seconds."""
    gone: float = 0.0
    """When its end was found."""
    topics: set[bytes] = field(default_factory=set)
    topic_bytes: int = 0
    received: int = 0
    """Bytes, as last seen; for ipc those that waited to be read."""
    messages: Allowance = field(default_factory=lambda: Allowance(MESSAGES, MESSAGES_A_SECOND))
    input: Allowance = field(default_factory=lambda: Allowance(INPUT_BYTES, INPUT_BYTES_A_SECOND))


def _has_settled(peer: Peer, since: float) -> bool:
    """Whether all that was heard since `since` shows that it stays, or that libzmq is done with it."""
    if peer.gone:
        return peer.gone < since - _WORKED_OFF_S
    return peer.entered < since - (_SETTLED_S if peer.topics else _SILENT_S)


class Peers:
    """Counts and limits the connections of one socket. Any thread; `heard` is called by the socket's.

    Args:
        limit: most connections.
    """

    def __init__(self, limit: int) -> None:
        self.endpoint = ""
        """Of the socket, once it is bound."""
        self.busy_until = 0.0
        """Until when what comes is to be looked at often, monotonic seconds."""
        self._limit, self._host_limit = limit, max(LEAST_OF_HOST, limit // 2)
        self._peers: dict[int, Peer] = {}
        self._all_topic_bytes = 0
        self._different: Counter[bytes] = Counter()
        """Peers by topic."""
        self._different_bytes = 0
        self._visitors: list[Peer] = []
        """See VISITORS."""
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
        self._audit_at = 0.0

    def close(self) -> None:
        """Gives a descriptor back that is kept for `Duplicates`."""
        self._duplicates.close()

    @property
    def count(self) -> int:
        """The number of connections."""
        return len(self._peers)

    def readers(self) -> Readers:
        """See `Readers`."""
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
                peer.topic_bytes -= len(topic)
                self._left(topic)
            if message[:1] != b"\x01" or topic in peer.topics:
                return False
            peer.topics.add(topic)
            peer.topic_bytes += len(topic)
            self._all_topic_bytes += len(topic)
            self._different[topic] += 1
            if self._different[topic] == 1:
                self._different_bytes += len(topic)
            if (
                len(peer.topics) > TOPICS
                or peer.topic_bytes > TOPIC_BYTES
                or (peer.topic_bytes > FAIR_TOPIC_BYTES and self._many_topics)
            ):
                self._close(descriptor, peer, "topics")
                return False
            return True

    def heard_all(self, since: float) -> None:
        """There was nothing more to hear.

        Args:
            since: when it was begun to listen, monotonic seconds.
        """
        if self._visitors:
            with self._lock:
                self._visitors = [peer for peer in self._visitors if not _has_settled(peer, since)]
        if self._ended:
            with self._lock:
                self._ended = {fd: at for fd, at in self._ended.items() if at > since - _SETTLED_S}

    def _left(self, topic: bytes) -> None:
        """One peer less has this topic."""
        self._all_topic_bytes -= len(topic)
        self._different[topic] -= 1
        if not self._different[topic]:
            del self._different[topic]
            self._different_bytes -= len(topic)

    @property
    def _many_topics(self) -> bool:
        return self._all_topic_bytes > ALL_TOPIC_BYTES or self._different_bytes > DIFFERENT_TOPIC_BYTES

    @property
    def full(self) -> bool:
        """Whether further connections have to wait to be let in."""
        return len(self._visitors) >= max(1, min(VISITORS, SEARCHED_BYTES // max(1, self._different_bytes)))

    def may_enter(self, address: str) -> bool:
        """Whether a connection from there was accepted and not closed, for which nobody has asked yet."""
        try:
            host = host_of((address,))
        except ValueError:
            host = ""  # ipc: localhost:UID:GID:PID
        with self._lock:
            if self._granted[host] <= 0:
                return False
            self._granted[host] -= 1
            # Which of the host's it is does not matter.
            peer = next((p for p in self._peers.values() if p.host == host and not p.closed and not p.entered), None)
            if peer is not None:
                peer.entered = time.monotonic()
                self._visitors.append(peer)
            return True

    def not_accepted(self) -> None:
        """libzmq could not take a connection in."""
        with self._lock:
            self._refuse("descriptors", "")

    def accepted(self, descriptor: int) -> None:
        """libzmq took a connection in. Its descriptor may be another's by now, or nobody's."""
        with self._lock:
            self._accepted(descriptor)

    def _accepted(self, descriptor: int) -> None:
        self.busy_until = time.monotonic() + _BUSY_S
        with self._duplicates.of(descriptor) as connection:
            name, cookie = None, 0
            if connection is not None:
                cookie = cookie_of(connection.fileno())
                name = name_of(connection) if is_at(connection, self.endpoint) else None
        known = self._peers.get(descriptor)
        if known is not None and known.cookie == cookie:
            # Known since one before it with this descriptor was told of.
            known.leaving = False
            return
        self._drop(descriptor)
        if name is None:
            return  # over already; its descriptor may be a camera's by now
        peer = self._peers[descriptor] = Peer(host_of(name), cookie)
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

    def ended(self, descriptor: int) -> None:
        """libzmq told of the end of a connection: of the one with this descriptor, or of one that had it before."""
        with self._lock:
            peer = self._peers.get(descriptor)
            if peer is None:
                return
            now = time.monotonic()
            if cookie_of(descriptor) != peer.cookie:
                self._drop(descriptor)
            else:
                # It has yet to be closed, which takes microseconds, or it is another, and stays.
                peer.leaving = True
                self._ended[descriptor] = now
                self.busy_until = now + _BUSY_S

    def _drop(self, descriptor: int) -> None:
        """Forgets a connection that is no more."""
        peer = self._peers.pop(descriptor, None)
        if peer is not None:
            for topic in peer.topics:
                self._left(topic)
            self._ended[descriptor] = peer.gone = time.monotonic()
            if not peer.received and not peer.closed:
                self._all_input.use(FAIR_BYTES, least=-ALL_INPUT_BYTES)
            if granted := self._granted[peer.host]:
                # Whether it had been asked about is not known: there are at most as many as connections.
                there = sum(p.host == peer.host and not p.closed for p in self._peers.values())
                self._granted[peer.host] = min(granted, there)
            if not self._granted[peer.host]:
                del self._granted[peer.host]

    def look(self, now: float) -> None:
        """Looks at what has come from each connection, and whether those exist of which that is in doubt.

        Bytes received are counted by the kernel for TCP, and estimated for ipc.

        Args:
            now: monotonic seconds.
        """
        with self._lock:
            # The ends of some may never be told: the limits would count those for ever.
            audit = now >= self._audit_at
            if audit:
                self._audit_at = now + _AUDIT_S
            gone = [
                descriptor
                for descriptor, peer in self._peers.items()
                if (audit or peer.leaving) and cookie_of(descriptor) != peer.cookie
            ]
            for descriptor in gone:
                self._drop(descriptor)
            for descriptor, peer in self._peers.items():
                if not peer.closed:
                    self._look_at(descriptor, peer, now)

    def _look_at(self, descriptor: int, peer: Peer, now: float) -> None:
        if peer.host:
            received = received_by(descriptor)
            new = received - peer.received
        else:
            received = unread_of(descriptor)
            # The same number again may be the same bytes: libzmq's thread has not run meanwhile.
            new = received + min((UNREAD_WEIGHT - 1) * received, UNREAD_BYTES)
            new *= received != peer.received
        if new and cookie_of(descriptor) != peer.cookie:
            # It has ended, which is heard later, and its descriptor is another's: perhaps that of a camera, whose
            # megabytes would keep all subscribers out for seconds.
            return
        peer.received = received
        if new > _BUSY_BYTES:
            self.busy_until = now + _BUSY_S
        if new <= 0:
            return
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
            if connection is None or cookie_of(connection.fileno()) != peer.cookie:
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
