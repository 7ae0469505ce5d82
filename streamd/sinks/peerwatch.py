"""What libzmq tells of the connections of a bound socket, heard on a thread of its own.

Its socket monitor names the descriptor of each connection that it accepts and that ends, and it asks (ZAP) before it
takes anything of a connection.
"""

from __future__ import annotations

import contextlib
import struct
import time
from typing import Any

import structlog

from streamd.flow.threads import NamedThread
from streamd.sinks.curve import DOMAIN, ZAP_ENDPOINT
from streamd.sinks.peers import Peers

log = structlog.get_logger(__name__)

HANDSHAKE_MS = 10_000
"""A connection that has not completed its handshake by then is closed by libzmq."""
_LOOK_MS, _BUSY_LOOK_MS = 50, 5
"""libzmq stores subscriptions as fast as they come, and publishes nothing meanwhile: at a gigabyte a second, 5 MB come
between two looks. The shorter time holds while a peer has just connected or is sending."""
_EVENTS, _ALL_EVENTS = 64, 10_000
"""Events taken at a time."""


class PeerWatch:
    """Tells `peers` of the connections of a socket, and lets it look at them.

    Args:
        context: of the socket.
        socket: not bound yet.
        peers: those of the socket.
        asked: libzmq asks here, before it takes anything of a connection; False where it asks another (CURVE).
    """

    _serial = 0

    def __init__(self, context: Any, socket: Any, peers: Peers, *, asked: bool) -> None:
        import zmq

        self._peers = peers
        self._over = False
        self._socket = socket
        PeerWatch._serial += 1
        endpoint = f"inproc://peers-{PeerWatch._serial}"
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
        self._peers.close()

    def _watch(self) -> None:
        import zmq

        monitor, questions, peers = self._monitor, self._questions, self._peers
        events, everything = zmq.Poller(), zmq.Poller()
        events.register(monitor, zmq.POLLIN)
        everything.register(monitor, zmq.POLLIN)
        if questions is not None:
            everything.register(questions, zmq.POLLIN)
        next_look = 0.0
        with contextlib.closing(monitor), contextlib.closing(questions) if questions else contextlib.nullcontext():
            while not self._over:
                now = time.monotonic()
                if peers.count and now >= next_look:
                    peers.look(now)
                    next_look = now + (_BUSY_LOOK_MS if now < peers.busy_until else _LOOK_MS) / 1000
                self._hear(_EVENTS)
                if questions is not None:
                    self._answer(questions)
                if peers.busy_until > now:
                    next_look = min(next_look, now + _BUSY_LOOK_MS / 1000)
                if not self._over:
                    wait_ms = max(1, int((next_look - time.monotonic()) * 1000)) if peers.count else None
                    if questions is not None and peers.full:
                        # Questions wait, and the next look is soon: some have just connected.
                        events.poll(min(wait_ms or _BUSY_LOOK_MS, _BUSY_LOOK_MS))
                    else:
                        everything.poll(wait_ms)

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
                if event == zmq.EVENT_ACCEPTED:
                    self._peers.accepted(value)
                elif event == zmq.EVENT_DISCONNECTED:
                    self._peers.ended(value)
                else:
                    self._peers.not_accepted()
            except Exception as error:  # noqa: BLE001 - nobody would count or limit the peers any more
                log.error("zmq sink: a connection was not looked at", error=repr(error))

    def _answer(self, questions: Any) -> None:
        """Answers libzmq's questions (ZAP) about new connections: it takes no subscription before."""
        import zmq

        for _ in range(_EVENTS):
            if self._peers.full:
                return
            try:
                version, request, _domain, address, *_ = questions.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            self._hear(_ALL_EVENTS)  # the connection is among them
            may = self._peers.may_enter(address.decode("ascii", "replace"))
            answer = (b"200", b"OK") if may else (b"400", b"too many connections")
            questions.send_multipart([version, request, *answer, b"", b""])
